//! The loop: one snapshot, one plan, one pass over the files, one entry in the ledger per tick.
//!
//! The only owner of the clock and of all state.

mod citizen;
mod cost;
mod early;
mod evictions;
mod lessons;
mod levers;
mod memory;
mod meter;
mod pods;
mod report;
mod roster;
mod specs;
mod start;
mod steal;
mod targets;
mod usage;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
};

use self::{
    citizen::Citizen, cost::CostMeter, early::EarlyLooks, lessons::Lessons, memory::MemoryMeter,
    meter::Meter, steal::StealMeter,
};
use crate::{
    actuation::{
        Actuator,
        journal::Journal,
        lease::{Lease, Standing},
    },
    cgroup::{cpu_list::CpuList, hierarchy::Mounts, tree::Tree},
    clock,
    cluster::link::Place,
    decision::{
        check,
        governor::Governor,
        plan::{Plan, Reason},
        shed::{Level, Shedder},
    },
    guardian::Guardian,
    kernel::{
        onsets::{Onset, Onsets},
        probes::Probes,
    },
    model::{GroupId, Snapshot},
    places::Places,
    policy::{Group, Policy},
    record::Recorder,
    report::{
        history::{NewPlan, Reaction},
        serve::Shared,
    },
};

/// How often the agent looks at the node.
const TICK: Duration = Duration::from_millis(100);
/// How often while nothing is wrong and no BE runs, or the agent costs too much. Onsets are looked into at once all the same.
const SLOW_TICK: Duration = Duration::from_millis(250);
/// A guardian holds the journal for a moment when it looks after a dead agent's limits.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(1);

/// What the agent was told on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub policy: PathBuf,
    pub cgroup_root: PathBuf,
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    pub shadow: bool,
    /// Write down what is seen and decided.
    pub record: Option<PathBuf>,
    /// Start a guardian that takes this process for hung when it begins no tick for so long. `None`: somebody else does.
    pub watchdog: Option<Duration>,
    /// The node of a cluster that this is; `None`: there is no cluster.
    pub node: Option<Place>,
    /// Use the wake-up probes although the kernel may offer better.
    pub force_wakeups: bool,
}

/// Runs until SIGTERM or SIGINT, and leaves every limit as its owner had set it.
///
/// # Errors
/// What keeps the agent from starting; everything later is logged and counted.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let mut agent = Agent::start(options)?;
        agent.run().await
    })
}

/// Restores what a former agent left behind, without starting one.
///
/// # Errors
/// Where the journal cannot be read, or a value not be restored.
pub fn restore(cgroup_root: &Path, state_dir: &Path) -> Result<()> {
    let mounts = Mounts::below(cgroup_root)?;
    open_journal(state_dir, &mounts)?;
    Ok(())
}

/// The journal, after what it held of a former agent was restored.
fn open_journal(state_dir: &Path, mounts: &Mounts) -> Result<Journal> {
    let mut journal = Journal::open_within(state_dir, JOURNAL_PATIENCE)?;
    let restored = journal.restore(mounts)?;
    if restored.written > 0 {
        tracing::info!(limits = restored.written, "restored what an earlier agent had left behind");
    }
    let mut errors = restored.errors.into_iter();
    errors
        .next()
        .map_or(Ok(journal), |err| Err(err).context("a limit of an earlier agent could not be restored"))
}

struct Agent {
    policy: Policy,
    groups: Places<Group>,
    online: CpuList,
    tree: Tree,
    probes: Probes,
    onsets: AsyncFd<Onsets>,
    log: EbpfLogger<&'static dyn log::Log>,
    meter: Meter,
    memory: MemoryMeter,
    lessons: Lessons,
    cost: CostMeter,
    shedder: Shedder,
    steal: StealMeter,
    governor: Governor,
    actuator: Actuator,
    cluster: Option<Citizen>,
    lease: Lease,
    // After the actuator, so that it is ended when everything was restored.
    guardian: Option<Guardian>,
    recorder: Option<Recorder>,
    options: Options,
    shared: Shared,
    started: Instant,
    snapshot: Snapshot,
    plan: Plan,
    early: EarlyLooks,
    report_at: Duration,
    reported_at: Duration,
    /// Decisions since the ledger was brought up to date.
    changes: Vec<NewPlan>,
    /// Groups that came, changed or went since then.
    roster: Vec<(GroupId, Option<Group>)>,
    /// How long directories were there before they were counted, not reported yet.
    joins: Vec<Duration>,
    complain_at: Duration,
    counts: Counts,
}

/// What happened since the ledger was brought up to date.
#[derive(Default)]
struct Counts {
    ticks: u64,
    early_ticks: u64,
    writes: u64,
    write_errors: u64,
    foreign_writes: u64,
    revocations: u64,
}

impl Agent {
    async fn run(&mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (mut due, mut next_tick) = (Duration::ZERO, Duration::ZERO);
        let mut onset = None;
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                ready = self.onsets.readable_mut() => {
                    let mut ready = ready.context("the ring of onsets broke")?;
                    while let Some(told) = ready.get_inner_mut().take() {
                        onset.get_or_insert(told);
                    }
                    ready.clear_ready();
                    if let Some(early) = self.early.next() {
                        next_tick = next_tick.min(early.max(self.started.elapsed()));
                    }
                }
                () = tokio::time::sleep_until((self.started + next_tick).into()) => {
                    if let Err(err) = self.actuator.check_journal() {
                        self.actuator.finish();
                        return Err(err.into());
                    }
                    self.tick(onset.take(), next_tick < due);
                    let now = self.snapshot.taken_at;
                    let tick = self.tick_length();
                    due = self.plan.again_at.map_or(now + tick, |at| at.clamp(now, now + tick));
                    next_tick = due;
                }
            }
        }
        let released = self.actuator.finish();
        self.lessons.save();
        tracing::info!(limits_restored = released.writes, "ended");
        if let Some(err) = released.errors.into_iter().next() {
            return Err(err).context("a limit could not be restored; try `enforcer restore`");
        }
        // Otherwise it goes on trying, and ends when it is done.
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
        Ok(())
    }

    /// Half the time after which the guardian takes the agent for hung, at most.
    fn tick_length(&self) -> Duration {
        let is_calm = self.plan.restraints.is_empty()
            && matches!(self.plan.reason, Reason::Met | Reason::NoBe { .. } | Reason::Shadow { .. });
        let has_time = !self.meter.be_runs() || self.shedder.level() >= Level::Looks;
        if !is_calm || !has_time {
            return TICK;
        }
        let longest = self.options.watchdog.map_or(SLOW_TICK, |watchdog| watchdog / 2);
        SLOW_TICK.min(longest).max(TICK)
    }

    /// `onset`: the first one told since the last tick. `is_early`: it made the loop look now and not later.
    fn tick(&mut self, onset: Option<Onset>, is_early: bool) {
        let now = self.started.elapsed();
        self.renew_lease();
        if let Some(cluster) = &mut self.cluster {
            let changes = cluster.follow(now);
            self.follow_pods(now, changes);
        }
        self.follow_cgroups(now, is_early);
        let steal = self.steal.read(now);
        let elapsed = now.saturating_sub(self.snapshot.taken_at);
        self.meter.snapshot(now, steal, &mut self.snapshot);
        self.memory.fill(&mut self.snapshot);
        if let Some(cluster) = &mut self.cluster {
            cluster.tick(&mut self.snapshot, elapsed);
            let (gone, new) = cluster.standing(&self.meter, self.tree.mounts());
            self.actuator.stand(&gone, new);
        }
        let is_decision = self.decide();
        self.act(now);
        if is_decision && let (Some(change), Some(onset)) = (self.changes.last_mut(), onset) {
            change.reaction = Some(Reaction { onset_at: onset.at, in_force_at: clock::monotonic() });
        }
        self.early.looked(now, is_early, is_decision);
        self.counts.early_ticks += u64::from(is_early);
        self.log.flush();
        self.counts.ticks += 1;
        if now >= self.report_at {
            self.report(now);
        }
    }

    fn renew_lease(&mut self) {
        match self.lease.renew() {
            Ok(Standing::Kept) => {}
            Ok(Standing::Revoked) => {
                tracing::warn!("no tick for too long: the guardian took the limits off; starting over");
                self.counts.revocations += 1;
                // A write of ours may have come after the guardian's.
                let released = self.actuator.release_all();
                self.counts.writes += released.writes;
            }
            Err(err) => tracing::error!(%err, "the guardian may take this agent for dead"),
        }
    }

    /// Whether there is something new.
    fn decide(&mut self) -> bool {
        let plan = self.governor.decide(&self.snapshot);
        if plan.reason.label() != self.plan.reason.label() {
            let sentence = plan.reason.sentence(|group| &self.groups[group].name);
            tracing::info!(reason = plan.reason.label(), "{sentence}");
        }
        // The windows of a trial are not decisions of their own.
        let is_decision = plan.reason.label() != self.plan.reason.label()
            || (plan.restraints != self.plan.restraints && !matches!(plan.reason, Reason::Trial { .. }));
        if is_decision {
            let before = self.plan.restraints.clone();
            let (at, plan) = (self.snapshot.taken_at, plan.clone());
            self.changes.push(NewPlan { at, before, plan, reaction: None });
        }
        if *plan != self.plan {
            self.plan.clone_from(plan);
        }
        if let Err(insane) = check::clear_if_insane(&mut self.plan, &self.groups) {
            tracing::error!(%insane, "BUG: the plan is not carried out; please report this");
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.tick(&self.snapshot, &self.plan);
        }
        is_decision
    }

    fn act(&mut self, now: Duration) {
        let mounts = self.tree.mounts();
        let targets = targets::of(&self.plan, &self.meter, &self.memory, mounts, &self.online);
        let applied = self.actuator.apply(now, &targets);
        self.counts.writes += applied.writes;
        self.counts.foreign_writes += applied.foreign;
        for err in applied.errors {
            if self.counts.write_errors == 0 {
                tracing::error!("{err}");
            }
            self.counts.write_errors += 1;
        }
    }
}

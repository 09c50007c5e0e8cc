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
mod specs;
mod steal;
mod targets;
mod usage;

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use enforcer_ebpf::layout::{FIRST_CULPRIT, FIRST_SLOT, FIRST_VICTIM};
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
    cgroup::{
        cpu_list::CpuList,
        hierarchy::{Layout, Mounts},
        tree::{Change, Directory, Tree},
    },
    clock,
    cluster::link::Place,
    decision::{
        check,
        governor::{Governor, Mode},
        plan::{Plan, Reason},
        shed::{Level, Shedder},
    },
    guardian::Guardian,
    kernel::{
        onsets::{Onset, Onsets},
        probes::{Identity, Loaded, Probes, possible_cpus},
        support::{Sizes, Support},
    },
    model::{GroupId, Snapshot},
    places::Places,
    policy::{self, Class, Group, Policy},
    record::{Header, Recorder},
    report::{
        history::{NewPlan, Reaction},
        ledger::Ledger,
        serve::{Shared, serve},
    },
};

/// How often the agent looks at the node.
const TICK: Duration = Duration::from_millis(100);
/// How often while nothing is wrong and no BE runs, or the agent costs too much. Onsets are looked into at once all the same.
const SLOW_TICK: Duration = Duration::from_millis(250);
/// How often the ledger is brought up to date.
const REPORT: Duration = Duration::from_secs(1);
/// About the same thing.
const COMPLAINTS: Duration = Duration::from_mins(1);
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
    let mut journal = Journal::open_within(state_dir, JOURNAL_PATIENCE)?;
    restore_leftovers(&mut journal, &mounts)
}

fn restore_leftovers(journal: &mut Journal, mounts: &Mounts) -> Result<()> {
    let restored = journal.restore(mounts)?;
    if restored.written > 0 {
        tracing::info!(limits = restored.written, "restored what an earlier agent had left behind");
    }
    let mut errors = restored.errors.into_iter();
    errors.next().map_or(Ok(()), |err| Err(err).context("a limit of an earlier agent could not be restored"))
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
    fn start(options: &Options) -> Result<Self> {
        let cpus = possible_cpus()?;
        let online = online_cpus()?;
        let online_count = u32::try_from(online.len()).expect("CPU numbers fit 32 bits");
        let policy_text = policy::read(&options.policy)?;
        let policy = Policy::parse(&policy_text, &options.policy, online_count)?;
        let mounts = Mounts::below(&options.cgroup_root)?;
        let mut journal = Journal::open_within(&options.state_dir, JOURNAL_PATIENCE)?;
        restore_leftovers(&mut journal, &mounts)?;

        anyhow::ensure!(
            options.node.is_some() || !policy.groups.is_empty(),
            "{} names no groups, and without --node NAME there are no pods either",
            options.policy.display()
        );

        let support = Support::of_running_kernel(options.force_wakeups)?;
        let sizes = sizes(&policy, cpus, options.node.is_some());
        let Loaded { probes, counters, slots, onsets, log } =
            Probes::load(&support, identity(&mounts), sizes)?;
        if let Some(missing) = &probes.request_latency_missing {
            tracing::warn!("request latency is not measured: {missing}");
        }
        let ledger = Ledger::new(
            policy.overhead.ratio(),
            options.shadow,
            sizes,
            support.wait_source,
            probes.request_latency_missing.clone(),
            &probes.memory,
        );
        let shared = Shared::new(ledger);
        let address = serve(options.listen, shared.clone()).with_context(|| {
            format!("cannot listen on {}: choose another address with --listen", options.listen)
        })?;

        let patterns = policy.groups.iter().enumerate().flat_map(|(index, group)| {
            group.patterns.iter().map(move |pattern| (GroupId(index), pattern.clone()))
        });
        let header = Header::new(online_count, options.shadow, policy_text);
        let recorder = options.record.as_deref().map(|path| Recorder::start(path, &header)).transpose()?;
        let cluster = options.node.clone().map(|place| {
            let (settings, first) = (policy.kubernetes.clone(), policy.groups.len());
            Citizen::start(place, settings, online_count, first, &options.state_dir, options.shadow)
        });
        let cluster = cluster.transpose()?;
        let lease = Lease::open(&options.state_dir)?;
        let guardian = start_guardian(options)?;
        let tree = Tree::new(mounts.clone(), patterns.collect(), cluster.is_some());
        let mode = if options.shadow { Mode::Shadow } else { Mode::Enforce };
        tracing::info!(
            %address, groups = policy.groups.len(), layout = ?mounts.layout(), wait_source = ?support.wait_source,
            shadow = options.shadow, kernel_bytes = sizes.memory_bytes(), "probes attached"
        );
        let serves = probes.request_latency_missing.is_none();
        let mut agent = Self {
            governor: Governor::new(mode, policy.cpus),
            meter: Meter::new(counters, slots, serves, &probes.memory),
            memory: MemoryMeter::new(&probes.memory),
            lessons: Lessons::of(&options.state_dir),
            groups: Places::default(),
            cost: CostMeter::new(online.len()),
            shedder: Shedder::new(policy.overhead.ratio()),
            steal: StealMeter::default(),
            actuator: Actuator::new(mounts, journal, options.shadow),
            cluster,
            recorder,
            lease,
            guardian,
            options: options.clone(),
            online,
            policy,
            tree,
            probes,
            onsets: onsets.watch().context("the ring of onsets cannot be watched")?,
            log,
            shared,
            started: Instant::now(),
            snapshot: Snapshot::default(),
            plan: Plan::default(),
            early: EarlyLooks::new(),
            report_at: Duration::ZERO,
            reported_at: Duration::ZERO,
            changes: Vec::new(),
            roster: Vec::new(),
            joins: Vec::new(),
            complain_at: Duration::ZERO,
            counts: Counts::default(),
        };
        for (place, group) in agent.policy.groups.clone().into_iter().enumerate() {
            agent.join(GroupId(place), group);
        }
        Ok(agent)
    }

    /// A group came, or what holds for it has changed. One of the policy is in the recording's header.
    fn join(&mut self, id: GroupId, group: Group) {
        let now = self.snapshot.taken_at;
        if let (Some(recorder), true) = (&mut self.recorder, id.0 >= self.policy.groups.len()) {
            recorder.join(id, &group);
        }
        let measured = self.meter.join(id, &group, now);
        // Where one finds no room, many do not.
        if let Err(unmeasured) = measured
            && now >= self.complain_at
        {
            self.complain_at = now + COMPLAINTS;
            tracing::warn!(group = group.name, "requests and waits are not measured: {unmeasured}");
        }
        self.governor.join(id, &group);
        self.memory.join(id, &group);
        for lesson in self.lessons.join(id, &group) {
            self.meter.set_objective(lesson);
        }
        self.roster.push((id, Some(group.clone())));
        self.groups.put(id, group);
    }

    /// A group went. Its directories belong to nobody any more.
    fn leave(&mut self, id: GroupId, now: Duration) {
        if let Some(recorder) = &mut self.recorder {
            recorder.leave(id);
        }
        self.governor.leave(id);
        self.memory.leave(id);
        self.lessons.leave(id);
        self.meter.leave(id, now);
        self.groups.take(id);
        self.roster.push((id, None));
    }

    /// Pods come and go as the API server says.
    fn follow_pods(&mut self, now: Duration, changes: Vec<pods::Change>) {
        for change in changes {
            match change {
                pods::Change::Join { id, group, cgroup_uid } => {
                    let is_known = self.groups.get(id).is_some();
                    self.join(id, group);
                    if !is_known {
                        let changes = self.tree.assign(&cgroup_uid, id);
                        self.take_in(changes, now);
                    }
                }
                pods::Change::Leave { id, cgroup_uid } => {
                    let changes = self.tree.unassign(&cgroup_uid, id);
                    self.take_in(changes, now);
                    self.leave(id, now);
                }
            }
        }
    }

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

    /// Keeps the agent's own cost within its budget.
    fn shed(&mut self, now: Duration, elapsed: Duration) {
        let Some(cost) = self.cost.look(now, &self.probes) else { return };
        let before = self.shedder.level();
        let Some(level) = self.shedder.observe(now, elapsed, cost) else { return };
        self.cost.sample_again();
        let directories = self.meter.shed(level, &mut self.probes, self.tree.mounts());
        let cost = format!("{:.3}%", self.shedder.average().unwrap_or(cost.all) * 100.0);
        let (budget, words) = (self.policy.overhead, level.words());
        let why = if level > before { "the agent costs too much" } else { "the agent costs less again" };
        tracing::warn!(cost, %budget, directories, "{why}: {words}");
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

    /// Whether the agent's own guardian runs; one that ended is replaced. `None`: it has none.
    fn watch_guardian(&mut self) -> Option<bool> {
        if self.guardian.as_mut()?.is_running() {
            return Some(true);
        }
        tracing::warn!("the guardian ended; starting another");
        match start_guardian(&self.options) {
            Ok(new) => self.guardian = new,
            Err(err) => {
                tracing::error!("{err:#}");
                return Some(false);
            }
        }
        Some(true)
    }

    fn follow_cgroups(&mut self, now: Duration, haste: bool) {
        let changes = self.tree.poll(now, haste);
        self.take_in(changes, now);
    }

    /// Directories came and went.
    fn take_in(&mut self, changes: Vec<Change>, now: Duration) {
        let mut regrouped: Vec<GroupId> = Vec::new();
        let mut may_have_room = self.meter.has_uncounted() && now >= self.report_at;
        for change in changes {
            let (Change::Appeared(directory) | Change::Vanished(directory)) = &change;
            if directory.is_top && !regrouped.contains(&directory.group) {
                regrouped.push(directory.group);
            }
            if let Some(cluster) = &mut self.cluster {
                cluster.touch(directory.group);
            }
            match change {
                Change::Appeared(directory) => self.count(directory, now),
                Change::Vanished(directory) => {
                    self.meter.vanished(&directory, now);
                    may_have_room |= self.meter.has_uncounted();
                }
            }
        }
        if may_have_room {
            for directory in self.meter.take_uncounted() {
                self.count(directory, now);
            }
        }
        for group in regrouped {
            let Some(policy) = self.groups.get(group) else { continue };
            if policy.class == Class::BE {
                let levers = levers::of(group, &self.meter, self.tree.mounts());
                self.meter.set_levers(group, levers.and(policy.levers));
            }
        }
    }

    fn count(&mut self, directory: Directory, now: Duration) {
        let path = self.tree.mounts().point(directory.hierarchy).join(&directory.path);
        // Those that were there before the agent were not waited for.
        self.joins.extend(age(&path).filter(|age| *age < self.started.elapsed()));
        self.meter.appeared(directory, now, &mut self.probes, &path);
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
        let targets = targets::of(&self.plan, &self.meter, self.tree.mounts(), &self.online);
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

    fn report(&mut self, now: Duration) {
        let guarded = self.watch_guardian();
        self.meter.look_at_throttling(now, self.tree.mounts());
        let elapsed = now.saturating_sub(self.reported_at);
        self.memory.look(now, &self.meter, self.tree.mounts());
        let (cost, shedder) = (&self.cost, &self.shedder);
        let (meter, memory, plan, counts) = (&mut self.meter, &mut self.memory, &self.plan, &mut self.counts);
        let lessons = &mut self.lessons;
        let (changes, roster) = (&self.changes, &self.roster);
        let (steal, unwatched) = (self.snapshot.steal, self.tree.unwatched());
        let told = self.cluster.as_ref().map(Citizen::told);
        let done = self.shared.try_update(|ledger| {
            for (id, group) in roster {
                match group {
                    Some(group) => ledger.join(*id, group),
                    None => ledger.leave(*id),
                }
            }
            meter.report(ledger, elapsed, lessons);
            memory.report(ledger);
            ledger.plan(plan, elapsed);
            ledger.decisions(changes, now);
            ledger.advance(now);
            ledger.ticks += counts.ticks;
            ledger.early_ticks += counts.early_ticks;
            self.joins.iter().for_each(|join| ledger.joins.record(*join));
            ledger.writes += counts.writes;
            ledger.write_errors += counts.write_errors;
            ledger.foreign_writes += counts.foreign_writes;
            ledger.revocations += counts.revocations;
            ledger.guarded = guarded;
            ledger.steal = steal;
            ledger.overhead = shedder.average();
            ledger.shed = shedder.level();
            for (program, time) in cost.probe_times() {
                ledger.note_probe_time(program, time);
            }
            ledger.unwatched = unwatched;
            ledger.cluster = told;
            ledger.ready = true;
        });
        if done {
            *counts = Counts::default();
            self.roster.clear();
            self.joins.clear();
            if let Some(cluster) = &mut self.cluster {
                let mounts = self.tree.mounts();
                let waiting = cluster.report(now, &self.plan, &self.changes, &self.memory, mounts);
                self.follow_pods(now, waiting);
            }
            self.changes.clear();
            self.reported_at = now;
            self.report_at = now + REPORT;
            self.lessons.save_now_and_then(now);
            self.meter.sample_requests(&mut self.probes, self.tree.mounts());
            self.shed(now, elapsed);
        }
    }
}

/// CPUs that run now; one that comes later is not lent to BE.
fn online_cpus() -> Result<CpuList> {
    const FILE: &str = "/sys/devices/system/cpu/online";
    Ok(std::fs::read_to_string(FILE).context(FILE)?.parse()?)
}

/// How long ago a cgroup directory was made: its change time, until something is made in it.
fn age(directory: &Path) -> Option<Duration> {
    let metadata = std::fs::metadata(directory).ok()?;
    let since_epoch =
        Duration::new(metadata.ctime().try_into().ok()?, metadata.ctime_nsec().try_into().ok()?);
    (UNIX_EPOCH + since_epoch).elapsed().ok()
}

/// Where there is anything to guard.
fn start_guardian(options: &Options) -> Result<Option<Guardian>> {
    let watchdog = options.watchdog.filter(|_| !options.shadow);
    watchdog.map(|watchdog| Guardian::start(&options.cgroup_root, &options.state_dir, watchdog)).transpose()
}

/// On hybrid hosts a directory of either hierarchy may be the one that the policy names.
const fn identity(mounts: &Mounts) -> Identity {
    match mounts.layout() {
        Layout::V2 => Identity::V2,
        Layout::Hybrid => Identity::Both,
        Layout::V1 => Identity::V1Cpu,
    }
}

/// `pods`: there will be some beside the groups of the policy.
fn sizes(policy: &Policy, cpus: u32, pods: bool) -> Sizes {
    let count = |class| policy.groups.iter().filter(|group| group.class == class).count();
    let number = |n: usize| u32::try_from(n).expect("the policy limits groups");
    let of_pods = |limit| if pods { limit } else { 0 };
    Sizes {
        cpus,
        slots: FIRST_SLOT + policy.cgroups_max,
        victims: FIRST_VICTIM + number(count(Class::LS)) + of_pods(policy.kubernetes.victims_max),
        culprits: FIRST_CULPRIT + number(policy.groups.len()) + of_pods(policy.kubernetes.pods_max),
    }
}

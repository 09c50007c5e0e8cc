//! The figures that are reported: totals since the start for machines, a recent window for people.
//!
//! The loop adds to it once a second; the HTTP server reads it. Neither waits for the other for long.

use std::{collections::BTreeMap, time::Duration};

use enforcer_ebpf::layout::{
    CULPRIT_IDLE, CULPRIT_OTHER, CULPRIT_UNATTRIBUTED, Drop, FIRST_CULPRIT, StallCause,
};

use super::history::{History, NewPlan};
use crate::{
    cluster::lend::Lent,
    decision::{
        cause::Cause,
        plan::{Plan, Reason},
        shed::Level,
    },
    kernel::{
        counters::MemoryTotals,
        probes::MemoryProbes,
        support::{Sizes, WaitSource},
    },
    model::{GroupId, Levers, Restraint, Signal},
    places::Places,
    policy::{Class, Group, Slo},
    signal::{budget::Budget, histogram::Counts, in_flight::InFlight, tally::Tally},
    units::MilliCores,
};

/// Stands for the columns of groups that went.
const ENDED: u32 = u32::MAX;
/// Windows for people cover one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(5);

/// Durations of one kind: all since the start, and the recent ones.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    pub counts: Counts,
    pub sum: Duration,
    /// Slower than the objective, of all.
    pub tally: Tally,
    recent: [Recent; 2],
}

#[derive(Clone, Debug, Default)]
struct Recent {
    counts: Counts,
    tally: Tally,
}

impl Durations {
    /// Adds what came in lately.
    pub fn add(&mut self, counts: &Counts, sum: Duration, tally: Tally) {
        self.counts.add(counts);
        self.sum += sum;
        self.tally += tally;
        self.recent[0].counts.add(counts);
        self.recent[0].tally += tally;
    }

    /// Adds one.
    pub fn record(&mut self, duration: Duration) {
        let mut counts = Counts::default();
        counts.record(duration);
        self.add(&counts, duration, Tally { total: 1, slow: 0 });
    }

    /// Counts of the recent window.
    pub fn recent_counts(&self) -> Counts {
        let mut counts = self.recent[0].counts.clone();
        counts.add(&self.recent[1].counts);
        counts
    }

    /// Slow ones of the recent window.
    pub fn recent_tally(&self) -> Tally {
        let mut tally = self.recent[0].tally;
        tally += self.recent[1].tally;
        tally
    }

    fn turn(&mut self) {
        self.recent.swap(0, 1);
        let Recent { counts, tally } = &mut self.recent[0];
        counts.clear();
        *tally = Tally::default();
    }
}

/// CPU time or blame: all since the start, and the recent one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    total_ns: u64,
    recent_ns: [u64; 2],
}

impl Time {
    pub const fn add_ns(&mut self, ns: u64) {
        self.total_ns += ns;
        self.recent_ns[0] += ns;
    }

    pub fn add(&mut self, time: Duration) {
        self.add_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub const fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }

    pub const fn recent(&self) -> Duration {
        Duration::from_nanos(self.recent_ns[0] + self.recent_ns[1])
    }

    const fn turn(&mut self) {
        self.recent_ns = [0, self.recent_ns[0]];
    }
}

/// Requests without an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// At the last look.
    pub in_flight: InFlight,
    /// Their connection ended first, since the start.
    pub unanswered: u64,
    /// Waited for so long that they no longer count as in flight, since the start.
    pub written_off: u64,
}

/// Stalls of one cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    pub count: u64,
    pub time: Time,
}

/// A group's memory, and what want of it did to the group. `None`: unknown.
#[derive(Clone, Debug, Default)]
pub struct MemoryLedger {
    /// By [`StallCause`]; `None`: not measured here.
    pub stalls: [Option<Stalls>; StallCause::COUNT],
    /// In use when it was looked at last.
    pub bytes: Option<u64>,
    /// Taken from it by the kernel, and of that what was needed again, since the agent started.
    pub reclaimed_bytes: Option<u64>,
    pub refaulted_bytes: Option<u64>,
    /// Time in which some task stalled, by PSI.
    pub psi_some: Option<Duration>,
    pub oom_kills: Option<u64>,
    /// Counted by the probe, not by the cgroup's files.
    pub oom_kills_by_probe: bool,
    /// Time stalled, by the group that is likely to use what this one lacks; `None` for unknown.
    pub blame: BTreeMap<Option<GroupId>, Time>,
}

impl MemoryLedger {
    fn new(probes: &MemoryProbes) -> Self {
        let oom_kills_by_probe = probes.oom_kills_missing.is_none();
        Self {
            stalls: StallCause::ALL.map(|cause| probes.has(cause).then(Stalls::default)),
            oom_kills: oom_kills_by_probe.then_some(0),
            oom_kills_by_probe,
            ..Self::default()
        }
    }

    /// Adds what the probes counted lately.
    pub fn add(&mut self, new: &MemoryTotals) {
        for (stalls, new) in self.stalls.iter_mut().zip(&new.stalls) {
            if let Some(stalls) = stalls {
                stalls.count += new.count;
                stalls.time.add_ns(new.ns);
            }
        }
        if self.oom_kills_by_probe {
            self.oom_kills = self.oom_kills.map(|kills| kills + new.oom_kills);
        }
    }

    /// Time stalled for one cause; zero where that is not measured.
    pub fn stalled(&self, cause: StallCause) -> Duration {
        self.stalls[cause as usize].map_or(Duration::ZERO, |stalls| stalls.time.total())
    }

    /// Time stalled for whatever cause is measured, by `time` of each; `None`: none is.
    pub fn stalled_by(&self, time: fn(&Time) -> Duration) -> Option<Duration> {
        let measured = || self.stalls.iter().flatten();
        measured().next()?;
        Some(measured().map(|stalls| time(&stalls.time)).sum())
    }

    fn turn(&mut self) {
        self.stalls.iter_mut().flatten().for_each(|stalls| stalls.time.turn());
        self.blame.values_mut().for_each(Time::turn);
    }
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupLedger {
    pub name: String,
    pub class: Class,
    pub slo: Slo,
    pub floor: MilliCores,
    /// Directories that are counted, and matching ones that could not be given a slot.
    pub cgroups: usize,
    pub cgroups_uncounted: usize,
    pub cpu: Time,
    pub switches: u64,
    pub waits: Durations,
    /// `None`: not measured, see [`Ledger::request_latency_missing`]; or BE.
    pub requests: Option<Durations>,
    /// One of so many requests is looked at; it stands for the others in all that is reported but those in flight.
    pub one_in: u32,
    /// Requests without an answer; `None` likewise.
    pub waiting: Option<Waiting>,
    /// The same while it is not measured for a time: unknown, and not zero.
    requests_put_by: Option<Durations>,
    /// What was counted of each objective, once there was something: a node may have a thousand groups.
    pub budgets: BTreeMap<Signal, Budget>,
    /// Time waited, by culprit column; only those that ever made it wait.
    pub blame: BTreeMap<u32, Time>,
    pub memory: MemoryLedger,
    /// What enforcer holds the whole group back with.
    pub restraint: Option<Restraint>,
    /// Time under a restraint of enforcer's.
    pub restrained: Duration,
    /// What it can be held back with.
    pub levers: Levers,
    /// Had its floor only for so long that it is better off on another node.
    pub evict: bool,
    /// Why it misses an objective, if it does.
    pub cause: Option<Cause>,
}

impl GroupLedger {
    /// Notes whether requests are left unmeasured for a time.
    pub fn put_requests_by(&mut self, put_by: bool) {
        let (from, to) = if put_by {
            (&mut self.requests, &mut self.requests_put_by)
        } else {
            (&mut self.requests_put_by, &mut self.requests)
        };
        if from.is_some() {
            *to = from.take();
        }
    }

    /// Notes what was counted of a signal until `now`. Without an objective nothing is promised and nothing used up.
    pub fn spend(&mut self, now: Duration, signal: Signal, tally: Tally) {
        if self.slo.promise(signal).is_some() {
            self.budgets.entry(signal).or_default().add(now, tally);
        }
    }
}

/// Everything that is reported.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub groups: Places<GroupLedger>,
    /// CPU time of BE groups that went.
    pub be_gone: Duration,
    /// What a group's memory is at first: what is measured here, and nothing yet.
    memory: MemoryLedger,
    pub reason: Reason,
    /// Time for which each kind of reason held, in the order of [`Reason::LABELS`].
    pub reason_time: [Duration; Reason::LABELS.len()],
    pub shadow: bool,
    /// CPU time that BE would have lost but for shadow mode, in core seconds.
    pub shadow_cost: f64,
    pub since_start: Duration,
    pub ticks: u64,
    /// Of these, asked for by an onset.
    pub early_ticks: u64,
    pub writes: u64,
    pub write_errors: u64,
    pub foreign_writes: u64,
    /// Times that the guardian took the agent's limits off because it began no tick.
    pub revocations: u64,
    /// Whether the agent's own guardian runs. `None`: it has none.
    pub guarded: Option<bool>,
    pub drops: [u64; Drop::ALL.len()],
    pub slots_used: usize,
    pub slots_capacity: u32,
    pub unwatched: usize,
    /// The agent as part of a cluster; `None`: there is none.
    pub cluster: Option<ClusterLedger>,
    pub steal: Option<f64>,
    /// Time without BE, from which objectives are learned.
    pub quiet: Duration,
    pub wait_source: WaitSource,
    pub sizes: Sizes,
    pub request_latency_missing: Option<String>,
    /// Time that each program ran, estimated; empty: not known.
    pub probe_times: BTreeMap<String, Duration>,
    /// What the agent and its probes cost, of the node's CPU time, and may cost.
    pub overhead: Option<f64>,
    pub overhead_budget: f64,
    /// What is left out because it costs too much.
    pub shed: Level,
    /// The first snapshot was taken and the loop runs.
    pub ready: bool,
    pub history: History,
    /// From an onset to the restraint in force.
    pub reactions: Durations,
    /// From the making of a directory to its being counted for its group.
    pub joins: Durations,
    turned_at: Duration,
    window_began: [Duration; 2],
}

/// The agent as part of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterLedger {
    /// Pods that are told apart.
    pub pods: usize,
    /// `None`: not worked out yet.
    pub lent: Option<Lent>,
    /// Pods that were asked to go.
    pub evictions: u64,
}

impl Ledger {
    /// Nothing counted yet, and no groups. `overhead_budget`: of the node's CPU time.
    pub fn new(
        overhead_budget: f64,
        shadow: bool,
        sizes: Sizes,
        wait_source: WaitSource,
        request_latency_missing: Option<String>,
        memory: &MemoryProbes,
    ) -> Self {
        Self {
            groups: Places::default(),
            be_gone: Duration::ZERO,
            memory: MemoryLedger::new(memory),
            reason: Reason::Met,
            reason_time: [Duration::ZERO; Reason::LABELS.len()],
            shadow,
            shadow_cost: 0.0,
            since_start: Duration::ZERO,
            ticks: 0,
            early_ticks: 0,
            writes: 0,
            write_errors: 0,
            foreign_writes: 0,
            revocations: 0,
            guarded: None,
            drops: [0; Drop::ALL.len()],
            slots_used: 0,
            slots_capacity: 0,
            unwatched: 0,
            cluster: None,
            steal: None,
            quiet: Duration::ZERO,
            wait_source,
            sizes,
            request_latency_missing,
            probe_times: BTreeMap::new(),
            overhead: None,
            overhead_budget,
            shed: Level::Nothing,
            ready: false,
            history: History::default(),
            reactions: Durations::default(),
            joins: Durations::default(),
            turned_at: Duration::ZERO,
            window_began: [Duration::ZERO; 2],
        }
    }

    /// A group came, or what holds for it has changed.
    pub fn join(&mut self, id: GroupId, group: &Group) {
        if let Some(known) = self.groups.get_mut(id) {
            (known.slo, known.floor) = (group.slo, group.floor);
            return;
        }
        let serves = group.is_victim() && self.request_latency_missing.is_none();
        self.groups.put(
            id,
            GroupLedger {
                name: group.name.clone(),
                class: group.class,
                slo: group.slo,
                floor: group.floor,
                cgroups: 0,
                cgroups_uncounted: 0,
                cpu: Time::default(),
                switches: 0,
                waits: Durations::default(),
                requests: serves.then(Durations::default),
                one_in: 1,
                waiting: None,
                budgets: BTreeMap::new(),
                requests_put_by: None,
                blame: BTreeMap::new(),
                memory: self.memory.clone(),
                restraint: None,
                restrained: Duration::ZERO,
                levers: Levers::default(),
                evict: false,
                cause: None,
            },
        );
    }

    /// A group went. What others were made to wait for it is no longer told by name.
    pub fn leave(&mut self, id: GroupId) {
        let Some(gone) = self.groups.take(id) else { return };
        if gone.class == Class::BE {
            self.be_gone += gone.cpu.total();
        }
        let column = FIRST_CULPRIT + u32::try_from(id.0).expect("places are few");
        for group in self.groups.values_mut() {
            if let Some(time) = group.blame.remove(&column) {
                group.blame.entry(ENDED).or_default().add(time.total());
            }
            if let Some(time) = group.memory.blame.remove(&Some(id)) {
                group.memory.blame.entry(None).or_default().add(time.total());
            }
        }
    }

    /// A group's name.
    pub fn name(&self, id: GroupId) -> &str {
        self.groups.get(id).map_or("(ended)", |group| &group.name)
    }

    /// Notes the plan in force since the last call.
    pub fn plan(&mut self, plan: &Plan, elapsed: Duration) {
        self.reason = plan.reason;
        let label = plan.reason.label();
        let place =
            Reason::LABELS.iter().position(|known| *known == label).expect("BUG: LABELS lacks a label");
        self.reason_time[place] += elapsed;
        if let Reason::Shadow { takes_cores, .. } = plan.reason {
            self.shadow_cost += takes_cores * elapsed.as_secs_f64();
        }
        for (id, group) in self.groups.iter_mut() {
            group.evict = plan.evict.contains(&id);
            group.cause = plan
                .verdicts
                .iter()
                .find(|verdict| verdict.objective.victim == id)
                .map(|verdict| verdict.cause);
            group.restraint = plan.restraints.get(&id).copied();
            if group.restraint.is_some() {
                group.restrained += elapsed;
            }
        }
    }

    /// Notes changes of plan, and what came of earlier ones.
    pub fn decisions(&mut self, changes: &[NewPlan], now: Duration) {
        // Out of the ledger for a moment, because it looks at it.
        let mut history = std::mem::take(&mut self.history);
        for change in changes {
            history.note(change, self);
            // What was only noted took no writing.
            let acted = change.before != change.plan.restraints;
            if let Some(reaction) = change.reaction.filter(|_| acted) {
                self.reactions.record(reaction.took());
            }
        }
        history.judge(now, self);
        self.history = history;
    }

    /// Notes how long a probe ran since the start.
    pub fn note_probe_time(&mut self, program: &str, time: Duration) {
        match self.probe_times.get_mut(program) {
            Some(known) => *known = time,
            None => _ = self.probe_times.insert(program.to_owned(), time),
        }
    }

    /// Moves the recent window on.
    pub fn advance(&mut self, now: Duration) {
        self.since_start = now;
        if now < self.turned_at + HALF_WINDOW {
            return;
        }
        self.turned_at = now;
        self.window_began = [now, self.window_began[0]];
        for group in self.groups.values_mut() {
            group.cpu.turn();
            group.waits.turn();
            if let Some(requests) = &mut group.requests {
                requests.turn();
            }
            group.blame.values_mut().for_each(Time::turn);
            group.memory.turn();
        }
    }

    /// How long the recent window is.
    pub fn window(&self) -> Duration {
        self.since_start.saturating_sub(self.window_began[1])
    }

    /// The name of a likely user of memory.
    pub fn memory_user(&self, group: Option<GroupId>) -> &str {
        group.map_or("(unknown)", |group| self.name(group))
    }

    /// The name of a culprit column. Groups cannot have these names: they contain no parentheses.
    pub fn culprit(&self, column: u32) -> &str {
        match column {
            CULPRIT_OTHER => "(other)",
            CULPRIT_IDLE => "(idle)",
            CULPRIT_UNATTRIBUTED => "(unattributed)",
            ENDED => "(ended)",
            _ => self.name(GroupId((column - FIRST_CULPRIT) as usize)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        decision::plan::Objective,
        policy::{EXAMPLE, Policy},
        report::{
            metrics::{self, Process},
            status::Status,
        },
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn ledger() -> Ledger {
        let policy = Policy::parse(EXAMPLE, Path::new("policy.yaml"), 4).unwrap();
        let sizes = Sizes { cpus: 4, slots: 16, victims: 2, culprits: 5 };
        let mut ledger = Ledger::new(
            policy.overhead.ratio(),
            true,
            sizes,
            WaitSource::SchedInfo,
            None,
            &MemoryProbes::default(),
        );
        for (place, group) in policy.groups.iter().enumerate() {
            ledger.join(GroupId(place), group);
        }
        ledger
    }

    fn metrics(ledger: &Ledger) -> String {
        metrics::render(ledger, &Process::default())
    }

    #[test]
    fn shadow_mode_adds_up_what_be_would_have_lost() {
        let mut ledger = ledger();
        let objective = Objective { victim: GroupId(0), signal: Signal::RequestLatency };
        let would = |takes_cores| Plan {
            reason: Reason::Shadow { objective, cause: Cause::BeCpu, takes_cores },
            ..Plan::default()
        };
        ledger.plan(&would(1.5), SECOND * 2);
        ledger.plan(&Plan::default(), SECOND * 100);
        ledger.plan(&would(0.5), SECOND);
        let text = metrics(&ledger);
        assert!(text.contains("\nenforcer_shadow_be_core_seconds_total 3.5\n"), "{text}");
        assert_eq!(Status::of(&ledger, None).shadow_be_core_seconds, Some(3.5));
        // Who is not in shadow mode takes it indeed: nothing to be told.
        ledger.shadow = false;
        assert!(!metrics(&ledger).contains("enforcer_shadow_be_core_seconds_total"));
        assert_eq!(Status::of(&ledger, None).shadow_be_core_seconds, None);
    }

    #[test]
    fn the_error_budget_of_what_was_counted_is_told_and_no_other() {
        let mut ledger = ledger();
        ledger.groups[GroupId(0)].spend(SECOND, Signal::RequestLatency, Tally { total: 1_000, slow: 15 });
        // Nothing was promised to BE.
        ledger.groups[GroupId(1)].spend(SECOND, Signal::RunQueueWait, Tally { total: 1_000, slow: 15 });
        ledger.advance(SECOND);
        let text = metrics(&ledger);
        let found: Vec<_> = text.lines().filter(|line| line.starts_with("enforcer_error_budget")).collect();
        assert_eq!(
            found,
            ["1h", "24h"].map(|window| format!(
                "enforcer_error_budget_remaining_ratio{{group=\"web\",signal=\"request_latency\",window=\"{window}\"}} -0.5"
            ))
        );
        let status = Status::of(&ledger, None);
        let requests = status.groups[0].requests.as_ref().unwrap();
        assert_eq!((requests.budget_1h, requests.budget_24h), (Some(-0.5), Some(-0.5)));
        assert_eq!(status.groups[0].waits.budget_1h, None);
    }
}

//! The figures that are reported: totals since the start for machines, a recent window for people.
//!
//! The loop adds to it once a second; the HTTP server reads it. Neither waits for the other for long.

mod group;
mod recent;

use std::{collections::BTreeMap, time::Duration};

use enforcer_ebpf::layout::{CULPRIT_IDLE, CULPRIT_OTHER, CULPRIT_UNATTRIBUTED, Drop, FIRST_CULPRIT};

pub use self::{
    group::{GroupLedger, MemoryLedger, Stalls, Waiting},
    recent::{Durations, Time},
};
use super::history::{History, NewPlan};
use crate::{
    cluster::lend::Lent,
    decision::{
        plan::{Plan, Reason},
        shed::Level,
    },
    kernel::{
        probes::MemoryProbes,
        support::{Sizes, WaitSource},
    },
    model::GroupId,
    places::Places,
    policy::{Class, Group},
};

/// Stands for the columns of groups that went.
pub const ENDED: u32 = u32::MAX;
/// Windows for people cover one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(5);

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
    /// CPU time of guardians; `None`: none told.
    pub guardian_time: Option<Duration>,
    /// What agent, guardian and probes cost, of the node's CPU time, and may cost.
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
            guardian_time: None,
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
        self.groups.put(id, GroupLedger::new(group, serves, self.memory.clone()));
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
            group.turn();
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
        decision::{cause::Cause, plan::Objective},
        model::Signal,
        policy::{EXAMPLE, Policy},
        report::{metrics, status::Status},
        signal::tally::Tally,
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
        metrics::render(ledger, None)
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
    fn what_waits_is_not_told_while_it_is_not_measured() {
        let mut ledger = ledger();
        let web = &mut ledger.groups[GroupId(0)];
        web.waiting = Some(Waiting { unanswered: 3, ..Waiting::default() });
        assert!(metrics(&ledger).contains("enforcer_requests_in_flight"));
        ledger.groups[GroupId(0)].put_requests_by(true);
        assert!(!metrics(&ledger).contains("enforcer_requests_in_flight"));
        ledger.groups[GroupId(0)].put_requests_by(false);
        assert!(!metrics(&ledger).contains("enforcer_requests_in_flight"), "until it is measured again");
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

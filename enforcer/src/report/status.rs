//! The ledger for people: what `/v1/status` serves and `enforcer top` shows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ledger::{Durations, GroupLedger, Ledger, Time, Waiting},
    metrics::Process,
};
use crate::{
    decision::{cause::Cause, shed::Level},
    model::{Lever, Restraint, Signal},
    policy::{Class, Slo},
    signal::budget::Window,
    units::Share,
};

/// One look at the agent. All times in seconds, all CPU in cores, over the recent window where not said otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Nothing is written.
    pub shadow: bool,
    /// What BE would have lost at most; `None`: this is not shadow mode.
    pub shadow_be_core_seconds: Option<f64>,
    /// Since the agent started.
    pub uptime_seconds: f64,
    /// How far the recent window reaches back.
    pub window_seconds: f64,
    /// Label of the reason for the plan in force, and the reason in words.
    pub reason: String,
    pub explanation: String,
    pub groups: Vec<GroupStatus>,
    pub limit_writes: u64,
    pub limit_write_errors: u64,
    /// Steal between the last two looks; `None`: unknown.
    pub steal_ratio: Option<f64>,
    /// What the agent itself has used, `None`: unknown.
    pub agent_cpu_seconds: Option<f64>,
    pub agent_resident_bytes: Option<u64>,
    /// Of the node's CPU time, its probes included as far as known; `None`: unknown.
    pub overhead_ratio: Option<f64>,
    /// What is left out because that is too much, in words.
    pub left_out: Option<String>,
}

/// One group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    pub name: String,
    pub class: Class,
    pub cgroups: usize,
    pub cpu_cores: f64,
    /// CPU time since the agent started.
    pub cpu_seconds_total: f64,
    /// `None`: not measured.
    pub requests: Option<DurationsStatus>,
    /// Requests that wait for an answer now, how long the oldest has, and how many never got one since the agent started.
    /// `None`: not measured.
    pub in_flight: Option<InFlightStatus>,
    pub waits: DurationsStatus,
    /// Who ran while this group waited, worst first: name, and waiting time per time.
    pub blame: Vec<(String, f64)>,
    /// Waiting time since the agent started, by culprit.
    pub blame_seconds_total: Vec<(String, f64)>,
    pub memory: MemoryStatus,
    /// What enforcer holds the group back with now.
    pub restraint: Option<Restraint>,
    /// What it could be held back with.
    pub levers: Vec<Lever>,
    /// Why it misses an objective, if it does.
    pub cause: Option<Cause>,
    /// Had its floor only for so long that it is better off on another node.
    pub evict: bool,
    /// The CPU that its quota leaves it.
    pub limit_cores: Option<f64>,
    pub floor_cores: Option<f64>,
}

/// Requests without an answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct InFlightStatus {
    pub requests: u64,
    /// Those that have waited for longer than the objective.
    pub overdue: u64,
    /// `None`: none waits.
    pub oldest_seconds: Option<f64>,
    /// Their connection ended first.
    pub unanswered_total: u64,
}

/// A group's memory, and what want of it does to the group. `None`: unknown or not measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// In use when it was looked at last.
    pub bytes: Option<u64>,
    /// Time that tasks stalled, per time.
    pub stalled_ratio: Option<f64>,
    pub objective_ratio: Option<f64>,
    /// Where the objective is from; `None`: nothing is promised.
    pub objective_is: Option<Origin>,
    /// Parts of the error budget that are left; `None`: no objective, or nothing measured in that time.
    pub budget_1h: Option<f64>,
    pub budget_24h: Option<f64>,
    /// Since the agent started.
    pub stalled_seconds_total: Option<f64>,
    pub psi_some_seconds_total: Option<f64>,
    pub oom_kills_total: Option<u64>,
    /// Who is likely to use what it lacks, worst first: name, and time stalled per time.
    pub blame: Vec<(String, f64)>,
}

/// Durations of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DurationsStatus {
    pub rate_hz: f64,
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
    pub objective_seconds: Option<f64>,
    /// Where the objective is from; `None`: nothing is promised.
    pub objective_is: Option<Origin>,
    /// Share slower than the objective.
    pub slow_ratio: Option<f64>,
    /// Parts of the error budget that are left; `None`: no objective, or nothing counted in that time.
    pub budget_1h: Option<f64>,
    pub budget_24h: Option<f64>,
    /// Since the agent started.
    pub total: u64,
    pub slow_total: u64,
    pub p50_seconds_total: Option<f64>,
    pub p99_seconds_total: Option<f64>,
}

/// Where an objective is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The policy.
    Policy,
    /// To be learned, and not known yet.
    Learning,
    Learned,
}

impl Origin {
    fn of(slo: Slo, signal: Signal) -> Option<Self> {
        match (slo.auto(signal), slo.promise(signal)) {
            (None, None) => None,
            (None, Some(_)) => Some(Self::Policy),
            (Some(_), None) => Some(Self::Learning),
            (Some(_), Some(_)) => Some(Self::Learned),
        }
    }
}

impl Status {
    /// The ledger as it stands.
    pub fn of(ledger: &Ledger, process: Option<&Process>) -> Self {
        let window = ledger.window().as_secs_f64().max(1e-9);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shadow: ledger.shadow,
            shadow_be_core_seconds: ledger.shadow.then_some(ledger.shadow_cost),
            uptime_seconds: ledger.since_start.as_secs_f64(),
            window_seconds: window,
            reason: ledger.reason.label().to_owned(),
            explanation: ledger.reason.sentence(|group| ledger.name(group)),
            groups: ledger.groups.values().map(|group| GroupStatus::of(group, ledger, window)).collect(),
            limit_writes: ledger.writes,
            limit_write_errors: ledger.write_errors,
            steal_ratio: ledger.steal,
            agent_cpu_seconds: process.map(|process| process.cpu.as_secs_f64()),
            agent_resident_bytes: process.map(|process| process.resident_bytes),
            overhead_ratio: ledger.overhead,
            left_out: (ledger.shed != Level::Nothing).then(|| ledger.shed.words().to_owned()),
        }
    }
}

impl GroupStatus {
    fn of(group: &GroupLedger, ledger: &Ledger, window: f64) -> Self {
        let named = |column: u32, time: Duration| (ledger.culprit(column).to_owned(), time.as_secs_f64());
        let now = ledger.since_start;
        let durations =
            |durations: &Durations, signal| DurationsStatus::of(durations, signal, group, now, window);
        let recent = group.blame.iter().map(|(&column, time)| named(column, time.recent()));
        let mut blame: Vec<(String, f64)> = recent
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(name, seconds)| (name, seconds / window))
            .collect();
        blame.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self {
            name: group.name.clone(),
            class: group.class,
            cgroups: group.cgroups,
            cpu_cores: group.cpu.recent().as_secs_f64() / window,
            cpu_seconds_total: group.cpu.total().as_secs_f64(),
            requests: group.requests.as_ref().map(|requests| durations(requests, Signal::RequestLatency)),
            in_flight: group.waiting.as_ref().map(InFlightStatus::of),
            waits: durations(&group.waits, Signal::RunQueueWait),
            blame,
            blame_seconds_total: group
                .blame
                .iter()
                .map(|(&column, time)| named(column, time.total()))
                .collect(),
            memory: MemoryStatus::of(group, ledger, window),
            restraint: group.restraint,
            levers: Lever::ALL.into_iter().filter(|&lever| group.levers.has(lever)).collect(),
            cause: group.cause,
            evict: group.evict,
            limit_cores: group.restraint.and_then(|restraint| restraint.cores()),
            floor_cores: (group.class == Class::BE).then(|| group.floor.cores()),
        }
    }
}

impl InFlightStatus {
    fn of(waiting: &Waiting) -> Self {
        Self {
            requests: waiting.in_flight.requests,
            overdue: waiting.in_flight.overdue,
            oldest_seconds: waiting.in_flight.oldest.map(|oldest| oldest.as_secs_f64()),
            unanswered_total: waiting.unanswered,
        }
    }
}

impl MemoryStatus {
    fn of(group: &GroupLedger, ledger: &Ledger, window: f64) -> Self {
        let memory = &group.memory;
        let recent = memory.blame.iter().map(|(&user, time)| (user, time.recent().as_secs_f64()));
        let mut blame: Vec<(String, f64)> = recent
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(user, seconds)| (ledger.memory_user(user).to_owned(), seconds / window))
            .collect();
        blame.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self {
            bytes: memory.bytes,
            stalled_ratio: memory.stalled_by(Time::recent).map(|time| time.as_secs_f64() / window),
            objective_ratio: group.slo.memory_stall.map(Share::ratio),
            objective_is: Origin::of(group.slo, Signal::MemoryStall),
            budget_1h: group.budget_left(Signal::MemoryStall, ledger.since_start, Window::Hour),
            budget_24h: group.budget_left(Signal::MemoryStall, ledger.since_start, Window::Day),
            stalled_seconds_total: memory.stalled_by(Time::total).map(|time| time.as_secs_f64()),
            psi_some_seconds_total: memory.psi_some.map(|time| time.as_secs_f64()),
            oom_kills_total: memory.oom_kills,
            blame,
        }
    }
}

impl DurationsStatus {
    fn of(durations: &Durations, signal: Signal, group: &GroupLedger, now: Duration, window: f64) -> Self {
        let objective = group.slo.threshold(signal);
        let budget = |window| group.budget_left(signal, now, window);
        let recent = durations.recent_counts();
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        Self {
            rate_hz: recent.total() as f64 / window,
            p50_seconds: seconds(recent.quantile(0.5)),
            p99_seconds: seconds(recent.quantile(0.99)),
            objective_seconds: seconds(objective),
            objective_is: Origin::of(group.slo, signal),
            slow_ratio: objective.and_then(|_| durations.recent_tally().share()),
            budget_1h: budget(Window::Hour),
            budget_24h: budget(Window::Day),
            total: durations.counts.total(),
            slow_total: durations.tally.slow,
            p50_seconds_total: seconds(durations.counts.quantile(0.5)),
            p99_seconds_total: seconds(durations.counts.quantile(0.99)),
        }
    }
}

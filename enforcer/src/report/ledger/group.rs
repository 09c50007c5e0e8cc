//! What is told of one group.

use std::{collections::BTreeMap, time::Duration};

use enforcer_ebpf::layout::StallCause;

use super::recent::{Durations, Time};
use crate::{
    decision::cause::Cause,
    kernel::{counters::MemoryTotals, probes::MemoryProbes},
    model::{GroupId, Levers, Restraint, Signal},
    policy::{Class, Group, Slo},
    signal::{
        budget::{Budget, Window},
        in_flight::InFlight,
        tally::Tally,
    },
    units::MilliCores,
};

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
    pub(super) fn new(probes: &MemoryProbes) -> Self {
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

    pub(super) fn turn(&mut self) {
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
    /// `None`: not measured, see [`super::Ledger::request_latency_missing`]; or BE.
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
    /// Nothing counted yet. `serves`: its requests are measured; `memory`: what is measured of it.
    pub(super) fn new(group: &Group, serves: bool, memory: MemoryLedger) -> Self {
        Self {
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
            requests_put_by: None,
            budgets: BTreeMap::new(),
            blame: BTreeMap::new(),
            memory,
            restraint: None,
            restrained: Duration::ZERO,
            levers: Levers::default(),
            evict: false,
            cause: None,
        }
    }

    /// Moves the recent window on.
    pub(super) fn turn(&mut self) {
        self.cpu.turn();
        self.waits.turn();
        if let Some(requests) = &mut self.requests {
            requests.turn();
        }
        self.blame.values_mut().for_each(Time::turn);
        self.memory.turn();
    }

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
        if put_by {
            self.waiting = None;
        }
    }

    /// Notes what was counted of a signal until `now`. Without an objective nothing is promised and nothing used up.
    pub fn spend(&mut self, now: Duration, signal: Signal, tally: Tally) {
        if self.slo.promise(signal).is_some() {
            self.budgets.entry(signal).or_default().add(now, tally);
        }
    }

    /// The part of an error budget that is left: see [`Budget::remaining`].
    pub fn budget_left(&self, signal: Signal, now: Duration, window: Window) -> Option<f64> {
        self.budgets.get(&signal)?.remaining(now, window)
    }
}

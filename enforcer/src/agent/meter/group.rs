//! A group's place in the probes' tables, and what was read last.

use std::{collections::HashMap, time::Duration};

use enforcer_ebpf::layout::{NO_VICTIM, Objective};

use super::counted::LastHistogram;
use crate::{
    cgroup::{hierarchy::Hierarchy, tree::Directory},
    clock,
    decision::shed::Level,
    kernel::counters::{Counters, MemoryTotals, RequestTotals, WaitTotals},
    model::{Levers, Signal},
    policy::{self, Class, Slo},
    signal::{
        answers::{Answers, Totals},
        histogram::Counts,
        in_flight::{Ages, Look},
        memory::StallCounter,
        sampling::Sampling,
        tally::Tally,
    },
};

/// A group's place in the probes' tables, and what was read last.
#[derive(Debug)]
pub struct Group {
    pub class: Class,
    pub slo: Slo,
    pub victim: u32,
    pub culprit: u32,
    /// Of its directories.
    pub slots: Vec<u32>,
    /// Requests are measured.
    pub serves: bool,
    /// Requests that began before this, in the clock of the probes, do not count.
    pub counts_from_ns: u64,
    /// `None`: no request was ever in flight.
    pub ages: Option<Box<Ages>>,
    pub answers: Answers,
    pub look: Look,
    pub requests_reported: RequestTotals,
    pub request_histogram: LastHistogram,
    /// Per culprit column, as far as it is known to be more than zero.
    pub blame_ns: HashMap<u32, u64>,
    /// Since the last report.
    pub waits: WaitTotals,
    pub wait_counts: Counts,
    /// Had slow ones until a moment ago: who ran meanwhile is told.
    pub hot_until: Duration,
    /// Blame when it was told last, or at the last report.
    pub asked_ns: HashMap<u32, u64>,
    pub throttling: Throttling,
    pub levers: Levers,
    pub rates: [Rate; Signal::ALL.len()],
    pub sampling: Sampling,
    /// Programs are attached that look for sparse requests only.
    pub is_sparse: bool,
    /// Since the last report.
    pub memory: MemoryTotals,
    /// Where something is promised and measured.
    pub stalls: Option<StallCounter>,
    /// In this tick.
    pub stalled_ns: u64,
    /// What that came to, in the units of the objective, since the last report.
    pub stall_tally: Tally,
}

/// What the group's own quota took.
#[derive(Debug, Default)]
pub struct Throttling {
    pub looked: Option<(Duration, Duration)>,
    pub share: Option<f64>,
}

/// How often a signal is heard.
#[derive(Debug, Default)]
pub struct Rate {
    pub heard: u64,
    pub hz: f64,
}

impl Group {
    /// One that has no directory yet.
    pub fn new(policy: &policy::Group, victim: u32, culprit: u32) -> Self {
        Self {
            class: policy.class,
            slo: policy.slo,
            victim,
            culprit,
            slots: Vec::new(),
            serves: false,
            counts_from_ns: 0,
            ages: None,
            answers: Answers::default(),
            look: Look::default(),
            requests_reported: RequestTotals::default(),
            request_histogram: LastHistogram::default(),
            blame_ns: HashMap::new(),
            waits: WaitTotals::default(),
            wait_counts: Counts::default(),
            hot_until: Duration::ZERO,
            asked_ns: HashMap::new(),
            throttling: Throttling::default(),
            levers: Levers::default(),
            rates: Default::default(),
            sampling: Sampling::ALL,
            is_sparse: false,
            memory: MemoryTotals::default(),
            stalls: None,
            stalled_ns: 0,
            stall_tally: Tally::default(),
        }
    }

    /// Whether it has a row of its own in the probes' tables.
    pub const fn is_victim(&self) -> bool {
        self.victim != NO_VICTIM
    }

    /// Tells the probes what counts as slow, and which requests count.
    pub fn tell_objective(&self, counters: &Counters) {
        let ns = |objective: Option<Duration>| {
            objective.map_or(u64::MAX, |objective| u64::try_from(objective.as_nanos()).unwrap_or(u64::MAX))
        };
        let objective = Objective {
            wait_ns: ns(self.slo.run_queue_wait_p99),
            latency_ns: ns(self.slo.request_latency_p99),
            sampled: self.sampling.mask(),
            counts_from_ns: self.counts_from_ns,
        };
        counters.set_objective(self.victim, objective);
    }

    /// Begins anew after a time in which nobody looked: what was in flight then may have ended unseen.
    pub fn forget_requests(&mut self, counters: &Counters) {
        counters.clear_requests(self.victim);
        self.counts_from_ns = clock::monotonic_ns();
        self.tell_objective(counters);
        self.ages = None;
        self.answers = Answers::default();
        self.look = Look::default();
        self.requests_reported = RequestTotals::default();
        self.request_histogram = LastHistogram::default();
    }

    /// What the group's requests say since the last look, and what is in flight.
    pub fn look_at_requests(&mut self, counters: &Counters) -> Tally {
        // In this order, so that no age is overstated, and what ends meanwhile is missed for once rather than counted
        // twice.
        let totals = counters.requests(self.victim);
        let now_ns = clock::monotonic_ns();
        self.look = if totals.any_in_flight() || self.ages.as_ref().is_some_and(|ages| ages.is_busy()) {
            let ages = self.ages.get_or_insert_default();
            ages.look(&counters.in_flight(self.victim), now_ns, self.slo.request_latency_p99)
        } else {
            self.ages.as_ref().map_or_else(Look::default, |ages| ages.look_at_nothing())
        };
        let RequestTotals { served, slow, unanswered_slow, .. } = totals;
        self.answers.observe(Totals { served, slow, unanswered_slow }, &self.look, now_ns)
    }

    /// Whether requests to a directory of its are answered there.
    pub fn answers_in(&self, directory: &Directory) -> bool {
        self.is_victim() && directory.hierarchy == Hierarchy::V2 && directory.is_top
    }

    /// Whether its requests are measured although so much is left out.
    pub fn measures_requests(&self, shed: Level) -> bool {
        let is_promised =
            || self.slo.request_latency_p99.is_some() || self.slo.auto(Signal::RequestLatency).is_some();
        match shed {
            Level::Nothing | Level::Looks => true,
            Level::UnpromisedRequests => is_promised(),
            Level::Requests => false,
        }
    }
}

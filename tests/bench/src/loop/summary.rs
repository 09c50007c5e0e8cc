//! What a policy did in a scenario, over all rounds. Pure.

use enforcer_rig::spread::Spread;
use serde::Serialize;

use super::{
    policy::Policy,
    record::{AgentAccount, Cell, Record},
    scenario::Scenario,
};

/// Medians and ranges.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub policy: Policy,
    pub rounds: usize,
    /// Over windows of ten seconds.
    pub p99_us: Spread,
    pub windows: usize,
    /// Windows whose p99 meets the SLO.
    pub windows_met: usize,
    /// Of all requests.
    pub slow_share: f64,
    /// Over rounds.
    pub slow_share_by_round: Spread,
    /// Share of the windows that meet the SLO, over rounds.
    pub windows_met_by_round: Spread,
    /// Units per second, over rounds.
    pub be_work: Spread,
    pub be_cores: Spread,
    /// In enforcer's cells: the agent's own cost.
    pub agent_cores: Option<Spread>,
    /// In enforcer's cells: rounds in which it held BE back at any time.
    pub held_back: Option<usize>,
}

impl Summary {
    /// `None` without cells.
    pub fn of(policy: Policy, cells: &[&Cell], slo_us: f64) -> Option<Self> {
        if cells.iter().all(|cell| cell.outcome.windows.is_empty()) {
            return None;
        }
        let windows = || cells.iter().flat_map(|cell| &cell.outcome.windows);
        let over_rounds = |value: &dyn Fn(&Cell) -> f64| Spread::of(cells.iter().map(|&cell| value(cell)));
        let met = |cell: &Cell| cell.outcome.windows.iter().filter(|window| window.p99_us <= slo_us).count();
        let requests: u64 = cells.iter().map(|cell| cell.outcome.requests).sum();
        let slow: u64 = cells.iter().map(|cell| cell.outcome.slow).sum();
        let agents: Option<Vec<&AgentAccount>> =
            cells.iter().map(|cell| cell.outcome.agent.as_ref()).collect();
        Some(Self {
            policy,
            rounds: cells.len(),
            p99_us: Spread::of(windows().map(|window| window.p99_us)),
            windows: windows().count(),
            windows_met: cells.iter().map(|&cell| met(cell)).sum(),
            slow_share: slow as f64 / requests.max(1) as f64,
            slow_share_by_round: over_rounds(&|cell| {
                cell.outcome.slow as f64 / cell.outcome.requests.max(1) as f64
            }),
            windows_met_by_round: over_rounds(&|cell| {
                met(cell) as f64 / cell.outcome.windows.len().max(1) as f64
            }),
            be_work: over_rounds(&|cell| cell.outcome.be_work),
            be_cores: over_rounds(&|cell| cell.outcome.be_cores),
            agent_cores: agents.as_ref().map(|agents| Spread::of(agents.iter().map(|agent| agent.cores))),
            held_back: agents.map(|agents| agents.iter().filter(|agent| agent.held_back).count()),
        })
    }

    /// Whether the median p99 does.
    pub fn meets(&self, slo_us: f64) -> bool {
        self.p99_us.median <= slo_us
    }
}

/// Everything about a scenario that verdicts and reports need.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    pub scenario: Scenario,
    pub slo_us: f64,
    pub summaries: Vec<Summary>,
    record: &'a Record,
}

impl<'a> Comparison<'a> {
    /// `None` where nothing has been measured beside BE.
    pub fn of(scenario: Scenario, record: &'a Record) -> Option<Self> {
        let slo_us = *record.slo_us.get(&scenario.load.peak_percent())?;
        let mut policies: Vec<Policy> = record
            .cells
            .iter()
            .filter(|cell| cell.key.load == scenario.load && cell.key.be == Some(scenario.be))
            .map(|cell| cell.key.policy)
            .collect();
        policies.sort_unstable();
        policies.dedup();
        if policies.is_empty() {
            return None;
        }
        policies.insert(0, Policy::Alone);
        let summary = |policy| {
            let cells: Vec<&Cell> = Self::cells_in(record, scenario, policy).collect();
            Summary::of(policy, &cells, slo_us)
        };
        Some(Self { scenario, slo_us, summaries: policies.into_iter().filter_map(summary).collect(), record })
    }

    pub fn of_policy(&self, policy: Policy) -> Option<&Summary> {
        self.summaries.iter().find(|summary| summary.policy == policy)
    }

    /// Where LS misses the SLO even alone, something else disturbs it, and policies cannot be told apart.
    pub fn is_disturbed(&self) -> bool {
        self.of_policy(Policy::Alone).is_some_and(|alone| !alone.meets(self.slo_us))
    }

    pub fn cells(&self, policy: Policy) -> impl Iterator<Item = &'a Cell> {
        Self::cells_in(self.record, self.scenario, policy)
    }

    /// The best static setting: of those that meet the SLO, the one under which BE does most. Known afterwards only.
    pub fn oracle(&self) -> Option<&Summary> {
        self.summaries
            .iter()
            .filter(|summary| summary.policy.is_static() && summary.meets(self.slo_us))
            .max_by(|a, b| a.be_work.median.total_cmp(&b.be_work.median))
    }

    /// LS alone is the same beside every antagonist.
    fn cells_in(record: &'a Record, scenario: Scenario, policy: Policy) -> impl Iterator<Item = &'a Cell> {
        let be = (policy != Policy::Alone).then_some(scenario.be);
        record.rounds(be, scenario.load, policy)
    }
}

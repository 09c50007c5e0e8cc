//! Everything that was measured, and its medians.

use serde_json::{Map, Value, json};

use super::{
    be::Be,
    stage::{Measured, Objective},
};
use crate::demo::{
    phase::Phase,
    phases::{Phases, Run},
};

impl Run for Measured {
    fn p99_us(&self) -> f64 {
        self.client.p99_us
    }

    fn be_cores(&self) -> f64 {
        self.be_cores
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Results {
    pub kubernetes: String,
    pub ls: &'static str,
    pub be: Be,
    pub rate: f64,
    pub rounds: u32,
    pub seconds: u32,
    pub objective: Objective,
    pub phases: Phases<Measured>,
    /// What the agent told of its squeezes, in Kubernetes' events.
    pub events: Vec<String>,
}

impl Results {
    /// What kubectl said in the first phase with BE and agent.
    pub fn excerpt(&self) -> Option<&str> {
        self.phases[Phase::Enforced].first()?.excerpt.as_deref()
    }

    /// Everything but the samples.
    pub fn to_json(&self) -> Value {
        let gap = self.phases.gap();
        let phases: Map<String, Value> =
            Phase::ALL.iter().map(|&phase| (phase.name().to_owned(), self.phase(phase))).collect();
        json!({
            "kubernetes": self.kubernetes,
            "ls": self.ls,
            "be": self.be.name(),
            "rate_hz": self.rate,
            "rounds": self.rounds,
            "seconds_per_phase": self.seconds,
            "objective_in_kernel_us": self.objective.in_kernel.as_micros(),
            "objective_at_client_us": self.objective.at_client.as_micros(),
            "phases": phases,
            "p99_gap_closed_ratio": gap.closed(),
            "p99_gap_stands_out": gap.stands_out(),
            "be_cpu_kept_ratio": self.phases.be_cpu_kept(),
            "events": self.events,
            "kubectl": self.excerpt(),
        })
    }

    fn phase(&self, phase: Phase) -> Value {
        let spread = |value: fn(&Measured) -> f64| self.phases.spread(phase, value);
        let runs = &self.phases[phase];
        json!({
            "ls_p50_us": spread(|run| run.client.p50_us),
            "ls_p99_us": spread(|run| run.client.p99_us),
            "ls_slow_ratio": spread(Measured::slow_ratio),
            "node_cores": spread(|run| run.node_cores),
            "be_cores": spread(|run| run.be_cores),
            "lent_cores": spread(|run| run.lent.cores),
            "lent_bytes": spread(|run| run.lent.bytes),
            "held_back_ratio": runs.iter().map(|run| run.held_back_ratio).collect::<Vec<_>>(),
            "explanations": runs.iter().map(|run| &run.explanation).collect::<Vec<_>>(),
        })
    }
}

impl Measured {
    /// Requests slower than the objective at the client, of all.
    pub fn slow_ratio(&self) -> f64 {
        self.client.slow as f64 / self.client.requests.max(1) as f64
    }
}

//! Everything that was measured, and its medians.

use enforcer_rig::spread::Spread;
use serde_json::{Map, Value, json};

use super::{
    be::Be,
    stage::{Measured, Objective},
};
use crate::demo::{gap::Gap, phase::Phase};

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
    /// Per phase, one measurement per round.
    pub phases: [Vec<Measured>; 3],
    /// What the agent told of its squeezes, in Kubernetes' events.
    pub events: Vec<String>,
}

impl Results {
    pub fn spread(&self, phase: Phase, value: impl Fn(&Measured) -> f64) -> Spread {
        Spread::of(self.phases[phase as usize].iter().map(value))
    }

    /// How much worse LS fares beside BE, by the client's p99.
    pub fn gap(&self) -> Gap {
        Gap::of(Phase::ALL.map(|phase| self.spread(phase, |run| run.client.p99_us)))
    }

    /// CPU time that BE has with the agent, of what it has without.
    pub fn be_cpu_kept(&self) -> f64 {
        let cores = |phase| self.spread(phase, |run| run.be_cores).median;
        cores(Phase::Enforced) / cores(Phase::Stock)
    }

    /// What kubectl said in the first phase with BE and agent.
    pub fn excerpt(&self) -> Option<&str> {
        self.phases[Phase::Enforced as usize].first()?.excerpt.as_deref()
    }

    /// Everything but the samples.
    pub fn to_json(&self) -> Value {
        let gap = self.gap();
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
            "be_cpu_kept_ratio": self.be_cpu_kept(),
            "events": self.events,
            "kubectl": self.excerpt(),
        })
    }

    fn phase(&self, phase: Phase) -> Value {
        let spread = |value: fn(&Measured) -> f64| self.spread(phase, value);
        let runs = &self.phases[phase as usize];
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

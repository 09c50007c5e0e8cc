//! Everything that was measured, and its medians.

use enforcer_rig::spread::Spread;
use serde_json::{Map, Value, json};

use super::{
    phase::Phase,
    phases::{Phases, Run},
    scene::{Be, Measured, Scene},
};

/// Of one antagonist: per phase, one measurement per round.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub be: Be,
    pub phases: Phases<Measured>,
}

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
    pub comparisons: Vec<Comparison>,
    pub rounds: usize,
    pub ls: &'static str,
    pub rate: f64,
    pub seconds: u32,
    pub floor_cores: f64,
}

impl Results {
    pub fn new(scene: &Scene, rounds: usize) -> Self {
        Self {
            comparisons: Vec::new(),
            rounds,
            ls: scene.ls.name(),
            rate: scene.rate,
            seconds: scene.seconds,
            floor_cores: f64::from(scene.floor_milli_cores) / 1000.0,
        }
    }

    pub fn add(&mut self, be: Be, phase: Phase, measured: Measured) {
        let place = self.comparisons.iter().position(|comparison| comparison.be == be);
        let place = place.unwrap_or_else(|| {
            self.comparisons.push(Comparison { be, phases: Phases::new() });
            self.comparisons.len() - 1
        });
        self.comparisons[place].phases[phase].push(measured);
    }

    /// The figures, under the keys that scripts rely on: `antagonists.<name>.<phase>.{ls_p50_us,ls_p99_us,be_cores,be_work}`.
    pub fn to_json(&self) -> Value {
        let antagonists: Map<String, Value> = self
            .comparisons
            .iter()
            .map(|comparison| (comparison.be.name().to_owned(), comparison.to_json()))
            .collect();
        json!({
            "ls": self.ls,
            "rate_hz": self.rate,
            "rounds": self.rounds,
            "seconds_per_phase": self.seconds,
            "be_floor_cores": self.floor_cores,
            "antagonists": antagonists,
        })
    }
}

impl Comparison {
    fn to_json(&self) -> Value {
        let gap = self.phases.gap();
        let mut phases: Map<String, Value> =
            Phase::ALL.iter().map(|&phase| (phase.name().to_owned(), self.phase(phase))).collect();
        phases.insert("p99_gap_closed_ratio".into(), json!(gap.closed()));
        phases.insert("p99_gap_stands_out".into(), json!(gap.stands_out()));
        phases.insert("be_cpu_kept_ratio".into(), json!(self.phases.be_cpu_kept()));
        phases.insert("be_work_unit".into(), json!(self.be.unit()));
        Value::Object(phases)
    }

    fn phase(&self, phase: Phase) -> Value {
        let spread = |value: fn(&Measured) -> f64| {
            let Spread { median, min, max } = self.phases.spread(phase, value);
            (median, json!([min, max]))
        };
        let (p50, p50_range) = spread(|run| run.client.p50_us);
        let (p99, p99_range) = spread(|run| run.client.p99_us);
        let (cores, cores_range) = spread(|run| run.be_cores);
        let runs = &self.phases[phase];
        let work = runs
            .iter()
            .map(|run| run.be_work)
            .collect::<Option<Vec<f64>>>()
            .map(|work| Spread::of(work).median);
        let in_kernel =
            runs.iter().map(|run| run.in_kernel_p99.map(|p99| p99.as_secs_f64() * 1e6)).collect::<Vec<_>>();
        let slo = runs.iter().map(|run| run.slo.map(|slo| slo.as_secs_f64() * 1e6)).collect::<Vec<_>>();
        json!({
            "ls_p50_us": p50, "ls_p50_us_range": p50_range,
            "ls_p99_us": p99, "ls_p99_us_range": p99_range,
            "be_cores": cores, "be_cores_range": cores_range,
            "be_work": if phase == Phase::Alone { Some(0.0) } else { work },
            "be_cores_least_of_10s": runs.iter().map(|run| run.be_cores_min).fold(f64::INFINITY, f64::min),
            "in_kernel_p99_us": in_kernel,
            "slo_us": slo,
            "agent_cores": Spread::of(runs.iter().map(|run| run.agent_cores)).median,
            "agent_resident_bytes": runs.iter().map(|run| run.agent_resident_bytes).max(),
            "explanations": runs.iter().map(|run| &run.explanation).collect::<Vec<_>>(),
        })
    }
}

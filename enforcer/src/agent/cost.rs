//! What the agent itself costs, its guardian included.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    actuation::lease::GuardianCost,
    clock::cpu_time,
    decision::shed::Cost,
    kernel::{
        cost::{RunTime, Statistics},
        probes::{Probes, REQUEST_PROGRAMS},
    },
};

/// A sample is taken this often, and lasts until the next look, a second later: statistics cost something themselves.
const EVERY: Duration = Duration::from_secs(30);

/// Measures the CPU time of agent and guardian at every look, and samples that of the probes.
#[derive(Debug)]
pub struct CostMeter {
    cpus: f64,
    last: Option<(Instant, Duration)>,
    guardians: Guardians,
    sample: Option<Sample>,
    sample_at: Duration,
    /// The kernel keeps no statistics for us; told once.
    is_refused: bool,
    probes: BTreeMap<String, Estimate>,
}

#[derive(Debug)]
struct Sample {
    began: Instant,
    before: Vec<RunTime>,
    // Off when the sample is dropped.
    #[expect(dead_code, reason = "on while held")]
    statistics: Statistics,
}

/// What guardians told of themselves.
#[derive(Debug, Default)]
struct Guardians {
    last: Option<GuardianCost>,
    /// Since the agent's start; `None`: none has told anything since.
    total: Option<Duration>,
}

impl Guardians {
    fn hear(&mut self, told: Option<GuardianCost>) {
        let Some(told) = told else { return };
        // The first word may be that of one that is gone.
        let Some(last) = self.last.replace(told).filter(|last| *last != told) else { return };
        let before = if last.since == told.since { last.cpu } else { Duration::ZERO };
        *self.total.get_or_insert_default() += told.cpu.saturating_sub(before);
    }
}

/// One program.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    /// CPUs' worth of time in the last sample.
    cores: f64,
    total: Duration,
}

impl CostMeter {
    /// For a node with so many CPUs.
    pub fn new(cpus: usize) -> Self {
        Self {
            cpus: cpus as f64,
            last: None,
            guardians: Guardians::default(),
            sample: None,
            sample_at: Duration::ZERO,
            is_refused: false,
            probes: BTreeMap::new(),
        }
    }

    /// The cost since the last look; `None` at the first. `guardian`: what it told last.
    pub fn look(&mut self, now: Duration, probes: &Probes, guardian: Option<GuardianCost>) -> Option<Cost> {
        self.look_at_probes(now, probes);
        self.guardians.hear(guardian);
        let cpu = cpu_time() + self.guardians.total.unwrap_or_default();
        let (at, before) = self.last.replace((Instant::now(), cpu))?;
        let elapsed = at.elapsed();
        let agent = cpu.saturating_sub(before).div_duration_f64(elapsed.max(Duration::from_millis(1)));
        for estimate in self.probes.values_mut() {
            estimate.total += elapsed.mul_f64(estimate.cores);
        }
        let cores = |names: &[&str]| -> f64 {
            let of =
                self.probes.iter().filter(|(name, _)| names.is_empty() || names.contains(&name.as_str()));
            of.map(|(_, estimate)| estimate.cores).sum()
        };
        let is_known = !self.probes.is_empty();
        Some(Cost {
            all: (agent + cores(&[])) / self.cpus,
            requests: is_known.then(|| cores(&REQUEST_PROGRAMS) / self.cpus),
        })
    }

    /// Takes the next sample at once, because other probes are attached now.
    pub const fn sample_again(&mut self) {
        self.sample_at = Duration::ZERO;
    }

    /// Time that each program ran since the agent's start, estimated: what a sample shows is taken to hold until the next.
    pub fn probe_times(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.probes.iter().map(|(name, estimate)| (name.as_str(), estimate.total))
    }

    /// CPU time of guardians since the agent's start; `None`: none told.
    pub const fn guardian_time(&self) -> Option<Duration> {
        self.guardians.total
    }

    fn look_at_probes(&mut self, now: Duration, probes: &Probes) {
        if let Some(Sample { began, before, .. }) = self.sample.take() {
            let elapsed = began.elapsed();
            for RunTime { program, time } in probes.run_times() {
                let earlier = before.iter().find(|earlier| earlier.program == program);
                let ran = time.saturating_sub(earlier.map_or(time, |earlier| earlier.time));
                self.probes.entry(program).or_default().cores = ran.div_duration_f64(elapsed);
            }
        } else if now >= self.sample_at && !self.is_refused {
            self.sample_at = now + EVERY;
            match Statistics::on() {
                Ok(statistics) => {
                    let before = probes.run_times();
                    self.sample = Some(Sample { began: Instant::now(), before, statistics });
                }
                Err(err) => {
                    self.is_refused = true;
                    tracing::info!(
                        "what the probes cost is not known, the kernel keeps no statistics: {err}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guardians_add_up_from_the_agents_start_on() {
        let mut guardians = Guardians::default();
        guardians.hear(None);
        let mut hear = |since, ms| {
            let told = GuardianCost { since: Duration::from_secs(since), cpu: Duration::from_millis(ms) };
            guardians.hear(Some(told));
            guardians.total.map(|total| total.as_millis())
        };
        // An earlier agent's guardian, or one in a container of its own: what it used before is not this agent's cost.
        assert_eq!(hear(1, 500), None);
        assert_eq!(hear(1, 500), None, "that one may be gone");
        assert_eq!(hear(1, 520), Some(20));
        assert_eq!(hear(2, 530), Some(550), "another one");
        assert_eq!(hear(2, 530), Some(550));
        assert_eq!(hear(2, 531), Some(551));
    }
}

//! Which cells are run, in which order.

use std::collections::BTreeSet;

use super::{
    policy::Policy,
    record::{Key, Record},
    scenario::{LsLoad, Scenario},
};

/// All cells of a run.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub scenarios: Vec<Scenario>,
    /// In the order in which they take turns.
    pub policies: Vec<Policy>,
    pub rounds: usize,
}

impl Matrix {
    /// Loads that need an SLO, in percent.
    pub fn slo_percents(&self) -> BTreeSet<u32> {
        self.scenarios.iter().map(|scenario| scenario.load.peak_percent()).collect()
    }

    /// Rounds outermost, policies innermost. LS alone is the same beside every antagonist and is measured once per load.
    fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        for round in 0..self.rounds {
            let mut alone: BTreeSet<LsLoad> = BTreeSet::new();
            for &Scenario { be, load } in &self.scenarios {
                if alone.insert(load) {
                    keys.push(Key { be: None, load, policy: Policy::Alone, round });
                }
                let beside = self.policies.iter().filter(|policy| **policy != Policy::Alone);
                keys.extend(beside.map(|&policy| Key { be: Some(be), load, policy, round }));
            }
        }
        keys
    }

    /// Those that have not been measured.
    pub fn missing(&self, record: &Record) -> Vec<Key> {
        self.keys().into_iter().filter(|&key| !record.has(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use enforcer_rig::antagonist::Antagonist;

    use super::*;

    #[test]
    fn rounds_are_outermost_and_policies_innermost() {
        let scenario = |be| Scenario { be, load: LsLoad::Constant(50) };
        let matrix = Matrix {
            scenarios: vec![scenario(Antagonist::CpuSpin), scenario(Antagonist::ForkStorm)],
            policies: vec![Policy::Stock, Policy::Enforcer],
            rounds: 2,
        };
        let words =
            |key: &Key| format!("{} {} {}", key.round, key.be.map_or("-", Antagonist::name), key.policy);
        let round = |round: usize| {
            ["- alone", "cpu-spin stock", "cpu-spin enforcer", "fork-storm stock", "fork-storm enforcer"]
                .map(|key| format!("{round} {key}"))
        };
        let found: Vec<String> = matrix.keys().iter().map(words).collect();
        assert_eq!(found, [round(0), round(1)].concat());
    }
}

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
    /// In the order in which they take turns, each of them first in its round.
    pub policies: Vec<Policy>,
    pub rounds: usize,
}

impl Matrix {
    /// Loads that need an SLO, in percent.
    pub fn slo_percents(&self) -> BTreeSet<u32> {
        self.scenarios.iter().map(|scenario| scenario.load.peak_percent()).collect()
    }

    /// Rounds outermost, policies innermost. LS alone is the same beside every antagonist and is measured once per load. Each round
    /// begins with another policy, so that none of them always follows on the same one.
    fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut policies: Vec<Policy> =
            self.policies.iter().copied().filter(|policy| *policy != Policy::Alone).collect();
        for round in 0..self.rounds {
            let mut alone: BTreeSet<LsLoad> = BTreeSet::new();
            for &Scenario { be, load } in &self.scenarios {
                if alone.insert(load) {
                    keys.push(Key { be: None, load, policy: Policy::Alone, round });
                }
                keys.extend(policies.iter().map(|&policy| Key { be: Some(be), load, policy, round }));
            }
            if !policies.is_empty() {
                policies.rotate_left(1);
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
    fn rounds_are_outermost_and_policies_take_turns_in_them() {
        let scenario = |be| Scenario { be, load: LsLoad::Constant(50) };
        let matrix = Matrix {
            scenarios: vec![scenario(Antagonist::CpuSpin), scenario(Antagonist::ForkStorm)],
            policies: vec![Policy::Stock, Policy::Enforcer],
            rounds: 2,
        };
        let words =
            |key: &Key| format!("{} {} {}", key.round, key.be.map_or("-", Antagonist::name), key.policy);
        let found: Vec<String> = matrix.keys().iter().map(words).collect();
        let expected = [
            "0 - alone",
            "0 cpu-spin stock",
            "0 cpu-spin enforcer",
            "0 fork-storm stock",
            "0 fork-storm enforcer",
            "1 - alone",
            "1 cpu-spin enforcer",
            "1 cpu-spin stock",
            "1 fork-storm enforcer",
            "1 fork-storm stock",
        ];
        assert_eq!(found, expected);
    }
}

//! How much of the matrix is run.

use enforcer_rig::antagonist::Antagonist;

use super::{
    policy::{Policy, Quota},
    scenario::{LsLoad, Scenario},
};

/// Part of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subset {
    Quick,
    Telling,
    Full,
}

/// Percentages of the static sweep.
const SWEEP: [u32; 6] = [5, 10, 20, 35, 50, 75];

impl Subset {
    /// That are measured in each cell.
    pub const fn seconds(self) -> u32 {
        match self {
            Self::Quick => 10,
            Self::Telling | Self::Full => 20,
        }
    }

    pub fn scenarios(self) -> Vec<Scenario> {
        let scenario = |(be, load)| Scenario { be, load };
        let chosen: &[_] = match self {
            Self::Quick => &[
                (Antagonist::MemoryStream, LsLoad::Constant(50)),
                (Antagonist::CpuSpin, LsLoad::Constant(50)),
            ],
            Self::Telling => &[
                (Antagonist::MemoryStream, LsLoad::Constant(50)),
                (Antagonist::CpuSpin, LsLoad::Constant(50)),
                (Antagonist::CacheThrash, LsLoad::Constant(50)),
                (Antagonist::PageCache, LsLoad::Constant(50)),
                (Antagonist::MemoryStream, LsLoad::Square),
            ],
            Self::Full => return Scenario::all(),
        };
        chosen.iter().copied().map(scenario).collect()
    }

    /// In the order in which they take turns. A static quota that is below BE's floor is left out: enforcer may not go there.
    pub fn policies(self, cpus: usize, floor_cores: f64) -> Vec<Policy> {
        let sweep: Vec<Policy> = match self {
            Self::Quick => vec![Policy::usual_static(10), Policy::usual_static(35)],
            Self::Telling => [10, 20, 50].map(Policy::usual_static).to_vec(),
            Self::Full => [Quota::USUAL_PERIOD_MS, 1_000]
                .into_iter()
                .flat_map(|period_ms| SWEEP.map(|percent| Policy::Static(Quota { percent, period_ms })))
                .collect(),
        };
        let is_allowed =
            |policy: &Policy| !matches!(policy, Policy::Static(quota) if quota.cores(cpus) < floor_cores);
        let mut policies = vec![Policy::Stock];
        if self != Self::Quick {
            policies.push(Policy::Equal);
        }
        policies.extend(sweep.into_iter().filter(is_allowed));
        policies.push(Policy::KoordinatorQuota);
        if self == Self::Full {
            policies.push(Policy::KoordinatorCpuset);
        }
        policies.push(Policy::Enforcer);
        policies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells of three rounds, those with LS alone included, at a second of setting up each.
    fn minutes(subset: Subset) -> f64 {
        let scenarios = subset.scenarios();
        let mut loads: Vec<LsLoad> = scenarios.iter().map(|scenario| scenario.load).collect();
        loads.sort_unstable();
        loads.dedup();
        let cells = 3 * (scenarios.len() * subset.policies(2, 0.1).len() + loads.len());
        (cells * (subset.seconds() as usize + 6)) as f64 / 60.0
    }

    #[test]
    fn subsets_keep_their_promises() {
        assert!(minutes(Subset::Quick) < 9.0, "{}", minutes(Subset::Quick));
        assert!(minutes(Subset::Telling) < 55.0, "{}", minutes(Subset::Telling));
    }

    #[test]
    fn quotas_below_the_floor_are_left_out() {
        let least =
            |cpus| Subset::Full.policies(cpus, 0.1).into_iter().filter(|policy| policy.is_static()).nth(1);
        assert_eq!(least(2), Some(Policy::usual_static(5)));
        assert_eq!(least(1), Some(Policy::usual_static(10)));
    }
}

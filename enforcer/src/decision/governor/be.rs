//! A BE group, as decisions see it.

use std::time::Duration;

use crate::{
    decision::cause::Cause,
    model::{CpuLimit, GroupId, GroupSnapshot, Lever, Levers, QUOTA_MIN_US, Restraint, Snapshot},
    signal::average::averaged,
    units::{MilliCores, whole_unsigned},
};

/// The period of quotas against what BE does to caches and memory. Measured: for the same mean, a burst that lasts longer than
/// the objective makes everyone slow who comes meanwhile, and with some milliseconds the cache never recovers.
const CACHE_PERIOD_US: u64 = 50_000;
/// Against what BE does on the CPUs. There every burst keeps LS waiting for as long as it lasts, so they must be short.
const CPU_PERIOD_US: u64 = 10_000;
/// As kubelet has it, where nothing speaks for another one.
const KUBELETS_PERIOD_US: u64 = 100_000;
/// "Stopped" in a trial: the smallest quota in the longest period, 0.1 % of one CPU. Quicker to end than a freeze, and
/// no harm if the agent dies.
pub const STOPPED: Restraint = Restraint::quota(CpuLimit { quota_us: Some(1_000), period_us: 1_000_000 });
/// A quota is never used up to the last slice; this much more keeps the mean at the floor.
const FLOOR_MARGIN: f64 = 1.05;
/// Of the memory that it used, BE always keeps so much: taking more would only make it thrash.
const MEMORY_KEPT: f64 = 0.5;
/// Sizes are multiples of this, because the kernel rounds to pages.
const PAGES: u64 = 64 << 10;
/// Averages move.
const NEARLY: f64 = 0.8;
/// BE that uses less than this many CPUs does not run.
const RUNS_CORES: f64 = 0.02;
/// Under a quota that leaves it less: this part of that. One that yields runs if it would: so many of its tasks wait for a CPU.
const HELD: f64 = 0.5;
const WANTS_TO_RUN: f64 = 0.1;
/// Averages of usage forget with this time constant, demand with the longer one.
const AVERAGE: Duration = Duration::from_secs(1);
/// Waits count when they end, and those of BE that yields may be long.
const WAITS_FADE: Duration = Duration::from_secs(5);
const DEMAND_FADES: Duration = Duration::from_secs(20);

/// A BE group and what it is known to want.
#[derive(Clone, Debug)]
pub struct BeGroup {
    pub id: GroupId,
    /// What groups of the same kind share.
    pub workload: String,
    floor: MilliCores,
    pub exists: bool,
    levers: Levers,
    /// CPUs used, averaged.
    pub usage: f64,
    /// Tasks that waited for one, averaged.
    waits: f64,
    /// CPUs that it uses when nothing limits it, as last seen.
    pub demand: f64,
    /// Memory that it used when nothing limited that, as last seen.
    memory_wanted: Option<u64>,
    /// What was in force when it was seen last.
    restraint: Restraint,
}

impl BeGroup {
    pub fn new(id: GroupId) -> Self {
        Self {
            id,
            workload: String::new(),
            floor: MilliCores(0),
            exists: false,
            levers: Levers::default(),
            usage: 0.0,
            waits: 0.0,
            demand: 0.0,
            memory_wanted: None,
            restraint: Restraint::default(),
        }
    }

    pub const fn set_floor(&mut self, floor: MilliCores) {
        self.floor = floor;
    }

    /// Takes in a snapshot. `restraint`: what was in force meanwhile, so that it could not show what it wants.
    pub fn observe(&mut self, group: &GroupSnapshot, elapsed: Duration, restraint: Restraint) {
        self.restraint = restraint;
        self.exists = group.cpu_cores.is_some();
        self.levers = group.levers;
        let cores = group.cpu_cores.unwrap_or_default();
        self.usage = averaged(self.usage, cores, elapsed, AVERAGE);
        self.waits = averaged(self.waits, group.cpu_waits.unwrap_or_default(), elapsed, WAITS_FADE);
        if restraint.memory_high.is_none() {
            self.memory_wanted = group.memory_bytes;
        }
        if restraint.quota.is_none() {
            // One that yields may want more than it gets.
            let faded = averaged(self.demand, self.usage, elapsed, DEMAND_FADES);
            self.demand = self.usage.max(if restraint.idle { self.demand } else { faded });
        }
    }

    /// In the time since the last snapshot, without averaging.
    pub fn runs_now(&self, node: &Snapshot) -> bool {
        node.group(self.id).cpu_cores.is_some_and(|cores| cores >= RUNS_CORES)
    }

    /// Whether it runs, or would if it were let.
    pub fn runs(&self) -> bool {
        let least = self.restraint.cores().map_or(RUNS_CORES, |held| RUNS_CORES.min(held * HELD));
        self.usage >= least || (self.restraint.idle && self.waits >= WANTS_TO_RUN)
    }

    /// Whether anything can be done about its CPU that lasts.
    pub const fn can_be_held_back(&self) -> bool {
        self.has(Lever::Idle) || self.has(Lever::Quota)
    }

    pub const fn has(&self, lever: Lever) -> bool {
        self.levers.has(lever)
    }

    /// CPU that a squeeze to the floor would take from it.
    pub fn above_floor(&self) -> f64 {
        (self.demand - self.floor_kept()).max(0.0)
    }

    /// Can be made to run only where nobody else wants the CPU.
    pub const fn can_yield(&self) -> bool {
        self.exists && self.has(Lever::Idle)
    }

    fn floor_kept(&self) -> f64 {
        self.floor.cores() * FLOOR_MARGIN
    }

    /// The memory that leaves it `share` of what may be taken from it.
    pub fn memory_high(&self, share: f64) -> Option<u64> {
        let wanted = self.memory_wanted.filter(|_| share < 1.0)?;
        let kept = MEMORY_KEPT + (1.0 - MEMORY_KEPT) * share;
        let pages = wanted as f64 * kept / PAGES as f64;
        Some(whole_unsigned(pages) * PAGES)
    }

    /// Its part where BE has to share, in no particular unit.
    pub fn claim(&self) -> f64 {
        self.usage + self.floor_kept()
    }

    /// The quota that leaves it so many CPUs, or its floor if that is more.
    pub fn quota_of(&self, cores: f64) -> CpuLimit {
        CpuLimit::of(MilliCores::from_cores(cores.max(self.floor_kept())), KUBELETS_PERIOD_US)
    }

    /// The quota that leaves it `share` of what it wants above its floor; none for all of it.
    pub fn quota(&self, share: f64, cause: Cause) -> Option<CpuLimit> {
        if share >= 1.0 {
            return None;
        }
        let mean = MilliCores::from_cores(self.floor_kept() + share * self.above_floor());
        // Not so short that the kernel's least quota would be more than the mean.
        let least_us = QUOTA_MIN_US * 1_000 / u64::from(mean.0.max(1));
        let period_us = if cause == Cause::BeCpu { CPU_PERIOD_US } else { CACHE_PERIOD_US };
        Some(CpuLimit::of(mean, period_us.max(least_us)))
    }
}

/// Whether these groups together have less than their floors although they want as much: for all that they lack, they waited.
/// Together, because a group that has little to do waits as well, now and then, and among those that yield, CPUs are shared.
pub fn are_below_floors<'a>(groups: impl Iterator<Item = &'a BeGroup>) -> bool {
    let (mut usage, mut wanted, mut waits) = (0.0, 0.0, 0.0);
    for group in groups {
        usage += group.usage;
        wanted += group.floor.cores().min(group.demand);
        waits += group.waits;
    }
    usage < wanted * NEARLY && waits > wanted - usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_keeps_its_mean_where_its_period_would_be_too_short_for_the_least_one() {
        let mut be = BeGroup::new(GroupId(0));
        be.set_floor(MilliCores(10));
        for cause in [Cause::BeCpu, Cause::BeCache] {
            let cores = be.quota(0.0, cause).and_then(CpuLimit::cores).unwrap();
            assert!((0.010..0.012).contains(&cores), "{cause:?}: {cores}");
        }
        be.set_floor(MilliCores(200));
        let periods = [Cause::BeCpu, Cause::BeCache].map(|cause| be.quota(0.0, cause).unwrap().period_us);
        assert_eq!(periods, [CPU_PERIOD_US, CACHE_PERIOD_US]);
    }
}

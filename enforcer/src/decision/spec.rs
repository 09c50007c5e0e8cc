//! What lent resources mean to the kernel: weights, quotas and memory limits of BE pods and their containers. Pure.
//!
//! Kubernetes itself treats such pods as `BestEffort`: no limits, the least weight. The numbers are Koordinator's
//! (`pkg/koordlet/runtimehooks/hooks/batchresource`), the map from shares to weights is the runtimes' own.

use crate::{model::CpuLimit, units::whole_unsigned};

/// What one container asks of lent resources. `None`: not asked, or not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    pub cpu_request_milli: Option<i64>,
    pub cpu_limit_milli: Option<i64>,
    pub memory_limit_bytes: Option<i64>,
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// `cpu.shares` of v1, from 2 to 262,144.
    pub shares: u64,
    /// `None`: no limit.
    pub quota: Option<CpuLimit>,
    pub memory_max: Option<u64>,
}

const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// As kubelet has it.
const PERIOD_US: u64 = 100_000;
const QUOTA_MIN_US: u64 = 1_000;

impl Spec {
    /// Of a pod: sums; no limit where any of its containers has none. `normalization`: how much quicker than the reference
    /// these CPUs are, by which quotas are divided.
    pub fn of(containers: &[Lent], normalization: Option<f64>) -> Self {
        let requested: i64 = containers.iter().filter_map(|container| container.cpu_request_milli).sum();
        let limits = |of: fn(&Lent) -> Option<i64>| -> Option<u64> {
            let sum: i64 = containers.iter().map(of).sum::<Option<i64>>()?;
            u64::try_from(sum).ok().filter(|sum| *sum > 0)
        };
        let quota = limits(|container| container.cpu_limit_milli).map(|milli| {
            let us = milli * PERIOD_US / 1_000;
            let us = normalization.filter(|ratio| *ratio > 1.0).map_or(us, |ratio| divided(us, ratio));
            CpuLimit { quota_us: Some(us.max(QUOTA_MIN_US)), period_us: PERIOD_US }
        });
        let shares = u64::try_from(requested).unwrap_or_default() * 1_024 / 1_000;
        Self {
            shares: shares.clamp(*SHARES.start(), *SHARES.end()),
            quota,
            memory_max: limits(|container| container.memory_limit_bytes),
        }
    }
}

fn divided(us: u64, ratio: f64) -> u64 {
    whole_unsigned((us as f64 / ratio).ceil())
}

/// `cpu.weight` of v2 for so many shares: 2 are 1, 1,024 are 100, 262,144 are 10,000. The map of runc 1.3.2 and crun 1.23;
/// kubelet's own linear one gave 39 for 1,024, a third of what v1 gives.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10,000")]
pub fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(*SHARES.start(), *SHARES.end()) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(request: i64, limit: Option<i64>, memory: Option<i64>) -> Lent {
        Lent { cpu_request_milli: Some(request), cpu_limit_milli: limit, memory_limit_bytes: memory }
    }

    #[test]
    fn a_container_gets_what_it_asks_for() {
        let spec = Spec::of(&[lent(1_000, Some(1_000), Some(3_623_878_656))], None);
        assert_eq!((spec.shares, spec.memory_max), (1_024, Some(3_623_878_656)));
        assert_eq!(spec.quota, Some(CpuLimit { quota_us: Some(100_000), period_us: 100_000 }));
        let nothing = Spec::of(&[Lent::default()], None);
        assert_eq!(nothing, Spec { shares: 2, quota: None, memory_max: None });
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let both = Spec::of(&[lent(500, Some(500), Some(10)), lent(250, Some(1_500), Some(20))], None);
        assert_eq!((both.shares, both.memory_max), (768, Some(30)));
        assert_eq!(both.quota.and_then(|quota| quota.quota_us), Some(200_000));
        let one = Spec::of(&[lent(500, Some(500), None), lent(250, None, Some(20))], None);
        assert_eq!((one.quota, one.memory_max), (None, None));
    }

    #[test]
    fn extremes_stay_within_what_the_kernel_takes() {
        let quota_us = |limit, ratio| {
            Spec::of(&[lent(0, Some(limit), None)], ratio).quota.and_then(|quota| quota.quota_us)
        };
        assert_eq!(quota_us(8, None), Some(1_000), "cores written for thousandths");
        assert_eq!(quota_us(2_000, Some(1.5)), Some(133_334));
        assert_eq!(quota_us(2_000, Some(0.5)), Some(200_000));
        assert_eq!(Spec::of(&[lent(i64::MAX / 2_000, None, None)], None).shares, 262_144);
        assert_eq!([2, 1_024, 2_000, 262_144].map(weight), [1, 100, 170, 10_000]);
    }
}

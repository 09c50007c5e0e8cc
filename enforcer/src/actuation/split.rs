//! One limit for a group, several directories to put it in.

use crate::{
    model::{CpuLimit, PERIOD_US, QUOTA_MIN_US},
    units::whole_unsigned,
};

/// Whoever uses so much of its part is taken to want more.
const NEARLY_ALL: f64 = 0.8;
/// Parts that depend on what others use are so many whole parts of a power of two: that fluctuates, and files are not to be
/// written for it. What is lost by rounding is less than what floors have to spare.
const STEPS: f64 = 32.0;

/// The part of a group's quota that each of its directories gets. `cores`: CPUs that each of them uses now.
///
/// All get the same, max-min fair, so that one which starts to run is limited from its first moment; the sum is too high
/// until the next call counts it. A part that would be below the kernel's least quota gets a longer period instead, as far
/// as that goes.
pub fn quota_part(limit: CpuLimit, cores: &[f64]) -> CpuLimit {
    let (Some(quota_us), Some(whole)) = (limit.quota_us, limit.cores()) else { return limit };
    let parts = whole / fair_part(whole, cores);
    let least_us = whole_unsigned((QUOTA_MIN_US as f64 * parts).ceil());
    let times = least_us.div_ceil(quota_us.max(1)).max(1);
    let period_us = (limit.period_us * times).min(*PERIOD_US.end());
    let quota_us = (quota_us * period_us / limit.period_us) as f64 / parts;
    CpuLimit { quota_us: Some(whole_unsigned(quota_us).max(QUOTA_MIN_US)), period_us }
}

/// The part of a group's memory limit, in bytes, that each of its directories gets. `bytes`: what each of them uses now.
pub fn memory_part(limit: u64, bytes: &[u64]) -> u64 {
    let bytes: Vec<f64> = bytes.iter().map(|bytes| *bytes as f64).collect();
    whole_unsigned(fair_part(limit as f64, &bytes))
}

/// The most that each of several may use of `whole` (more than 0) so that all together do not use more: max-min fair
/// (Bertsekas and Gallager, Data Networks, 2nd ed., 6.5.2). Who uses less than an equal part leaves the rest to the others; where
/// nobody is known to use anything, the parts are equal.
fn fair_part(whole: f64, uses: &[f64]) -> f64 {
    if uses.iter().all(|uses| *uses <= 0.0) {
        return whole / uses.len().max(1) as f64;
    }
    let mut ascending = uses.to_vec();
    ascending.sort_by(f64::total_cmp);
    let mut left = whole;
    for (place, used) in ascending.iter().enumerate() {
        let sharing = ascending.len() - place;
        let part = left / sharing as f64;
        // The last one has all that the others leave, whether it uses that or not.
        if *used >= part * NEARLY_ALL || sharing == 1 {
            return if place == 0 { part } else { coarse(part) };
        }
        left -= used;
    }
    whole
}

fn coarse(part: f64) -> f64 {
    let step = part.log2().floor().exp2() / STEPS;
    (part / step).floor() * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_little_leaves_the_rest_to_the_others() {
        let near = |whole, uses: &[f64], expected: f64| {
            let part = fair_part(whole, uses);
            assert!(part <= expected + 1e-9 && part >= expected * (1.0 - 1.0 / STEPS), "{uses:?}: {part}");
        };
        near(1.0, &[0.9, 0.9, 0.9, 0.9], 0.25);
        // One that works and nine that wake up now and then.
        near(0.2, &[1.5, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004], 0.164);
        // It is held at its part, and keeps it.
        near(0.2, &[0.164, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004, 0.004], 0.164);
        near(1.0, &[0.5, 0.4, 0.08], 0.46);
        near(1.0, &[0.1, 0.1], 0.9);
        near(1.0, &[0.0, 0.0], 0.5);
        assert_eq!(fair_part(0.3, &[7.0]).to_bits(), 0.3_f64.to_bits());
    }

    #[test]
    fn all_together_never_use_more_than_the_whole() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1_000 {
            let uses: Vec<f64> = (0..random.usize(2..20)).map(|_| random.f64().powi(4) * 2.0).collect();
            let part = fair_part(0.7, &uses);
            let sum: f64 = uses.iter().map(|uses| uses.min(part)).sum();
            assert!(sum <= 0.7 + 1e-9, "{uses:?}: {part}");
        }
    }

    #[test]
    fn what_is_used_may_fluctuate() {
        let parts: Vec<f64> =
            [0.0100, 0.0101, 0.0103, 0.0099].iter().map(|small| fair_part(0.2, &[1.0, *small])).collect();
        assert!(parts.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 1e-12), "{parts:?}");
    }

    #[test]
    fn parts_are_never_below_the_kernels_minimum() {
        let limit = CpuLimit { quota_us: Some(200_000), period_us: 1_000_000 };
        for (count, expected) in [(0, 200_000), (1, 200_000), (4, 50_000), (1_000, 1_000)] {
            assert_eq!(quota_part(limit, &vec![1.0; count]).quota_us, Some(expected), "{count}");
        }
        let short = CpuLimit { quota_us: Some(1_050), period_us: 10_000 };
        let part = quota_part(short, &[1.0; 3]);
        assert!(part.quota_us >= Some(QUOTA_MIN_US) && part.period_us == 30_000, "{part}");
        let none = CpuLimit { quota_us: None, ..limit };
        assert_eq!(quota_part(none, &[1.0; 3]), none);
    }
}

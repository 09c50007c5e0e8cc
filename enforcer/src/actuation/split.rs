//! One limit for a group, several directories to put it in.

use crate::model::{CpuLimit, PERIOD_US, QUOTA_MIN_US};

/// The part of a group's limit that each of its directories gets: an equal one, counted over those that run. The others
/// get the same, so that one which starts to run is limited from its first moment; the sum is too high until the next
/// call counts it. A part that would be below the kernel's least quota gets a longer period instead, as far as that goes.
pub fn equal_part(limit: CpuLimit, running: usize) -> CpuLimit {
    let parts = running.max(1) as u64;
    let Some(quota_us) = limit.quota_us else { return limit };
    let times = (QUOTA_MIN_US * parts).div_ceil(quota_us.max(1)).max(1);
    let period_us = (limit.period_us * times).min(*PERIOD_US.end());
    let quota_us = quota_us * period_us / limit.period_us;
    CpuLimit { quota_us: Some((quota_us / parts).max(QUOTA_MIN_US)), period_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_limit_and_are_never_below_the_kernels_minimum() {
        let limit = CpuLimit { quota_us: Some(200_000), period_us: 1_000_000 };
        for (running, expected) in [(0, 200_000), (1, 200_000), (3, 66_666), (1_000, 1_000)] {
            assert_eq!(equal_part(limit, running).quota_us, Some(expected), "{running}");
        }
        let short = CpuLimit { quota_us: Some(1_050), period_us: 10_000 };
        assert_eq!(equal_part(short, 3), CpuLimit { quota_us: Some(1_050), period_us: 30_000 });
        let none = CpuLimit { quota_us: None, ..limit };
        assert_eq!(equal_part(none, 3), none);
    }
}

//! One limit for a group, several directories to put it in.

use crate::model::{CpuLimit, QUOTA_MIN_US};

/// The part of a group's limit that each of its directories gets: an equal one, counted over those that run. The others
/// get the same, so that one which starts to run is limited from its first moment; the sum is too high until the next
/// call counts it.
pub fn equal_part(limit: CpuLimit, running: usize) -> CpuLimit {
    let parts = running.max(1) as u64;
    CpuLimit { quota_us: limit.quota_us.map(|quota| (quota / parts).max(QUOTA_MIN_US)), ..limit }
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
        let none = CpuLimit { quota_us: None, ..limit };
        assert_eq!(equal_part(none, 3), none);
    }
}

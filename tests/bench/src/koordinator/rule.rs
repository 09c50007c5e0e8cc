//! Koordinator's rule (`pkg/koordlet/qosmanager/plugins/cpusuppress/cpu_suppress.go`), with its default thresholds. Pure.

use crate::accounts::Usage;

/// LS, everything outside of pods, and BE together shall use no more of the node.
const THRESHOLD_PERCENT: f64 = 65.0;
/// Per tick, BE gets at most so much of the node more.
const INCREASE_PERCENT: f64 = 10.0;
/// Changes of the quota by less of the node are left out.
const DEAD_BAND_PERCENT: f64 = 1.0;
const MIN_QUOTA_US: f64 = 2_000.0;
/// Of the quota.
pub const PERIOD_US: f64 = 100_000.0;
const MIN_CPUS: usize = 2;

/// CPU time that BE may have, in cores.
pub fn target_cores(cpus: usize, usage: Usage) -> f64 {
    cpus as f64 * THRESHOLD_PERCENT / 100.0 - usage.ls - usage.others()
}

/// The quota to write. `current`: `None` is no limit. `None`: leave it as it is.
pub fn quota_us(target_cores: f64, cpus: usize, current: Option<f64>) -> Option<f64> {
    let percent = cpus as f64 * PERIOD_US / 100.0;
    // Of whole thousandths of a core.
    let wanted = ((target_cores * 1e3).round() * PERIOD_US / 1e3).max(MIN_QUOTA_US);
    let is_least = wanted <= MIN_QUOTA_US;
    let Some(current) = current else { return Some(wanted) };
    if (wanted - current).abs() < DEAD_BAND_PERCENT * percent && !is_least {
        return None;
    }
    Some(wanted.min(current + INCREASE_PERCENT * percent))
}

/// How many CPUs BE may use, if it may use `current` now.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
pub fn cpus(target_cores: f64, cpus: usize, current: usize) -> usize {
    let increase = (cpus as f64 * INCREASE_PERCENT / 100.0).ceil() as usize;
    let wanted = target_cores.ceil().max(0.0) as usize;
    wanted.max(MIN_CPUS).min(current + increase).min(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUS: usize = 4;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }

    #[test]
    fn be_may_have_what_ls_and_the_system_leave_below_the_threshold() {
        // 4 x 65 % - 1.0 of LS - 0.3 of the system.
        assert_close(target_cores(CPUS, Usage { seconds: 1.0, node: 1.8, ls: 1.0, be: 0.5 }), 1.3);
        // Accounts of different times may not add up: the system uses nothing then.
        assert_close(target_cores(CPUS, Usage { seconds: 1.0, node: 1.4, ls: 1.0, be: 0.5 }), 1.6);
    }

    #[test]
    fn a_quota_falls_at_once_and_rises_by_a_tenth_of_the_node() {
        assert_eq!(quota_us(0.5, CPUS, Some(200_000.0)), Some(50_000.0));
        assert_eq!(quota_us(2.0, CPUS, Some(50_000.0)), Some(90_000.0));
        assert_eq!(quota_us(2.0, CPUS, None), Some(200_000.0));
    }

    #[test]
    fn a_quota_is_never_below_two_hundredths_of_a_core() {
        assert_eq!(quota_us(-3.0, CPUS, Some(50_000.0)), Some(2_000.0));
        assert_eq!(quota_us(0.001, CPUS, None), Some(2_000.0));
    }

    #[test]
    fn small_changes_of_the_quota_are_left_out_except_to_the_minimum() {
        assert_eq!(quota_us(0.53, CPUS, Some(50_000.0)), None);
        assert_eq!(quota_us(0.55, CPUS, Some(50_000.0)), Some(55_000.0));
        assert_eq!(quota_us(0.0, CPUS, Some(3_000.0)), Some(2_000.0));
    }

    #[test]
    fn a_cpuset_rounds_up_and_has_two_cpus_at_least() {
        assert_eq!(cpus(2.1, 8, 8), 3);
        assert_eq!(cpus(-1.0, 8, 8), 2);
        assert_eq!(cpus(7.0, 8, 3), 4);
        assert_eq!(cpus(0.4, 2, 2), 2);
    }
}

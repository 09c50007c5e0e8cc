//! What CPU is left for BE by Koordinator's rule of utilisation (`pkg/koordlet/qosmanager/plugins/cpusuppress`). Pure.

use super::thresholds::Thresholds;
use crate::units::Amounts;

/// CPUs that BE may use in all. `capacity`: the node's CPUs. `others`: what LS pods and host applications use, `system`: what
/// everything else does, `reserved`: what kubelet keeps for that. `None`: the rule is switched off.
pub fn be_cores(
    thresholds: &Thresholds,
    capacity: f64,
    others: Amounts,
    system: Amounts,
    reserved: Amounts,
) -> Option<f64> {
    if !thresholds.enable {
        return None;
    }
    let part = |percent: i64| capacity * percent as f64 / 100.0;
    let cores = |amounts: Amounts| amounts.cpu_milli as f64 / 1e3;
    let left = part(thresholds.cpu_suppress_percent) - cores(others) - cores(system).max(cores(reserved));
    Some(left.max(thresholds.cpu_suppress_min_percent.map_or(0.0, part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn be_gets_what_the_others_leave_of_the_threshold() {
        let amounts = |cpu_milli| Amounts { cpu_milli, memory_bytes: 0 };
        let on = Thresholds { enable: true, ..Thresholds::default() };
        let left = |thresholds: &Thresholds, others, system, reserved| {
            be_cores(thresholds, 10.0, amounts(others), amounts(system), amounts(reserved))
        };
        assert_eq!(left(&on, 2_000, 500, 0), Some(4.0));
        assert_eq!(left(&on, 2_000, 500, 1_000), Some(3.5));
        assert_eq!(left(&on, 9_000, 500, 0), Some(0.0));
        let least = Thresholds { cpu_suppress_min_percent: Some(5), ..on };
        assert_eq!(left(&least, 9_000, 500, 0), Some(0.5));
        assert_eq!(left(&Thresholds::default(), 0, 0, 0), None);
    }
}

//! When what may be lent is worth a write to the API server.

use std::time::Duration;

use super::Strategy;
use crate::units::Amounts;

/// What stands in the node's status; `None`: no batch resources there.
pub type Offer = Option<Amounts>;

/// Whether `new` is to be written over `old`, which was written `age` ago (`None`: never by this process).
///
/// Something that appears or goes is written, and a difference of more than the threshold, either resource; small ones only
/// every now and then (koordinator `IsResourceDiff`, `isCommonNodeNeedSync`). The same values need no writing, ever: kubelet
/// does not take them away.
pub fn must_publish(old: Offer, new: Offer, age: Option<Duration>, strategy: &Strategy) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return old != new };
    let differs =
        |old: i64, new: i64| new.abs_diff(old) as f64 > old as f64 * strategy.resource_diff_threshold;
    let is_due = age.is_none_or(|age| age > strategy.update_time_threshold);
    old != new
        && (is_due || differs(old.cpu_milli, new.cpu_milli) || differs(old.memory_bytes, new.memory_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_wait() {
        let strategy = Strategy::default();
        let offer = |cpu_milli| Some(Amounts { cpu_milli, memory_bytes: 1 << 30 });
        let minute = Some(Duration::from_mins(1));
        for (old, new, age, expected) in [
            (None, None, None, false),
            (None, offer(1_000), minute, true),
            (offer(1_000), None, minute, true),
            (offer(1_000), offer(1_100), minute, false),
            (offer(1_000), offer(1_101), minute, true),
            (offer(1_000), offer(899), minute, true),
            (offer(0), offer(1), minute, true),
            (offer(1_000), offer(1_001), Some(Duration::from_secs(301)), true),
            (offer(1_000), offer(1_001), Some(Duration::from_mins(5)), false),
            (offer(1_000), offer(1_001), None, true),
            (offer(1_000), offer(1_000), None, false),
        ] {
            assert_eq!(must_publish(old, new, age, &strategy), expected, "{old:?} {new:?} {age:?}");
        }
    }
}

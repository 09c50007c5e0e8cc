//! How thick may slow ones come before the probes must not wait for the next tick?

use std::time::Duration;

use super::tally::ALLOWED;
use crate::model::Pace;

/// Slow ones may come this many times as often as the objective allows; an objective that is just missed can wait for
/// the tick.
const SLACK: f64 = 3.0;
/// No single slow one is news, nor are two.
const BURST_MIN: f64 = 3.0;
/// Over this time the allowed ones may come at once, and two standard deviations more.
const WINDOW: Duration = Duration::from_millis(50);
/// Rates below say too little: such a group is looked at by ticks only.
const RATE_MIN_HZ: f64 = 5.0;
/// Nobody is told.
pub const SILENT: Pace = Pace { interval: Duration::ZERO, burst: Duration::ZERO };

/// The pace for a signal that is heard so often per second.
pub fn pace(rate_hz: f64) -> Pace {
    if rate_hz.is_nan() || rate_hz < RATE_MIN_HZ {
        return SILENT;
    }
    let expected = rate_hz * ALLOWED * WINDOW.as_secs_f64();
    let burst = BURST_MIN + 2.0 * expected.sqrt();
    let interval = Duration::from_secs_f64(1.0 / (SLACK * ALLOWED * rate_hz));
    Pace { interval, burst: interval.mul_f64(burst - 0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slow ones at once until it is news.
    fn news_after(rate_hz: f64) -> u64 {
        let pace = pace(rate_hz);
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
        let mut kernels = enforcer_ebpf::layout::Pace {
            interval_ns: nanoseconds(pace.interval),
            burst_ns: nanoseconds(pace.burst),
            due_ns: 0,
        };
        (1..100).find(|_| kernels.is_exceeded(1_000_000_000)).unwrap()
    }

    #[test]
    fn a_few_slow_ones_at_once_are_news_and_never_a_single_one() {
        assert_eq!([10.0, 1_000.0, 10_000.0, 100_000.0].map(news_after), [3, 4, 7, 17]);
    }

    #[test]
    fn a_group_that_says_little_is_never_news() {
        assert_eq!(pace(0.0), SILENT);
        assert_eq!(pace(f64::NAN), SILENT);
    }
}

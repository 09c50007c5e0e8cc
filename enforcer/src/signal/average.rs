//! Averages that forget.

use std::time::Duration;

/// `old`, moved towards `new` as much as `elapsed` is of the time constant: right for ticks of any length.
pub fn averaged(old: f64, new: f64, elapsed: Duration, time_constant: Duration) -> f64 {
    let kept = kept(elapsed, time_constant);
    if elapsed.is_zero() { old } else { old * kept + new * (1.0 - kept) }
}

/// The part of what was known that is left after `elapsed`.
pub fn kept(elapsed: Duration, time_constant: Duration) -> f64 {
    (-elapsed.div_duration_f64(time_constant)).exp()
}

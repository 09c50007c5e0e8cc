//! How much more is slow than allowed, stretch by stretch of time.
//!
//! Requests are not independent: a stall of 10 ms delays all that come meanwhile. So the sample here is stretches of time, not
//! requests: how far was each above what is allowed, and is the sum more than what as many stretches of either sign would come
//! to by chance? A single bad stretch, however bad, is one standard deviation, and four are two, but for what has faded.

use std::time::Duration;

use crate::signal::{
    average::kept,
    tally::{ALLOWED, Tally},
};

/// Stretches fade with this time constant: three windows of 10 s, in which an objective is judged. Stalls may be seconds
/// apart.
const FADES: Duration = Duration::from_secs(30);
/// Standard deviations that are too many to be chance: 98 % sure.
const Z: f64 = 2.0;
/// Looks come a little early.
const NEARLY: f64 = 0.95;

/// The sum so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stretches {
    /// Slow ones beyond what is allowed, summed over the stretches that ended.
    excess: f64,
    /// Of so many.
    total: f64,
    /// The sum's variance, if each stretch's sign were chance.
    variance: f64,
    /// The stretch that goes on.
    tally: Tally,
    elapsed: Duration,
}

/// A stretch that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    pub elapsed: Duration,
    /// Slow ones beyond what is allowed; negative for fewer.
    pub excess: f64,
}

impl Stretches {
    /// Takes in what was counted in the `elapsed` time since the last observation. The stretch that this ended, if it has some
    /// `length` now.
    pub fn observe(&mut self, tally: Tally, elapsed: Duration, length: Duration) -> Option<Stretch> {
        self.tally += tally;
        self.elapsed += elapsed;
        if self.elapsed < length.mul_f64(NEARLY) {
            return None;
        }
        let elapsed = std::mem::take(&mut self.elapsed);
        let Tally { total, slow } = std::mem::take(&mut self.tally);
        let excess = slow as f64 - ALLOWED * total as f64;
        let kept = kept(elapsed, FADES);
        self.excess = self.excess * kept + excess;
        self.total = self.total * kept + total as f64;
        self.variance = self.variance * kept * kept + excess * excess;
        Some(Stretch { elapsed, excess })
    }

    /// Whether more are slow than allowed, by more than chance.
    pub fn are_surely_bad(self) -> bool {
        self.z() >= Z
    }

    /// Whether fewer are, by more than chance.
    pub fn are_surely_good(self) -> bool {
        self.z() <= -Z
    }

    /// Whether more are slow than allowed.
    pub fn are_bad(self) -> bool {
        self.excess > 0.0
    }

    /// Standard deviations by which too many are slow.
    fn z(self) -> f64 {
        if self.variance > 0.0 { self.excess / self.variance.sqrt() } else { 0.0 }
    }

    /// The slow share; `None`: nothing was heard.
    pub fn share(self) -> Option<f64> {
        (self.total > 0.0).then(|| ALLOWED + self.excess / self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    #[test]
    fn it_takes_some_bad_stretches_whatever_their_length() {
        for length in [TICK, TICK * 10] {
            let mut stretches = Stretches::default();
            let mut ended = 0;
            while !stretches.are_surely_bad() {
                let tally = Tally { total: 100, slow: 90 };
                ended += u32::from(stretches.observe(tally, TICK, length).is_some());
            }
            assert_eq!(ended, 5, "four, and what has faded of them");
        }
    }

    #[test]
    fn what_is_long_ago_counts_for_less() {
        let mut stretches = Stretches::default();
        let half_life = FADES.mul_f64(std::f64::consts::LN_2);
        for slow in [21, 1, 1, 1] {
            stretches.observe(Tally { total: 100, slow }, half_life, TICK);
        }
        let share = stretches.share().unwrap();
        assert!((share - (0.01 + 2.5 / 187.5)).abs() < 1e-9, "{share}");
    }

    #[test]
    fn nothing_says_nothing() {
        let mut stretches = Stretches::default();
        stretches.observe(Tally::default(), TICK, TICK);
        assert_eq!(
            (stretches.are_bad(), stretches.are_surely_bad(), stretches.share()),
            (false, false, None)
        );
    }
}

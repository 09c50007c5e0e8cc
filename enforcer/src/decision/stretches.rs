//! How much more is slow than allowed, stretch by stretch of time.
//!
//! Requests are not independent: a stall of 10 ms delays all that come meanwhile. So the sample here is stretches of time, not
//! requests: how far was each above what is allowed, and is the sum more than what as many stretches of either sign would come
//! to by chance? A single bad stretch, however bad, is one standard deviation, and four are two.

use std::time::Duration;

use crate::signal::tally::{ALLOWED, Tally};

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
    /// Takes in what was counted in the `elapsed` time since the last observation. If this ends a stretch of some `length`,
    /// those before are worth only the part that `kept` says of its time.
    pub fn observe(
        &mut self,
        tally: Tally,
        elapsed: Duration,
        length: Duration,
        kept: impl Fn(Duration) -> f64,
    ) -> Option<Stretch> {
        self.tally += tally;
        self.elapsed += elapsed;
        if self.elapsed < length.mul_f64(NEARLY) {
            return None;
        }
        let elapsed = std::mem::take(&mut self.elapsed);
        let Tally { total, slow } = std::mem::take(&mut self.tally);
        let excess = slow as f64 - ALLOWED * total as f64;
        let kept = kept(elapsed);
        self.excess = self.excess * kept + excess;
        self.total = self.total * kept + total as f64;
        self.variance = self.variance * kept * kept + excess * excess;
        Some(Stretch { elapsed, excess })
    }

    /// Standard deviations by which too many are slow; zero or less: not too many.
    pub fn z(self) -> f64 {
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
    fn it_takes_four_bad_stretches_whatever_their_length() {
        for length in [TICK, TICK * 10] {
            let mut stretches = Stretches::default();
            let mut ended = 0;
            while stretches.z() < 2.0 {
                let tally = Tally { total: 100, slow: 90 };
                ended += u32::from(stretches.observe(tally, TICK, length, |_| 1.0).is_some());
            }
            assert_eq!(ended, 4);
        }
    }

    #[test]
    fn what_is_long_ago_counts_for_less() {
        let mut stretches = Stretches::default();
        let halved = |_| 0.5;
        for slow in [21, 1, 1, 1] {
            stretches.observe(Tally { total: 100, slow }, TICK, TICK, halved);
        }
        let share = stretches.share().unwrap();
        assert!((share - (0.01 + 2.5 / 187.5)).abs() < 1e-9, "{share}");
    }

    #[test]
    fn nothing_says_nothing() {
        let mut stretches = Stretches::default();
        stretches.observe(Tally::default(), TICK, TICK, |_| 1.0);
        assert_eq!((stretches.z(), stretches.share()), (0.0, None));
    }
}

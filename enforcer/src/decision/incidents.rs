//! Is an objective missed by incidents each of which is over before anybody can call it one?
//!
//! Requests are not independent: a stall of 10 ms delays all that come meanwhile, and the next one may be seconds away. Then
//! many are slow and hardly any moment is bad. So this test takes seconds, not requests, for its sample: how far was each
//! above what is allowed, and is the sum more than what as many seconds of either sign would come to by chance? A single bad
//! second, however bad, is one standard deviation; it takes four or more, and too many slow ones in all.

use std::time::Duration;

use crate::signal::{
    average::kept,
    tally::{ALLOWED, Tally},
};

/// What delays requests together is taken to be over within this time: a second, and looks come a little early.
const STRETCH: Duration = Duration::from_millis(950);
/// Stretches fade with this time constant: three windows of 10 s, in which an objective is judged.
const FADES: Duration = Duration::from_secs(30);
/// After so long without a stretch in which too many were slow, there are no incidents.
const CALM: Duration = Duration::from_secs(10);
/// Standard deviations that are too many to be chance: 98 % sure.
const Z: f64 = 2.0;

/// The evidence so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incidents {
    /// Slow ones beyond what is allowed, summed over the stretches that ended.
    excess: f64,
    /// The sum's variance, if each stretch's sign were chance.
    variance: f64,
    /// The stretch that goes on.
    tally: Tally,
    elapsed: Duration,
    /// For so long no stretch had too many.
    calm: Duration,
    are_too_many: bool,
}

impl Incidents {
    /// Takes in what was counted since the last observation.
    pub fn observe(&mut self, tally: Tally, elapsed: Duration) {
        self.tally += tally;
        self.elapsed += elapsed;
        if self.elapsed < STRETCH {
            return;
        }
        let elapsed = std::mem::take(&mut self.elapsed);
        let kept = kept(elapsed, FADES);
        let Tally { total, slow } = std::mem::take(&mut self.tally);
        let excess = slow as f64 - ALLOWED * total as f64;
        self.calm = if excess > 0.0 { Duration::ZERO } else { self.calm + elapsed };
        if self.calm >= CALM {
            *self = Self::default();
            return;
        }
        self.excess = self.excess * kept + excess;
        self.variance = self.variance * kept * kept + excess * excess;
        let is_certain = self.excess >= Z * self.variance.sqrt() && self.excess > 0.0;
        self.are_too_many = is_certain || (self.are_too_many && self.excess > 0.0);
    }

    /// Whether there were too many, and have not become few since.
    pub const fn are_too_many(self) -> bool {
        self.are_too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// Seconds until they are too many, of 1,000 requests per tick, `slow(tick)` of which are.
    fn seconds_until_too_many(slow: impl Fn(u32) -> u64) -> Option<u32> {
        let mut incidents = Incidents::default();
        let tick = (0..6_000).find(|&tick| {
            incidents.observe(Tally { total: 1_000, slow: slow(tick) }, TICK);
            incidents.are_too_many()
        });
        tick.map(|tick| (tick + 1) / 10)
    }

    #[test]
    fn a_short_stall_every_third_second_is_too_many_soon() {
        let stalls = |of: u64| move |tick: u32| if tick % 30 == 7 { of } else { 0 };
        let seconds = seconds_until_too_many(stalls(1_000));
        assert!(seconds.is_some_and(|seconds| (10..25).contains(&seconds)), "3.3 % slow: {seconds:?}");
        assert_eq!(seconds_until_too_many(stalls(250)), None, "0.8 % slow");
    }

    #[test]
    fn one_bad_second_is_not_however_bad() {
        assert_eq!(seconds_until_too_many(|tick| if (300..310).contains(&tick) { 900 } else { 3 }), None);
    }

    #[test]
    fn they_are_few_again_when_few_are_slow() {
        let mut incidents = Incidents::default();
        for _ in 0..100 {
            incidents.observe(Tally { total: 1_000, slow: 30 }, TICK);
        }
        assert!(incidents.are_too_many());
        let calm = (1..1_000).find(|_| {
            incidents.observe(Tally { total: 1_000, slow: 0 }, TICK);
            !incidents.are_too_many()
        });
        assert!(calm.is_some_and(|ticks| (50..=100).contains(&ticks)), "{calm:?}");
    }

    #[test]
    fn what_is_allowed_is_not_too_many_and_nothing_says_nothing() {
        assert_eq!(seconds_until_too_many(|_| 9), None);
        let mut incidents = Incidents::default();
        for _ in 0..100 {
            incidents.observe(Tally::default(), TICK);
        }
        assert!(!incidents.are_too_many());
    }
}

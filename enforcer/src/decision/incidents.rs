//! Is an objective missed by incidents each of which is over before anybody can call it one?
//!
//! Stalls of some milliseconds, seconds apart: many requests are slow and hardly any moment is bad. So this test takes seconds
//! for its sample, see [`Stretches`]: it takes four bad ones or more, and too many slow in all.

use std::time::Duration;

use super::stretches::Stretches;
use crate::signal::tally::Tally;

/// What delays requests together is taken to be over within this time.
const STRETCH: Duration = Duration::from_secs(1);
/// After so long without a stretch in which too many were slow, there are no incidents.
const CALM: Duration = Duration::from_secs(10);

/// The evidence so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incidents {
    stretches: Stretches,
    /// For so long no stretch had too many.
    calm: Duration,
    are_too_many: bool,
}

impl Incidents {
    /// Takes in what was counted since the last observation.
    pub fn observe(&mut self, tally: Tally, elapsed: Duration) {
        let Some(stretch) = self.stretches.observe(tally, elapsed, STRETCH) else { return };
        self.calm = if stretch.excess > 0.0 { Duration::ZERO } else { self.calm + stretch.elapsed };
        if self.calm >= CALM {
            *self = Self::default();
            return;
        }
        self.are_too_many =
            self.stretches.are_surely_bad() || (self.are_too_many && self.stretches.are_bad());
    }

    /// Whether there were too many, and have not become few since.
    pub const fn are_too_many(self) -> bool {
        self.are_too_many
    }

    /// The share of slow ones in the last half minute or so; `None`: nothing was heard since they were last calm.
    pub fn slow_share(self) -> Option<f64> {
        self.stretches.share()
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
        assert!(incidents.slow_share().is_some_and(|share| (share - 0.03).abs() < 1e-9), "{incidents:?}");
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

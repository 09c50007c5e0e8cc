//! Is an objective being missed?
//!
//! A CUSUM test (E. S. Page, 1954) on the counts of slow requests: it sees a jump of the slow share from 1 % to 5 %
//! within a few hundred requests and stays silent for hours at 1 %. Requests are not independent: one hiccup of the
//! host delays a dozen at once. So no single observation may count for more than [`STEP_MAX`], and an alarm takes
//! several bad ones in a row.

use crate::signal::tally::Tally;

use super::ALLOWED;

/// The slow share that is certainly too much. With the logarithms below, shares under 1.44 % calm the alarm down and
/// larger ones build it up.
const TOO_MUCH: f64 = 2.0 * ALLOWED;
/// Evidence at which the alarm goes off: e^6 times likelier too much than allowed.
const THRESHOLD: f64 = 6.0;
/// The most that one observation may add.
const STEP_MAX: f64 = 2.0;

/// The evidence so far that one objective is being missed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alarm {
    evidence: f64,
    /// Went off, and the evidence has not vanished since.
    on: bool,
}

impl Alarm {
    /// Takes in what was counted since the last observation.
    pub fn observe(&mut self, tally: Tally) {
        let slow = tally.slow as f64;
        let fast = tally.fast() as f64;
        let step = slow * (TOO_MUCH / ALLOWED).ln() + fast * ((1.0 - TOO_MUCH) / (1.0 - ALLOWED)).ln();
        self.evidence = (self.evidence + step.min(STEP_MAX)).clamp(0.0, THRESHOLD);
        self.on = self.evidence >= THRESHOLD || (self.on && self.evidence > 0.0);
    }

    /// Whether the objective is being missed.
    pub const fn is_on(self) -> bool {
        self.on
    }

    /// Forgets the evidence, because conditions changed.
    pub const fn reset(&mut self) {
        *self = Self { evidence: 0.0, on: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observations of 100 requests until the alarm, given slow requests per observation.
    fn observations_until_alarm(slow: impl Iterator<Item = u64>) -> Option<usize> {
        let mut alarm = Alarm::default();
        slow.into_iter().position(|slow| {
            alarm.observe(Tally { total: 100, slow });
            alarm.is_on()
        })
    }

    #[test]
    fn five_percent_slow_raise_the_alarm_within_four_observations() {
        assert_eq!(observations_until_alarm(std::iter::repeat_n(5, 100)), Some(2));
        assert_eq!(observations_until_alarm([7, 2, 5, 4, 6].into_iter()), Some(3));
    }

    #[test]
    fn one_percent_slow_never_raises_it() {
        assert_eq!(observations_until_alarm(std::iter::repeat_n(1, 100_000)), None);
    }

    #[test]
    fn one_hiccup_does_not_raise_it() {
        assert_eq!(observations_until_alarm([80, 0, 0, 0, 90, 0, 0, 0, 0].into_iter()), None);
    }

    #[test]
    fn nothing_observed_changes_nothing() {
        let mut alarm = Alarm { evidence: 3.0, on: false };
        alarm.observe(Tally::default());
        assert!((alarm.evidence - 3.0).abs() < f64::EPSILON);
    }
}

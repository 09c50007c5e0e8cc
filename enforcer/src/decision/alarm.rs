//! Is an objective being missed?
//!
//! CUSUM tests (E. S. Page, 1954) on the counts of slow requests. The patient one sees a jump of the slow share from 1 %
//! to 5 % within a few hundred requests and stays silent for hours at 1 %. Requests are not independent: one hiccup of the
//! host delays a dozen at once. So no stretch of time may count for more than [`STEP_MAX`], and an alarm takes some
//! tenths of a second. The sudden one needs a handful of slow ones in a row and knows no such bound: it is listened to
//! only where the kernel itself names who is to blame. Beside them [`Incidents`] sees what is too short for the patient one
//! and comes again and again.

use std::time::Duration;

use super::incidents::Incidents;
use crate::signal::tally::{ALLOWED, Tally};

/// The slow share that is certainly too much. With the logarithms below, shares under 1.44 % calm the alarm down and
/// larger ones build it up.
const TOO_MUCH: f64 = 2.0 * ALLOWED;
/// Evidence at which the alarm goes off: e^6 times likelier too much than allowed.
const THRESHOLD: f64 = 6.0;
/// The most that one [`STRETCH`] may add.
const STEP_MAX: f64 = 2.0;
const STRETCH: Duration = Duration::from_millis(100);
/// An alarm that lasts is worth a trial: one after which it took so long, and so many requests, to calm down again. A
/// hiccup's evidence is gone by then where there are many requests; where there are few, the longer time must do.
const LASTS: Duration = Duration::from_millis(500);
const LASTS_REQUESTS: u64 = 300;
const LASTS_AT_MOST: Duration = Duration::from_secs(2);
/// The share that the sudden test looks for, and its threshold: four slow ones among some twenty.
const SUDDEN: f64 = 10.0 * ALLOWED;
const SUDDEN_THRESHOLD: f64 = 7.0;

/// The evidence so far that one objective is being missed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alarm {
    evidence: f64,
    /// What was heard since there has been any.
    rising: Tally,
    /// Evidence that may still be added at once.
    room: f64,
    /// Went off, and the evidence has not vanished since.
    on: bool,
    /// For how long, and what was heard meanwhile.
    on_for: Duration,
    heard: u64,
    sudden: f64,
    incidents: Incidents,
}

impl Alarm {
    /// Takes in what was counted since the last observation.
    pub fn observe(&mut self, tally: Tally, elapsed: Duration) {
        self.room = (self.room + STEP_MAX * elapsed.div_duration_f64(STRETCH)).min(STEP_MAX);
        let step = evidence(tally, TOO_MUCH).min(self.room);
        self.room -= step.max(0.0);
        self.evidence = (self.evidence + step).clamp(0.0, THRESHOLD);
        self.rising = if self.evidence > 0.0 { self.rising + tally } else { Tally::default() };
        if self.on {
            self.on_for += elapsed;
            self.heard += tally.total;
        }
        self.on = self.evidence >= THRESHOLD || (self.on && self.evidence > 0.0);
        if !self.on {
            (self.on_for, self.heard) = (Duration::ZERO, 0);
        }
        self.sudden = (self.sudden + evidence(tally, SUDDEN)).clamp(0.0, SUDDEN_THRESHOLD);
        self.incidents.observe(tally, elapsed);
    }

    /// Whether the objective is being missed.
    pub const fn is_on(self) -> bool {
        self.on || self.incidents.are_too_many()
    }

    /// Whether the objective has been missed for longer than a hiccup.
    pub fn lasts(self) -> bool {
        self.incidents.are_too_many()
            || (self.on
                && (self.on_for >= LASTS_AT_MOST || (self.on_for >= LASTS && self.heard >= LASTS_REQUESTS)))
    }

    /// Whether slow ones came thick just now.
    pub const fn is_sudden(self) -> bool {
        self.sudden >= SUDDEN_THRESHOLD
    }

    /// The slow share that it goes off for.
    pub fn slow_share(self) -> Option<f64> {
        if self.incidents.are_too_many() { self.incidents.slow_share() } else { self.rising.share() }
    }

    /// Forgets the evidence, because conditions changed.
    pub fn reset(&mut self) {
        *self = Self { room: self.room, ..Self::default() };
    }
}

/// The logarithm of how much likelier the tally is with a slow share of `alternative` than with what is allowed.
fn evidence(tally: Tally, alternative: f64) -> f64 {
    let (slow, fast) = (tally.slow as f64, tally.fast() as f64);
    slow * (alternative / ALLOWED).ln() + fast * ((1.0 - alternative) / (1.0 - ALLOWED)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observations of 100 requests until the alarm, given slow requests per observation.
    fn observations_until_alarm(slow: impl Iterator<Item = u64>) -> Option<usize> {
        let mut alarm = Alarm::default();
        slow.into_iter().position(|slow| {
            alarm.observe(Tally { total: 100, slow }, STRETCH);
            alarm.is_on()
        })
    }

    #[test]
    fn five_percent_slow_raise_the_alarm_within_four_observations() {
        assert_eq!(observations_until_alarm(std::iter::repeat_n(5, 100)), Some(2));
        assert_eq!(observations_until_alarm([7, 2, 5, 4, 6].into_iter()), Some(3));
    }

    #[test]
    fn the_share_that_it_goes_off_for_is_that_since_the_trouble_began() {
        let mut alarm = Alarm::default();
        for slow in [0, 0, 0, 0, 0, 5, 5, 5] {
            alarm.observe(Tally { total: 100, slow }, STRETCH);
        }
        assert!(alarm.is_on() && alarm.slow_share() == Some(0.05), "{alarm:?}");
    }

    #[test]
    fn one_percent_slow_never_raises_it() {
        assert_eq!(observations_until_alarm(std::iter::repeat_n(1, 100_000)), None);
    }

    #[test]
    fn a_hiccup_every_third_second_raises_it_in_the_end() {
        let hiccups = (0..1_000).map(|look| if look % 30 == 3 { 90 } else { 0 });
        let alarm = observations_until_alarm(hiccups);
        assert!(alarm.is_some_and(|look| (80..300).contains(&look)), "{alarm:?}");
    }

    #[test]
    fn one_hiccup_does_not_raise_it() {
        assert_eq!(observations_until_alarm([80, 0, 0, 0, 90, 0, 0, 0, 0].into_iter()), None);
    }

    #[test]
    fn an_alarm_lasts_while_too_many_are_slow_and_not_after_a_hiccup() {
        let lasts_at = |slow: &dyn Fn(u32) -> u64| {
            let mut alarm = Alarm::default();
            (0..100).find(|&look| {
                alarm.observe(Tally { total: 300, slow: slow(look) }, STRETCH);
                alarm.lasts()
            })
        };
        assert_eq!(lasts_at(&|_| 9), Some(7), "the third look raises it");
        assert_eq!(lasts_at(&|look| if look < 4 { 90 } else { 2 }), None);
    }

    #[test]
    fn looking_more_often_does_not_raise_it_earlier() {
        let mut alarm = Alarm::default();
        let looks = (1..100).find(|_| {
            alarm.observe(Tally { total: 10, slow: 8 }, STRETCH / 10);
            alarm.is_on()
        });
        assert!(looks.is_some_and(|looks| looks > 20), "{looks:?}");
    }

    #[test]
    fn slow_ones_in_a_row_are_sudden_and_scattered_ones_are_not() {
        let mut alarm = Alarm::default();
        alarm.observe(Tally { total: 3, slow: 3 }, STRETCH / 100);
        assert!(!alarm.is_sudden());
        alarm.observe(Tally { total: 1, slow: 1 }, STRETCH / 100);
        assert!(alarm.is_sudden());
        let mut alarm = Alarm::default();
        for _ in 0..1_000 {
            alarm.observe(Tally { total: 100, slow: 2 }, STRETCH);
            assert!(!alarm.is_sudden());
        }
    }

    #[test]
    fn nothing_observed_changes_nothing() {
        let mut alarm = Alarm { evidence: 3.0, ..Alarm::default() };
        alarm.observe(Tally::default(), STRETCH);
        assert!((alarm.evidence - 3.0).abs() < f64::EPSILON);
    }
}

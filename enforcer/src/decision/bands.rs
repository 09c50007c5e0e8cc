//! What BE may keep, by the victim's load.
//!
//! A share that is right at night is too much at noon. Loads are told apart by request rate, in bands a factor of 1.5
//! wide; what worked in a band is remembered and is where the search goes on when that load comes back.

use std::{collections::BTreeMap, time::Duration};

/// Neighbouring bands differ by this factor of load.
const WIDTH: f64 = 1.5;
/// So far beyond a band's edge, in widths, the load has left it.
const HYSTERESIS: f64 = 0.15;
/// If it stays there for so long. A victim that BE keeps from answering is heard now less, now more, and would never be seen to
/// miss its objective at the load that it really has.
const STAYS: Duration = Duration::from_secs(1);
/// So many bands more are another load at once: LS is not to wait for less BE.
const FAR_MORE: f64 = 1.5;
/// How long a share that failed is avoided, doubled when the next attempt fails too.
const AVOID_MIN: Duration = Duration::from_mins(1);
const AVOID_MAX: Duration = Duration::from_mins(16);
/// A load that was never seen gets this part of what a lower one may keep.
const CAUTION: f64 = 0.5;

/// A share that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Failure {
    share: f64,
    avoid_until: Duration,
    avoid: Duration,
}

/// What is known of one load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Known {
    share: f64,
    failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Less,
    More,
}

/// What is known of all loads, and which one it is now.
#[derive(Clone, Debug, Default)]
pub struct Bands {
    known: BTreeMap<i32, Known>,
    current: Option<i32>,
    /// Since when the load has been elsewhere, and on which side.
    left: Option<(Duration, Side)>,
}

impl Bands {
    /// Begins at this load, whatever it was before.
    pub fn enter(&mut self, rate_hz: f64) {
        (self.current, self.left) = (Some(nearest(place(rate_hz))), None);
    }

    /// Follows the load. Whether it is another one than before.
    pub fn follow(&mut self, rate_hz: f64, now: Duration) -> bool {
        let Some(current) = self.current else {
            self.enter(rate_hz);
            return false;
        };
        let more = place(rate_hz) - f64::from(current);
        if more.abs() < 0.5 + HYSTERESIS {
            self.left = None;
            return false;
        }
        let side = if more > 0.0 { Side::More } else { Side::Less };
        let left_at = self.left.filter(|left| left.1 == side).map_or(now, |left| left.0);
        self.left = Some((left_at, side));
        if more < FAR_MORE && now < left_at + STAYS {
            return false;
        }
        self.enter(rate_hz);
        true
    }

    /// Where the search starts at this load. What worked there, else what worked at more load, else less than what worked
    /// at less; `None`: nothing is known of any load.
    pub fn start(&self) -> Option<f64> {
        let current = self.current?;
        let at_more = self.known.range(current..).map(|(_, known)| known.share);
        let at_less = || self.known.range(..current).next_back().map(|(_, known)| known.share * CAUTION);
        let here = self.known.get(&current).map(|known| known.share);
        here.or_else(|| at_more.max_by(f64::total_cmp)).or_else(at_less)
    }

    /// Notes the share in force at this load.
    pub fn note(&mut self, share: f64) {
        self.here().share = share;
    }

    /// Notes a share that was too much. One that follows soon on the end of an earlier one's avoidance is a repetition.
    pub fn failed(&mut self, share: f64, now: Duration) {
        let known = self.here();
        let repeated = known.failure.filter(|earlier| now < earlier.avoid_until + earlier.avoid);
        let avoid = repeated.map_or(AVOID_MIN, |earlier| (earlier.avoid * 2).min(AVOID_MAX));
        known.failure = Some(Failure { share, avoid_until: now + avoid, avoid });
    }

    /// The share that is avoided at this load.
    pub fn avoided(&self, now: Duration) -> Option<f64> {
        let failure = self.known.get(&self.current?)?.failure?;
        (now < failure.avoid_until).then_some(failure.share)
    }

    fn here(&mut self) -> &mut Known {
        self.known.entry(self.current.unwrap_or_default()).or_default()
    }
}

/// On the scale on which bands are whole numbers.
fn place(rate_hz: f64) -> f64 {
    rate_hz.max(0.1).ln() / WIDTH.ln()
}

#[expect(clippy::cast_possible_truncation, reason = "the logarithm of a rate is a small number")]
fn nearest(place: f64) -> i32 {
    place.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worked_at_a_load_is_found_again_when_it_comes_back() {
        let mut bands = Bands::default();
        assert!(!bands.follow(200.0, Duration::ZERO), "the first load is no change");
        assert_eq!(bands.start(), None);
        bands.note(0.8);
        assert!(bands.follow(700.0, Duration::ZERO));
        assert_eq!(bands.start(), Some(0.4), "with caution");
        bands.note(0.1);
        bands.enter(200.0);
        assert_eq!(bands.start(), Some(0.8));
        bands.enter(50.0);
        assert_eq!(bands.start(), Some(0.8), "what worked at more load works at less");
    }

    #[test]
    fn a_load_that_wavers_is_one_load() {
        let mut bands = Bands::default();
        bands.enter(850.0);
        for rate in [800.0, 900.0, 760.0, 1_000.0, 850.0] {
            assert!(!bands.follow(rate, Duration::ZERO), "{rate}");
        }
        assert!(bands.follow(2_000.0, Duration::ZERO));
    }

    #[test]
    fn a_load_that_swings_widely_is_one_load_and_one_that_stays_is_another() {
        let mut bands = Bands::default();
        bands.enter(1_000.0);
        let tenth = Duration::from_millis(100);
        for (tick, rate) in (1..200).zip([1_000.0, 600.0, 1_300.0, 500.0, 700.0].into_iter().cycle()) {
            assert!(!bands.follow(rate, tenth * tick), "{rate}");
        }
        let stays = (200..300).find(|tick| bands.follow(600.0, tenth * *tick));
        assert_eq!(stays, Some(209), "a second after it was elsewhere first");
    }

    #[test]
    fn a_share_that_failed_is_avoided_twice_as_long_when_it_fails_again() {
        let mut bands = Bands::default();
        bands.enter(100.0);
        bands.failed(0.5, Duration::ZERO);
        assert_eq!(bands.avoided(Duration::from_secs(59)), Some(0.5));
        assert_eq!(bands.avoided(Duration::from_secs(61)), None);
        bands.failed(0.5, Duration::from_secs(70));
        assert_eq!(bands.avoided(Duration::from_mins(3)), Some(0.5));
        bands.enter(10.0);
        assert_eq!(bands.avoided(Duration::from_secs(80)), None, "it failed at another load");
    }
}

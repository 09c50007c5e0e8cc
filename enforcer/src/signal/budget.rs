//! How much of what an objective allows is left?
//!
//! A p99 objective allows 1 % to be slow. Over an hour and over a day, what was slow is set against what was allowed: all
//! of it is left when nothing was slow, nothing when exactly 1 % was, and less than nothing beyond that.

use std::time::Duration;

use super::tally::{ALLOWED, Tally};

/// Over what time a budget is reckoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    Hour,
    Day,
}

impl Window {
    pub const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// A fixed word for metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
        }
    }
}

/// What was counted of one objective, a minute and an hour at a time: 1.4 kB.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    minutes: Ring<60, 60>,
    hours: Ring<24, 3600>,
}

impl Budget {
    /// Adds what was counted until `now`, which never goes backwards.
    pub fn add(&mut self, now: Duration, tally: Tally) {
        self.minutes.add(now, tally);
        self.hours.add(now, tally);
    }

    /// The share of the budget that is left, negative when it is overdrawn. `None`: nothing was counted in the window. Of
    /// a window that began before counting did, what was seen so far is taken.
    pub fn remaining(&self, now: Duration, window: Window) -> Option<f64> {
        let tally = match window {
            Window::Hour => self.minutes.sum(now),
            Window::Day => self.hours.sum(now),
        };
        Some(1.0 - tally.share()? / ALLOWED)
    }
}

/// The latest `N` stretches of `SECONDS` each, the current one included.
#[derive(Clone, Debug)]
struct Ring<const N: usize, const SECONDS: u64> {
    tallies: [Tally; N],
    /// Number of the stretch that was added to last, counted from time zero.
    last: u64,
}

impl<const N: usize, const SECONDS: u64> Default for Ring<N, SECONDS> {
    fn default() -> Self {
        Self { tallies: [Tally::default(); N], last: 0 }
    }
}

impl<const N: usize, const SECONDS: u64> Ring<N, SECONDS> {
    fn add(&mut self, now: Duration, tally: Tally) {
        let stretch = now.as_secs() / SECONDS;
        // Stretches since the last still hold what was there a round ago.
        for passed in (self.last + 1..=stretch).take(N) {
            self.tallies[place::<N>(passed)] = Tally::default();
        }
        self.last = self.last.max(stretch);
        self.tallies[place::<N>(self.last)] += tally;
    }

    fn sum(&self, now: Duration) -> Tally {
        let first = (now.as_secs() / SECONDS).saturating_sub(N as u64 - 1);
        let mut sum = Tally::default();
        for stretch in first.max(self.last.saturating_sub(N as u64 - 1))..=self.last {
            sum += self.tallies[place::<N>(stretch)];
        }
        sum
    }
}

#[expect(clippy::cast_possible_truncation, reason = "less than N")]
const fn place<const N: usize>(stretch: u64) -> usize {
    (stretch % N as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn remaining(budget: &Budget, now: Duration) -> [Option<f64>; 2] {
        let percent = |left: f64| (left * 1e6).round() / 1e6;
        Window::ALL.map(|window| budget.remaining(now, window).map(percent))
    }

    #[test]
    fn what_is_slow_uses_the_budget_up_and_overdraws_it() {
        for (slow, left) in [(0, 1.0), (5, 0.5), (10, 0.0), (30, -2.0)] {
            let mut budget = Budget::default();
            budget.add(MINUTE, Tally { total: 1_000, slow });
            assert_eq!(remaining(&budget, MINUTE), [Some(left); 2], "{slow} slow");
        }
    }

    #[test]
    fn where_nothing_was_counted_nothing_is_known() {
        let mut budget = Budget::default();
        assert_eq!(remaining(&budget, Duration::ZERO), [None; 2]);
        budget.add(MINUTE, Tally::default());
        assert_eq!(remaining(&budget, MINUTE), [None; 2]);
    }

    #[test]
    fn an_hour_later_it_is_forgotten_for_the_hour_and_a_day_later_for_the_day() {
        let mut budget = Budget::default();
        budget.add(Duration::from_secs(30), Tally { total: 1_000, slow: 20 });
        assert_eq!(remaining(&budget, MINUTE * 59), [Some(-1.0); 2]);
        assert_eq!(remaining(&budget, MINUTE * 60), [None, Some(-1.0)]);
        assert_eq!(remaining(&budget, MINUTE * 60 * 23), [None, Some(-1.0)]);
        assert_eq!(remaining(&budget, MINUTE * 60 * 24), [None; 2]);
        // What comes after the silence stands alone.
        budget.add(MINUTE * 60 * 30, Tally { total: 1_000, slow: 5 });
        assert_eq!(remaining(&budget, MINUTE * 60 * 30), [Some(0.5); 2]);
    }

    #[test]
    fn the_sum_is_that_of_the_window_whatever_the_gaps() {
        // Every 7 minutes something, with a pause of 100 minutes in the middle; compared with plain sums.
        let times: Vec<u64> = (0..200).map(|n| n * 7 + if n > 60 { 100 } else { 0 }).collect();
        let mut budget = Budget::default();
        for (n, &minute) in times.iter().enumerate() {
            let now = MINUTE * u32::try_from(minute).unwrap();
            budget.add(now, Tally { total: 100, slow: minute % 4 });
            let plain = |from: u64| {
                let slow: u64 = times[..=n].iter().filter(|&&at| at >= from).map(|at| at % 4).sum();
                let total = 100 * times[..=n].iter().filter(|&&at| at >= from).count() as u64;
                let share = Tally { total, slow }.share().unwrap();
                ((1.0 - share / ALLOWED) * 1e6).round() / 1e6
            };
            let hour = plain((minute + 1).saturating_sub(60));
            let day = plain((minute / 60 * 60).saturating_sub(23 * 60));
            assert_eq!(remaining(&budget, now), [Some(hour), Some(day)], "minute {minute}");
        }
    }
}

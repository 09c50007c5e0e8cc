//! How often onsets may make the agent look before its tick.
//!
//! A look takes a fraction of a millisecond of a CPU that LS may want, and the agent goes first. A hundred looks per second
//! would make a few percent of a busy service's requests late, and late ones are what asks for looks. So there is an
//! allowance: enough for whatever trouble begins, little while it goes on and there is nothing to be done.

use std::time::Duration;

/// Between two looks, at least.
const APART: Duration = Duration::from_millis(1);
/// Looks that may be taken in a row. One victim's onsets come 10 ms apart, and some trouble takes a second and more to be
/// sure of.
const IN_A_ROW: f64 = 150.0;
/// Beyond those, the ticks not counted.
const PER_SECOND: f64 = 5.0;

/// An allowance of looks before the tick.
#[derive(Debug)]
pub struct EarlyLooks {
    left: f64,
    looked_at: Duration,
}

impl EarlyLooks {
    pub const fn new() -> Self {
        Self { left: IN_A_ROW, looked_at: Duration::ZERO }
    }

    /// When an onset may be looked into. `None`: it has to wait for the tick.
    pub fn next(&self) -> Option<Duration> {
        (self.left >= 1.0).then_some(self.looked_at + APART)
    }

    /// A look was taken at `now`, early or not. One that changed something is worth its cost.
    pub fn looked(&mut self, now: Duration, is_early: bool, has_decided: bool) {
        let earned = now.saturating_sub(self.looked_at).as_secs_f64() * PER_SECOND;
        let spent = if is_early { 1.0 } else { 0.0 };
        let left = if has_decided { IN_A_ROW } else { self.left + earned - spent };
        self.left = left.clamp(0.0, IN_A_ROW);
        self.looked_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Early looks in a second in which onsets come every 10 ms, ticks every 100 ms.
    fn in_a_second(looks: &mut EarlyLooks, from: Duration, decides: impl Fn(u32) -> bool) -> u32 {
        let mut early = 0;
        for step in 1..=100 {
            let (now, is_tick) = (from + SECOND / 100 * step, step % 10 == 0);
            let is_early = !is_tick && looks.next().is_some_and(|at| at <= now);
            if is_early || is_tick {
                looks.looked(now, is_early, decides(step));
            }
            early += u32::from(is_early);
        }
        early
    }

    #[test]
    fn trouble_is_looked_into_at_once_and_for_long_only_now_and_then() {
        let mut looks = EarlyLooks::new();
        let seconds: Vec<u32> =
            (1..5).map(|second| in_a_second(&mut looks, SECOND * second, |_| false)).collect();
        assert_eq!(seconds, [90, 70, 5, 5]);
    }

    #[test]
    fn looks_that_lead_to_something_are_not_rationed() {
        let mut looks = EarlyLooks::new();
        assert_eq!(in_a_second(&mut looks, SECOND, |step| step % 5 == 0), 90);
    }

    #[test]
    fn the_allowance_comes_back() {
        let mut looks = EarlyLooks::new();
        let last = (1..4).map(|second| in_a_second(&mut looks, SECOND * second, |_| false)).last();
        assert_eq!(last, Some(5));
        looks.looked(SECOND * 20, false, false);
        assert_eq!(looks.next(), Some(SECOND * 20 + APART));
        assert!(in_a_second(&mut looks, SECOND * 20, |_| false) > 80);
    }

    #[test]
    fn two_looks_are_not_taken_at_once() {
        let mut looks = EarlyLooks::new();
        looks.looked(SECOND, true, false);
        assert_eq!(looks.next(), Some(SECOND + APART));
    }
}

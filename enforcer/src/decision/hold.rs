//! How much may BE keep? The search for the largest share that keeps the objectives.
//!
//! Starts at the floor, goes up while the objectives are surely met, and back as soon as one is surely missed. A share
//! that failed is avoided for a while, longer each time it fails again, so that at rest nothing moves.

use std::time::Duration;

use crate::signal::tally::Tally;

use super::ALLOWED;

/// After a change, evidence counts only from here on.
const SETTLE: Duration = Duration::from_millis(300);
/// A share is kept at least this long before it is raised.
const RAISE_AFTER: Duration = Duration::from_secs(2);
/// Evidence older than this says little about now: it loses half its weight.
const FADE: Duration = Duration::from_secs(10);
/// Smallest change of the share; below it there is the floor.
const STEP_MIN: f64 = 0.05;
/// How long a share that failed is avoided, doubled when the next attempt fails too.
const AVOID_MIN: Duration = Duration::from_mins(1);
const AVOID_MAX: Duration = Duration::from_mins(16);
/// One-sided bounds: 95 % sure to be met, 99 % sure to be missed.
const Z_MET: f64 = 1.645;
const Z_MISSED: f64 = 2.326;

/// What to do with the share in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Keep,
    Change,
    /// The objectives are met without any limit.
    Release,
}

/// A share that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failure {
    share: f64,
    avoid_until: Duration,
    avoid: Duration,
}

impl Failure {
    /// A failure of `share` at `now`. One that follows soon on the end of an earlier one's avoidance is a repetition.
    pub fn new(share: f64, now: Duration, earlier: Option<Self>) -> Self {
        let repeated = earlier.filter(|earlier| now < earlier.avoid_until + earlier.avoid);
        let avoid = repeated.map_or(AVOID_MIN, |earlier| (earlier.avoid * 2).min(AVOID_MAX));
        Self { share, avoid_until: now + avoid, avoid }
    }
}

/// The search.
#[derive(Clone, Debug)]
pub struct Hold {
    share: f64,
    /// The share before it was last raised, if that was the last change.
    raised_from: Option<f64>,
    changed_at: Duration,
    fades_at: Duration,
    /// Per objective, since the last change.
    evidence: Vec<Tally>,
    failure: Option<Failure>,
}

impl Hold {
    /// Starts at the floor. `failure`: a share that is known to be too much.
    pub fn start(now: Duration, objectives: usize, failure: Option<Failure>) -> Self {
        let evidence = vec![Tally::default(); objectives];
        Self { share: 0.0, raised_from: None, changed_at: now, fades_at: now + FADE, evidence, failure }
    }

    /// The share of what BE wants above its floor that it may keep: 0 to 1.
    pub const fn share(&self) -> f64 {
        self.share
    }

    /// The last share that failed.
    pub const fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Forgets the evidence, because something else was in force meanwhile.
    pub fn restart(&mut self, now: Duration) {
        self.changed_at = now;
        self.fades_at = now + FADE;
        self.evidence.fill(Tally::default());
    }

    /// Takes in what was counted since the last observation, per objective; `None` where it says nothing about BE.
    pub fn observe(&mut self, now: Duration, tallies: impl Iterator<Item = Option<Tally>>) -> Verdict {
        if now < self.changed_at + SETTLE {
            return Verdict::Keep;
        }
        for (evidence, tally) in self.evidence.iter_mut().zip(tallies) {
            *evidence += tally.unwrap_or_default();
        }
        if now >= self.fades_at {
            self.fades_at = now + FADE;
            for evidence in &mut self.evidence {
                *evidence = Tally { total: evidence.total / 2, slow: evidence.slow / 2 };
            }
        }
        if self.is_missed() {
            return self.lower(now);
        }
        if now >= self.changed_at + RAISE_AFTER && self.is_met() {
            return self.raise(now);
        }
        Verdict::Keep
    }

    fn is_missed(&self) -> bool {
        self.evidence.iter().any(|evidence| evidence.wilson(Z_MISSED).0 > ALLOWED)
    }

    /// Objectives without any traffic have nothing against more BE.
    fn is_met(&self) -> bool {
        let mut heard = self.evidence.iter().filter(|evidence| evidence.total > 0).peekable();
        heard.peek().is_some() && heard.all(|evidence| evidence.wilson(Z_MET).1 < ALLOWED)
    }

    fn lower(&mut self, now: Duration) -> Verdict {
        if self.share == 0.0 {
            return Verdict::Keep;
        }
        self.failure = Some(Failure::new(self.share, now, self.failure));
        // One step too far: back to what worked. Otherwise conditions got worse: half as much.
        let halved = if self.share < 2.0 * STEP_MIN { 0.0 } else { self.share / 2.0 };
        self.share = self.raised_from.take().unwrap_or(halved);
        self.restart(now);
        Verdict::Change
    }

    fn raise(&mut self, now: Duration) -> Verdict {
        let mut next = self.share + (self.share / 2.0).max(STEP_MIN);
        if let Some(failure) = self.failure.filter(|failure| now < failure.avoid_until) {
            next = next.min(f64::midpoint(self.share, failure.share));
            if next < self.share + STEP_MIN / 2.0 {
                return Verdict::Keep;
            }
        }
        if next >= 1.0 {
            return Verdict::Release;
        }
        self.raised_from = Some(self.share);
        self.share = next;
        self.restart(now);
        Verdict::Change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// Runs the search against an LS group in which `slow(share)` of 1,000 requests are slow. Shares over time, one per
    /// second; ends early on release.
    fn run(seconds: u32, mut slow: impl FnMut(f64) -> u64) -> Vec<f64> {
        let mut hold = Hold::start(Duration::ZERO, 1, None);
        let mut shares = Vec::new();
        let mut part = 0;
        for tick in 1..seconds * 10 {
            part += slow(hold.share());
            let tally = Tally { total: 100, slow: part / 10 };
            part %= 10;
            if hold.observe(TICK * tick, std::iter::once(Some(tally))) == Verdict::Release {
                shares.push(1.0);
                break;
            }
            if tick % 10 == 0 {
                shares.push(hold.share());
            }
        }
        shares
    }

    #[test]
    fn the_largest_share_that_works_is_found_and_held() {
        // Up to a share of 0.4, 0.3 % are slow; above, 4 %.
        let shares = run(55, |share| if share <= 0.4 { 3 } else { 40 });
        let at_rest = &shares[25..];
        assert!(at_rest.iter().all(|share| (0.2..=0.4).contains(share)), "{shares:?}");
        let changes = at_rest.windows(2).filter(|pair| (pair[0] - pair[1]).abs() > 1e-9).count();
        assert!(changes <= 2, "{shares:?}");
    }

    #[test]
    fn a_be_that_does_no_harm_any_more_is_released() {
        let shares = run(60, |_| 2);
        assert_eq!(shares.last(), Some(&1.0), "{shares:?}");
        assert!(shares.len() < 40, "{shares:?}");
    }

    #[test]
    fn an_objective_that_is_missed_even_at_the_floor_keeps_it_there() {
        assert!(run(30, |_| 30).iter().all(|share| *share == 0.0));
    }

    #[test]
    fn no_traffic_is_no_reason_to_give_back() {
        let mut hold = Hold::start(Duration::ZERO, 1, None);
        for tick in 1..100 {
            assert_eq!(hold.observe(TICK * tick, std::iter::once(None)), Verdict::Keep);
        }
    }
}

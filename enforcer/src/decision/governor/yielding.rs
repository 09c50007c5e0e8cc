//! BE yields: it runs only where nobody else wants the CPU.
//!
//! A CPU on which only such tasks run counts as idle to the kernel when it looks for one for a task that wakes up
//! (`sched_idle_cpu` in kernel/sched/fair.c). Beside BE that does not yield, it finds none, and LS queues up behind LS or
//! behind the system's tasks, for which no blame on BE would ever be seen. It costs BE next to nothing, so it is done before
//! anything is proven.

use std::time::Duration;

use crate::{
    decision::{cause::Cause, plan::Objective, trial::Effect},
    signal::tally::{ALLOWED, Tally},
};

/// How long BE yields; doubled each time the trouble comes back soon.
const YIELDS_MIN: Duration = Duration::from_mins(1);
const YIELDS_MAX: Duration = Duration::from_mins(30);
/// The trouble came back if it did within this time.
const SOON: Duration = Duration::from_mins(5);
/// Where it did not help it is not done again for so long, doubled each time.
const IN_VAIN_MIN: Duration = Duration::from_mins(1);
const IN_VAIN_MAX: Duration = Duration::from_mins(30);
/// A floor is a mean over some ten seconds.
const STARVES: Duration = Duration::from_secs(5);
/// It has helped if no more than this part of the slow share is left.
const HELPED: f64 = 0.5;
/// What it does takes a moment to show, and what was seen long ago loses half its weight.
const SETTLE: Duration = Duration::from_secs(1);
const FADE: Duration = Duration::from_secs(30);

/// All BE that can yields, for the sake of one objective.
#[derive(Clone, Copy, Debug)]
pub struct Yielding {
    pub watched: Objective,
    /// What it seemed to suffer from when this began.
    pub cause: Cause,
    pub until: Duration,
    /// The slow share that it began for.
    before: Option<f64>,
    /// What was counted since.
    since: Tally,
    counts_from: Duration,
    fades_at: Duration,
    hunger: Hunger,
}

impl Yielding {
    /// Begins now, because of a slow share of `before`, unless nothing was heard.
    pub fn begin(
        now: Duration,
        watched: Objective,
        cause: Cause,
        before: Option<f64>,
        until: Duration,
    ) -> Self {
        Self {
            watched,
            cause,
            until,
            before,
            since: Tally::default(),
            counts_from: now + SETTLE,
            fades_at: now + FADE,
            hunger: Hunger(None),
        }
    }

    /// Takes in what was counted while BE yielded.
    pub fn observe(&mut self, now: Duration, tally: Tally) {
        if now < self.counts_from {
            return;
        }
        if now >= self.fades_at {
            self.fades_at = now + FADE;
            self.since = self.since.halved();
        }
        self.since += tally;
    }

    /// Goes on after a trial, in which BE could not show whether it starves.
    #[must_use]
    pub const fn resumed(mut self) -> Self {
        self.hunger = Hunger(None);
        self
    }

    /// Whether the objective is met, as far as was counted.
    pub fn is_met(&self) -> bool {
        self.since.share().is_some_and(|share| share <= ALLOWED)
    }

    /// Whether it has helped, after a trial for some objective in which BE that was not stopped yielded.
    pub fn has_helped(&self, watched: Objective, effect: Effect) -> bool {
        let seen = if watched == self.watched { self.since + effect.with_be } else { self.since };
        let much = self.before.map_or(ALLOWED, |before| ALLOWED.max(HELPED * before));
        seen.share().is_some_and(|share| share <= much)
    }

    /// Takes note of whether BE has less than its floors. Whether it has had for too long.
    pub fn starves(&mut self, now: Duration, below_floors: bool) -> bool {
        self.hunger.is_long(now, below_floors)
    }
}

/// Since when BE, which yields to too many, has had less than its floors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hunger(Option<Duration>);

impl Hunger {
    /// Takes note of whether it has. Whether it has had for too long.
    pub fn is_long(&mut self, now: Duration, below_floors: bool) -> bool {
        self.0 = below_floors.then(|| self.0.unwrap_or(now));
        self.0.is_some_and(|since| now >= since + STARVES)
    }
}

/// What yielding has done for one objective so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Experience {
    lasted: Duration,
    ended_at: Duration,
    in_vain_for: Duration,
    not_before: Duration,
}

impl Experience {
    /// Whether it is worth another go.
    pub fn is_promising(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    /// BE begins to yield. Until when?
    pub fn begin(&mut self, now: Duration) -> Duration {
        let is_back = !self.lasted.is_zero() && now < self.ended_at + SOON;
        self.lasted = if is_back { (self.lasted * 2).min(YIELDS_MAX) } else { YIELDS_MIN };
        self.ended_at = now + self.lasted;
        self.ended_at
    }

    /// Its time was up.
    pub const fn ended(&mut self, now: Duration) {
        self.ended_at = now;
    }

    /// It was enough.
    pub const fn helped(&mut self) {
        (self.in_vain_for, self.not_before) = (Duration::ZERO, Duration::ZERO);
    }

    /// It was of no use, or too dear.
    pub fn was_in_vain(&mut self, now: Duration) {
        self.in_vain_for = (self.in_vain_for * 2).clamp(IN_VAIN_MIN, IN_VAIN_MAX);
        self.not_before = now + self.in_vain_for;
        self.lasted = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn trouble_that_comes_back_makes_be_yield_for_longer() {
        let mut experience = Experience::default();
        let mut now = SECOND * 100;
        let mut lasted = Vec::new();
        for pause in [SECOND * 10, SECOND * 10, SECOND * 1_000, SECOND * 10] {
            let until = experience.begin(now);
            lasted.push(until.saturating_sub(now).as_secs());
            experience.ended(until);
            now = until + pause;
        }
        assert_eq!(lasted, [60, 120, 240, 60]);
    }

    #[test]
    fn what_was_in_vain_is_not_done_again_soon() {
        let mut experience = Experience::default();
        let mut now = SECOND * 100;
        assert!(experience.is_promising(now));
        let mut waits = Vec::new();
        for _ in 0..7 {
            experience.begin(now);
            experience.was_in_vain(now);
            let wait = (1..10_000).find(|&seconds| experience.is_promising(now + SECOND * seconds)).unwrap();
            waits.push(wait);
            now += SECOND * wait;
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 1_800, 1_800]);
    }
}

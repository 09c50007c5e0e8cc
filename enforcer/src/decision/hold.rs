//! How much may BE keep? The search for the largest share that keeps the objectives.
//!
//! Goes up while the objectives are surely met and would be with more, and down as soon as one is surely missed. A share that
//! failed is avoided for a while, longer each time it fails again, so that at rest nothing moves. What is found is kept by load:
//! see [`Bands`]. One stall delays hundreds of requests and says nothing of a share: it takes several bad moments to fail.

use std::{collections::BTreeMap, time::Duration};

use super::{bands::Bands, plan::Objective, stretches::Stretches};
use crate::signal::tally::{ALLOWED, Tally};

/// After a change, evidence counts only from here on.
const SETTLE: Duration = Duration::from_millis(300);
/// A share is kept at least this long before it is raised. Slow requests come in clumps, and a second without any is luck.
const RAISE_AFTER: Duration = Duration::from_secs(2);
/// Evidence older than this says little about now: it loses half its weight.
const FADE: Duration = Duration::from_secs(10);
/// A moment.
const MOMENT: Duration = Duration::from_millis(100);
/// Smallest change of the share; below it there is the floor.
const STEP_MIN: f64 = 0.05;
/// A share is raised by half, or this if that is more.
const RAISE_MIN: f64 = 0.1;
/// After so long without any limit, the search ends; twice as long each time that what it was for comes back soon.
const READY_MIN: Duration = Duration::from_mins(1);
const READY_MAX: Duration = Duration::from_mins(30);
/// The slow share that a new share aims at, of what is allowed.
const AIM: f64 = 0.7;

/// What to do with the share in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Keep,
    Change,
    /// The objectives have long not been missed without any limit.
    Release,
}

/// The search.
#[derive(Clone, Debug)]
pub struct Hold {
    share: f64,
    /// The share before it was last raised, if that was the last change.
    raised_from: Option<f64>,
    changed_at: Duration,
    fades_at: Duration,
    observed_until: Duration,
    /// Per objective, since the last change.
    evidence: BTreeMap<Objective, Evidence>,
    bands: Bands,
    /// Since when BE has had everything, at whatever load.
    free_since: Option<Duration>,
    patience: Patience,
}

/// How long no limit must do before a search ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(READY_MIN)
    }
}

impl Patience {
    fn doubled(self) -> Self {
        Self((self.0 * 2).min(READY_MAX))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    tally: Tally,
    moments: Stretches,
}

impl Evidence {
    fn is_surely_missed(self) -> bool {
        self.tally.is_surely_missed() && self.moments.are_surely_bad()
    }

    fn is_surely_met(self) -> bool {
        self.tally.is_surely_met() && self.moments.are_surely_good()
    }
}

impl Hold {
    /// Starts with what is known of this load, or with `share` where nothing is.
    pub fn start(now: Duration, bands: Bands, share: f64) -> Self {
        let share = bands.start().unwrap_or(share);
        Self {
            share,
            raised_from: None,
            changed_at: now,
            fades_at: now + FADE,
            observed_until: now,
            evidence: BTreeMap::new(),
            bands,
            free_since: (share >= 1.0).then_some(now),
            patience: Patience::default(),
        }
    }

    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Of a search that follows soon on this one.
    pub const fn patience(&self) -> Patience {
        self.patience
    }

    /// The share of what BE wants above its floor that it may keep: 0 to 1.
    pub const fn share(&self) -> f64 {
        self.share
    }

    /// What was learned.
    pub fn into_bands(self) -> Bands {
        self.bands
    }

    /// BE may have everything at this load: the objective was met with all of it.
    pub fn allow_all(&mut self) {
        self.bands.note(1.0);
    }

    /// Forgets the evidence, because something else was in force meanwhile.
    pub fn restart(&mut self, now: Duration) {
        self.changed_at = now;
        self.fades_at = now + FADE;
        self.evidence.clear();
    }

    /// Takes in what was counted since the last observation, per objective of which it says something about BE.
    /// `load_hz`: what the victim is asked now.
    pub fn observe(
        &mut self,
        now: Duration,
        load_hz: f64,
        tallies: impl Iterator<Item = (Objective, Tally)>,
    ) -> Verdict {
        let elapsed = now.saturating_sub(std::mem::replace(&mut self.observed_until, now));
        if self.bands.follow(load_hz, now) {
            let share = self.bands.start().unwrap_or(self.share);
            return self.change(now, share, None);
        }
        if now < self.changed_at + SETTLE {
            return Verdict::Keep;
        }
        for (objective, tally) in tallies {
            let evidence = self.evidence.entry(objective).or_default();
            evidence.tally += tally;
            evidence.moments.observe(tally, elapsed, MOMENT);
        }
        if now >= self.fades_at {
            self.fades_at = now + FADE;
            for evidence in self.evidence.values_mut() {
                evidence.tally = evidence.tally.halved();
            }
        }
        if self.is_missed() {
            return self.lower(now);
        }
        if self.share >= 1.0 {
            // Not missed will do: where little is heard, met is never sure.
            if self.free_since.is_none_or(|since| now < since + self.patience.0) {
                return Verdict::Keep;
            }
            self.patience = self.patience.doubled();
            return Verdict::Release;
        }
        if now >= self.changed_at + RAISE_AFTER && self.is_met() {
            return self.raise(now);
        }
        Verdict::Keep
    }

    /// Whether an objective is surely missed although BE has its floor only.
    pub fn is_in_vain(&self) -> bool {
        self.share == 0.0 && self.is_missed()
    }

    fn is_missed(&self) -> bool {
        self.evidence.values().copied().any(Evidence::is_surely_missed)
    }

    /// Objectives without any traffic have nothing against more BE.
    fn is_met(&self) -> bool {
        let mut heard =
            self.evidence.values().copied().filter(|evidence| evidence.tally.total > 0).peekable();
        heard.peek().is_some() && heard.all(Evidence::is_surely_met)
    }

    /// The slow share of the objective that fares worst.
    fn worst(&self) -> f64 {
        self.evidence.values().filter_map(|evidence| evidence.tally.share()).fold(0.0, f64::max)
    }

    /// The share at which so many would be slow as is aimed at: under a quota BE runs at full speed for its share of the time.
    fn in_proportion(&self) -> f64 {
        self.share * AIM * ALLOWED / self.worst()
    }

    fn lower(&mut self, now: Duration) -> Verdict {
        if self.share == 0.0 {
            return Verdict::Keep;
        }
        self.bands.failed(self.share, now);
        // One step too far: back to what worked. Otherwise conditions got worse.
        let lower = self.in_proportion();
        let lower = if lower < STEP_MIN { 0.0 } else { lower };
        let share = self.raised_from.map_or(lower, |from| from.min(self.share));
        self.change(now, share, None)
    }

    fn raise(&mut self, now: Duration) -> Verdict {
        let mut next = self.share + (self.share / 2.0).max(RAISE_MIN);
        // Of what is slow at the floor, nobody knows how much is BE's doing.
        if self.share > 0.0 {
            next = next.min(self.in_proportion());
        }
        if let Some(avoided) = self.bands.avoided(now) {
            next = next.min(f64::midpoint(self.share, avoided));
        }
        if next < self.share + STEP_MIN / 2.0 {
            return Verdict::Keep;
        }
        self.change(now, next.min(1.0), Some(self.share))
    }

    fn change(&mut self, now: Duration, share: f64, raised_from: Option<f64>) -> Verdict {
        let is_change = (share - self.share).abs() > f64::EPSILON;
        (self.share, self.raised_from) = (share, raised_from);
        self.free_since = (share >= 1.0).then(|| self.free_since.unwrap_or(now));
        self.bands.note(share);
        self.restart(now);
        if is_change { Verdict::Change } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{GroupId, Signal},
        units::whole_unsigned,
    };

    const TICK: Duration = Duration::from_millis(100);

    /// Of the only objective.
    fn one(tally: Tally) -> impl Iterator<Item = (Objective, Tally)> {
        std::iter::once((Objective { victim: GroupId(0), signal: Signal::RequestLatency }, tally))
    }

    /// Runs the search against an LS group in which `slow(share)` of 1,000 requests are slow. Shares over time, one per
    /// second; ends early on release.
    fn run(seconds: u32, mut slow: impl FnMut(f64) -> u64) -> Vec<f64> {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 0.0);
        let mut shares = Vec::new();
        let mut part = 0;
        for tick in 1..seconds * 10 {
            part += slow(hold.share());
            let tally = Tally { total: 100, slow: part / 10 };
            part %= 10;
            if hold.observe(TICK * tick, 1000.0, one(tally)) == Verdict::Release {
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
    fn a_share_is_not_raised_to_where_too_many_would_be_slow() {
        // In proportion: 1.5 % with all of BE.
        let shares = run(60, |share| whole_unsigned(15.0 * share));
        assert!(shares.iter().all(|share| *share < 0.55), "{shares:?}");
        assert!(shares.last() > Some(&0.4), "{shares:?}");
    }

    #[test]
    fn clumps_that_are_barely_allowed_are_no_reason_to_raise() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 0.5);
        for tick in 1..300 {
            let slow = if tick % 12 == 0 { 10 } else { 0 };
            hold.observe(TICK * tick, 1_000.0, one(Tally { total: 100, slow }));
        }
        assert!((hold.share() - 0.5).abs() < f64::EPSILON, "{}", hold.share());
    }

    #[test]
    fn a_be_that_does_no_harm_any_more_is_released() {
        let shares = run(120, |_| 2);
        let free = shares.iter().position(|share| *share >= 1.0).unwrap_or(usize::MAX);
        assert!(free < 20, "{shares:?}");
        assert!((free + 60..free + 62).contains(&shares.len()), "and forgotten a minute later: {shares:?}");
    }

    #[test]
    fn one_stall_says_nothing_of_a_share() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 0.5);
        for tick in 1..10 {
            let slow = if tick == 5 { 400 } else { 0 };
            hold.observe(TICK * tick, 10_000.0, one(Tally { total: 1_000, slow }));
        }
        assert!(hold.share() > 0.49, "{}", hold.share());
        // Again and again, and it does.
        for tick in 10..30 {
            let slow = if tick % 3 == 0 { 400 } else { 0 };
            hold.observe(TICK * tick, 10_000.0, one(Tally { total: 1_000, slow }));
        }
        assert!(hold.share() < 0.1, "{}", hold.share());
    }

    #[test]
    fn stalls_that_are_seconds_apart_fail_a_share_in_the_end() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 1.0);
        let failed = (1..600_u32).find(|&tick| {
            let slow = if tick % 30 == 7 { 750 } else { 0 };
            hold.observe(TICK * tick, 10_000.0, one(Tally { total: 1_000, slow }));
            hold.share() < 1.0
        });
        assert!(failed.is_some_and(|tick| (90..400).contains(&tick)), "{failed:?}");
    }

    #[test]
    fn an_objective_that_is_missed_even_at_the_floor_keeps_it_there() {
        assert!(run(30, |_| 30).iter().all(|share| *share == 0.0));
    }

    #[test]
    fn no_traffic_is_no_reason_to_give_back() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 0.0);
        for tick in 1..100 {
            assert_eq!(hold.observe(TICK * tick, 1000.0, std::iter::empty()), Verdict::Keep);
        }
    }

    #[test]
    fn another_load_gets_what_worked_there_soon_and_a_heavier_one_at_once() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 1.0);
        // At 300 requests per second nothing hurts, at 900 every share above 0.2 does. Twenty seconds each, in turns.
        let mut slow_in_last_turns = 0;
        for tick in 1..1200_u32 {
            let busy = tick / 200 % 2 == 1;
            let (rate, total) = if busy { (900.0, 90) } else { (300.0, 30) };
            let slow = u64::from(busy && hold.share() > 0.2) * 5;
            if tick > 800 {
                slow_in_last_turns += slow;
            }
            let tally = Tally { total, slow };
            hold.observe(TICK * tick, rate, one(tally));
            if tick > 800 && !busy && tick % 200 > 15 {
                assert!(hold.share() > 0.9, "{} at {tick}", hold.share());
            }
        }
        assert!(slow_in_last_turns <= 10, "{slow_in_last_turns}");
    }

    #[test]
    fn a_victim_that_is_starved_by_all_of_be_is_seen_to_be_although_its_rate_swings() {
        let mut hold = Hold::start(Duration::ZERO, Bands::default(), 1.0);
        let lowered = (1..100_u32).find(|&tick| {
            let rate = [1_000.0, 650.0, 1_250.0, 580.0][tick as usize % 4];
            hold.observe(TICK * tick, rate, one(Tally { total: 80, slow: 50 }));
            hold.share() < 1.0
        });
        assert!(lowered.is_some_and(|tick| tick <= 20), "{lowered:?}");
    }
}

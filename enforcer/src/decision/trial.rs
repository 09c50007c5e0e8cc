//! Is BE the cause? A switchback experiment.
//!
//! BE is stopped and let run in turns, in random order within each pair of windows, and the slow counts of both kinds
//! are compared. Drift of the host hits both alike, and unlike "before against after" the comparison does not suffer
//! from having been started by a bad moment. Each window's first part is left out: queues drain, caches refill.
//!
//! One stall delays all requests that come meanwhile, so as many independent ones as the comparison takes them for there may not
//! be: it is corrected by how much windows of the same kind differ from each other. Where they differ too much to tell, only
//! the pairs count: how probable is it that they fall out like that if the order within each is all that differs?

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::signal::tally::{ALLOWED, Tally};

/// Left out at the start of each window.
const SETTLE: Duration = Duration::from_millis(100);
/// Counted part of a window, at least. Long enough for a hundred requests at 300 per second.
const WINDOW_MIN: Duration = Duration::from_millis(300);
/// Counted part of a window, at most: BE stands still that long.
const WINDOW_MAX: Duration = Duration::from_secs(2);
/// Requests that a window should count, where the rate allows.
const WINDOW_REQUESTS: f64 = 100.0;
/// The experiment ends undecided after so many pairs, or so many if there is doubt, or windows differ too much to tell but the
/// pairs promise something.
const PAIRS_MAX: u32 = 8;
const PAIRS_PROLONGED: u32 = 16;
/// Pairs before anything is decided, and after which an effect must show.
const PAIRS_MIN: u32 = 2;
const PAIRS_PROMISING: u32 = 4;
/// Standard deviations that prove the effect. High, because the proof is looked for after every pair.
const Z_HELPS: f64 = 3.0;
/// Standard deviations without which it is no use to go on, right after [`PAIRS_MIN`] and from [`PAIRS_PROMISING`] on. A
/// trial costs BE half its time: one in which stopping it has made nothing better so far ends.
const Z_FUTILE: f64 = 0.0;
const Z_PROMISING: f64 = 1.0;
/// Standard deviations that are too many to speak for BE, if stopping it leaves no more than this part of the slow share.
const Z_DOUBTFUL: f64 = 2.0;
const LEFT_DOUBTFUL: f64 = 0.5;
/// Windows that differ so much more than by chance: a few stalls and not many slow requests.
const DISPERSED: f64 = 4.0;
/// Chances by which the pairs prove the effect, and by which they promise one.
const CHANCE_HELPS: f64 = 0.005;
const CHANCE_PROMISING: f64 = 0.1;

/// What stopping BE does to a victim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// While BE ran.
    pub with_be: Tally,
    /// While BE was stopped.
    pub without_be: Tally,
    /// How much more windows of the same kind differ than independent requests would make them, as a ratio of variances. 0:
    /// not known. (R. W. M. Wedderburn, 1974, quasi-likelihood.)
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dispersion: f64,
    /// The chance that as much more, or yet more, was slow in the windows with BE if only the order within each pair made the
    /// difference. `None`: was not needed. (R. A. Fisher, 1935, randomisation test.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// CPU seconds that BE would have had in the windows in which it was stopped, by what it used in the others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub be_lost_core_seconds: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Effect {
    /// How many standard deviations more was slow while BE ran.
    pub fn z(self) -> f64 {
        self.with_be.z_above(self.without_be) / self.dispersion.max(1.0).sqrt()
    }

    /// Nothing was compared.
    pub const fn is_nothing(self) -> bool {
        self.with_be.total == 0 && self.without_be.total == 0
    }

    /// Nothing was compared, what was slow came in a few stalls, too few to tell, or much less was slow without BE, and yet not
    /// surely for that.
    pub fn is_undecided(self) -> bool {
        let is_open = self.z().abs() < Z_HELPS && !self.is_shown_by_pairs();
        self.is_nothing() || (is_open && (self.is_dispersed() || self.is_doubtful()))
    }

    /// What was slow came in a few stalls.
    pub fn is_dispersed(self) -> bool {
        self.dispersion >= DISPERSED
    }

    fn is_doubtful(self) -> bool {
        let shares = self.with_be.share().zip(self.without_be.share());
        self.z() >= Z_DOUBTFUL && shares.is_some_and(|(with, without)| without <= LEFT_DOUBTFUL * with)
    }

    fn is_shown_by_pairs(self) -> bool {
        self.chance.is_some_and(|chance| chance <= CHANCE_HELPS)
    }

    /// The objective was met while BE ran: however much BE slows its victim down, it may.
    pub fn is_met_with_be(self) -> bool {
        self.with_be.share().is_some_and(|share| share < ALLOWED)
    }

    /// BE is proven to make its victim miss the objective.
    pub fn is_harm(self) -> bool {
        (self.z() >= Z_HELPS || self.is_shown_by_pairs()) && !self.is_met_with_be()
    }
}

/// How an experiment stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Go on, with BE stopped or not.
    Continue { stop_be: bool },
    /// Stopping BE helps.
    Helps(Effect),
    /// The objective is met while BE runs: what raised the alarm has passed.
    Met(Effect),
    /// It does not, or not measurably.
    NoHelp(Effect),
}

impl Step {
    /// The same with what it cost BE, if it is the end.
    #[must_use]
    pub const fn at_a_cost_of(self, be_lost_core_seconds: f64) -> Self {
        match self {
            Self::Continue { .. } => self,
            Self::Helps(effect) => Self::Helps(Effect { be_lost_core_seconds, ..effect }),
            Self::Met(effect) => Self::Met(Effect { be_lost_core_seconds, ..effect }),
            Self::NoHelp(effect) => Self::NoHelp(Effect { be_lost_core_seconds, ..effect }),
        }
    }
}

/// A running experiment.
#[derive(Clone, Debug)]
pub struct Trial {
    window: Duration,
    effect: Effect,
    /// The window that goes on, and those of each kind that ended.
    counted: Tally,
    with_be: Vec<Tally>,
    without_be: Vec<Tally>,
    pairs: u32,
    stop_be: bool,
    is_second: bool,
    window_began: Duration,
    observed_until: Duration,
    /// How long nothing comparable was counted.
    spoilt: Duration,
    random: u64,
}

impl Trial {
    /// Starts by stopping BE: if it is the cause, help comes at once. `rate_hz`: requests (or waits) per second.
    pub fn start(now: Duration, rate_hz: f64, seed: u64) -> Self {
        let window = WINDOW_REQUESTS / rate_hz.max(0.1);
        let window = Duration::from_secs_f64(window).clamp(WINDOW_MIN, WINDOW_MAX);
        Self {
            window,
            effect: Effect::default(),
            counted: Tally::default(),
            with_be: Vec::new(),
            without_be: Vec::new(),
            pairs: 0,
            stop_be: true,
            is_second: false,
            window_began: now,
            observed_until: now,
            spoilt: Duration::ZERO,
            random: seed | 1,
        }
    }

    /// BE that did not run for longer than this, while it might, has ended: the two windows in a row in which it is stopped.
    pub fn longest_stop(&self) -> Duration {
        (SETTLE + self.window) * 2 + SETTLE
    }

    /// Whether the hypervisor has taken the CPUs away for so long that it is no use to go on: BE would stand still for nothing.
    pub fn is_spoilt(&self) -> bool {
        self.spoilt > self.longest_stop()
    }

    /// Whether BE is to be stopped now.
    pub const fn stops_be(&self) -> bool {
        self.stop_be
    }

    /// Takes in what was counted since the last observation (or the start), which ended at `now`. A tally that is not
    /// comparable, because the hypervisor took the CPUs away meanwhile, is `None` and lengthens the window.
    pub fn observe(&mut self, now: Duration, tally: Option<Tally>) -> Step {
        let counted_from = self.window_began + SETTLE;
        // An observation that began up to a tenth too early still belongs to the counted part.
        let is_settled = self.observed_until + SETTLE / 10 >= counted_from;
        match tally {
            Some(tally) if is_settled => self.counted += tally,
            Some(_) => {}
            None => {
                let spoilt = now.saturating_sub(self.observed_until);
                self.window_began += spoilt;
                self.spoilt += spoilt;
            }
        }
        self.observed_until = now;
        if now + SETTLE / 10 < self.window_began + SETTLE + self.window {
            return Step::Continue { stop_be: self.stop_be };
        }
        self.window_began = now;
        self.end_window();
        if self.is_second {
            self.pairs += 1;
            self.effect.chance = None;
            if self.pairs >= PAIRS_MAX && self.effect.is_undecided() {
                self.effect.chance = Some(self.chance());
            }
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            // A new pair: either kind may come first.
            self.stop_be = self.coin();
        } else {
            self.stop_be = !self.stop_be;
        }
        self.is_second = !self.is_second;
        Step::Continue { stop_be: self.stop_be }
    }

    fn end_window(&mut self) {
        let counted = std::mem::take(&mut self.counted);
        let (all, of_kind) = if self.stop_be {
            (&mut self.effect.without_be, &mut self.without_be)
        } else {
            (&mut self.effect.with_be, &mut self.with_be)
        };
        *all += counted;
        of_kind.push(counted);
        let freedom = (self.with_be.len() + self.without_be.len()).saturating_sub(2);
        if freedom > 0 {
            let Effect { with_be, without_be, .. } = self.effect;
            let spread = chi_squared(&self.with_be, with_be) + chi_squared(&self.without_be, without_be);
            self.effect.dispersion = spread / freedom as f64;
        }
    }

    fn verdict(&self) -> Option<Step> {
        if self.pairs < PAIRS_MIN {
            return None;
        }
        let (effect, must_show) = (self.effect, self.pairs >= PAIRS_PROMISING);
        if effect.is_harm() {
            return Some(Step::Helps(effect));
        }
        if effect.with_be.is_surely_met() || (must_show && effect.is_met_with_be()) {
            return Some(Step::Met(effect));
        }
        let z = effect.z();
        let is_futile = z <= Z_FUTILE || (must_show && z < Z_PROMISING);
        let is_promising =
            effect.is_doubtful() || effect.chance.is_some_and(|chance| chance <= CHANCE_PROMISING);
        let pairs_max = if is_promising { PAIRS_PROLONGED } else { PAIRS_MAX };
        (is_futile || self.pairs >= pairs_max).then_some(Step::NoHelp(effect))
    }

    /// See [`Effect::chance`]. Of all orders of the pairs' windows, those in which they differ as much.
    fn chance(&self) -> f64 {
        let share = |window: &Tally| window.share().unwrap_or_default();
        let pairs = self.with_be.iter().zip(&self.without_be);
        let differences: Vec<f64> = pairs.map(|(with, without)| share(with) - share(without)).collect();
        // A rounding error less: the order that was is one of them.
        let seen = differences.iter().sum::<f64>() - 1e-9;
        let orders = 1_u32 << differences.len();
        let sum = |order: u32| -> f64 {
            let signed = differences.iter().enumerate();
            signed
                .map(|(pair, difference)| if order >> pair & 1 == 1 { -difference } else { *difference })
                .sum()
        };
        (0..orders).filter(|order| sum(*order) >= seen).count() as f64 / f64::from(orders)
    }

    /// xorshift64 (G. Marsaglia, 2003): the order need not be unpredictable, only unrelated to the load.
    const fn coin(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 63 == 1
    }
}

/// Pearson's statistic of windows, `all` in sum, that should have the same slow share.
fn chi_squared(windows: &[Tally], all: Tally) -> f64 {
    let Some(share) = all.share().filter(|share| *share > 0.0 && *share < 1.0) else { return 0.0 };
    let counted = windows.iter().filter(|window| window.total > 0);
    let of_window = |window: &Tally| {
        let expected = share * window.total as f64;
        (window.slow as f64 - expected).powi(2) / (expected * (1.0 - share))
    };
    counted.map(of_window).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// Runs a trial in which `slow(stopped, tick)` of 100 requests are slow in each tick. Verdict, ticks it took, ticks
    /// in which BE stood still.
    fn run(mut slow: impl FnMut(bool, u32) -> u64) -> (Step, u32, u32) {
        let mut trial = Trial::start(Duration::ZERO, 1000.0, 7);
        let mut stopped_ticks = 0;
        for tick in 1.. {
            let stopped = trial.stops_be();
            stopped_ticks += u32::from(stopped);
            let tally = Tally { total: 100, slow: slow(stopped, tick) };
            match trial.observe(TICK * tick, Some(tally)) {
                Step::Continue { stop_be } => assert_eq!(stop_be, trial.stops_be()),
                verdict => return (verdict, tick, stopped_ticks),
            }
        }
        unreachable!()
    }

    #[test]
    fn a_cause_is_proven_within_two_seconds() {
        let (verdict, ticks, _) = run(|stopped, _| if stopped { 1 } else { 5 });
        assert!(matches!(verdict, Step::Helps(effect) if effect.z() > 3.0), "{verdict:?}");
        assert!(ticks <= 20, "{ticks}");
    }

    #[test]
    fn a_host_that_is_slow_anyway_is_not_be_s_fault_and_costs_it_little() {
        let (verdict, ticks, stopped) = run(|_, _| 5);
        assert!(matches!(verdict, Step::NoHelp(_)), "{verdict:?}");
        assert_eq!((ticks, stopped), (16, 8), "two pairs of windows, half of them without BE");
    }

    #[test]
    fn a_trial_with_much_less_slow_without_be_goes_on_until_that_is_sure() {
        // 8 and 1 by turns in windows of 300, and 0 and 3 without BE.
        let mut windows = [0; 2];
        let (verdict, ticks, _) = run(|stopped, tick| {
            let windows = &mut windows[usize::from(stopped)];
            *windows += u64::from(tick % 4 == 1);
            let counts = if stopped { [0, 3] } else { [8, 1] };
            if tick % 4 == 3 { counts[usize::from(windows.is_multiple_of(2))] } else { 0 }
        });
        assert!(matches!(verdict, Step::Helps(effect) if !effect.is_undecided()), "{verdict:?}");
        assert!((9 * 8..=16 * 8).contains(&ticks), "{ticks}");
    }

    #[test]
    fn a_be_that_slows_its_victim_down_within_the_objective_may() {
        let (verdict, ticks, _) = run(|stopped, tick| u64::from(!stopped && tick % 2 == 0));
        assert!(matches!(verdict, Step::Met(_)), "{verdict:?}");
        assert!(ticks <= 32, "{ticks}");
    }

    #[test]
    fn one_stall_proves_nothing_however_many_requests_it_delays() {
        // In the second tick that BE runs, half of a tick's.
        let mut ran = 0;
        let (verdict, ..) = run(|stopped, _| {
            ran += u32::from(!stopped);
            if !stopped && ran == 3 { 50 } else { 0 }
        });
        let Step::NoHelp(effect) = verdict else { panic!("{verdict:?}") };
        assert!(effect.is_undecided(), "{effect:?}, z {}", effect.z());
        // Half of the time each, and it is an effect.
        let mut ran = 0;
        let (verdict, ..) = run(|stopped, _| {
            ran += u32::from(!stopped);
            if !stopped && ran % 8 == 3 { 50 } else { 0 }
        });
        assert!(matches!(verdict, Step::Helps(_)), "{verdict:?}");
    }

    #[test]
    fn stalls_of_all_lengths_prove_something_if_they_come_only_beside_be() {
        // A small one in each window, a large one in every fourth.
        let mut ran = 0;
        let (verdict, ticks, _) = run(|stopped, _| {
            ran += u32::from(!stopped);
            match (stopped, ran % 16) {
                (false, 6) => 100,
                (false, 2 | 10 | 14) => 8,
                _ => 0,
            }
        });
        let Step::Helps(effect) = verdict else { panic!("{verdict:?}") };
        assert!(effect.z() < 3.0 && effect.chance.is_some_and(|chance| chance <= 0.005), "{effect:?}");
        assert!((8 * 8..10 * 8).contains(&ticks), "{ticks}");
        // As many beside BE as without it: chance.
        let mut ran = [0; 2];
        let (verdict, ..) = run(|stopped, _| {
            let ran = &mut ran[usize::from(stopped)];
            *ran += 1;
            if *ran % 12 == if stopped { 7 } else { 3 } { 60 } else { 0 }
        });
        assert!(matches!(verdict, Step::NoHelp(_)), "{verdict:?}");
    }

    #[test]
    fn drift_does_not_look_like_an_effect() {
        // Ever slower, whatever BE does.
        let (verdict, ..) = run(|_, tick| u64::from(tick / 4));
        assert!(matches!(verdict, Step::NoHelp(_)), "{verdict:?}");
    }

    #[test]
    fn what_happens_right_after_a_change_is_left_out() {
        // Slow only in the first tick of each window.
        let (verdict, ..) = run(|_, tick| if tick % 4 == 1 { 90 } else { 0 });
        let Step::Met(effect) = verdict else { panic!("{verdict:?}") };
        assert_eq!(effect.with_be.slow + effect.without_be.slow, 0);
        assert_eq!(effect.with_be.total, 2 * 300);
    }

    #[test]
    fn slow_services_get_longer_windows() {
        let mut trial = Trial::start(Duration::ZERO, 50.0, 7);
        let changes = (1..=41).filter(|tick| {
            let before = trial.stops_be();
            trial.observe(TICK * *tick, Some(Tally { total: 5, slow: 0 }));
            trial.stops_be() != before
        });
        assert_eq!(changes.collect::<Vec<_>>(), [21], "100 requests take two seconds");
    }
}

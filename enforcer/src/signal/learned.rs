//! What is an LS group like without BE?
//!
//! An objective may be left to be learned: what it is while no BE runs (the p99, or the share of the time that tasks
//! stall for memory), times a factor. Only that time is listened to
//! ([`Stretch::is_quiet`]), so BE cannot raise what it is measured by, however long it runs. The first lesson is short,
//! so that there is an objective soon. It may have been heard at a bad moment (caches still cold, a deployment), so the
//! later ones, which are longer, are averaged with it; from [`MEMORY`] lessons on each new one moves the result by one
//! part in so many. A service that changed for good is followed within hours of quiet, one bad hour is not.

use std::time::Duration;

use super::histogram::Counts;

/// BE groups that use less than this many CPUs, all together, do not run.
const BE_CORES: f64 = 0.02;
/// Time that the hypervisor takes is no property of the group.
const STEAL_MAX: f64 = 0.02;
/// What is answered now may have begun when BE still ran. The histograms tell 8.6 s apart at most.
const SETTLE: Duration = Duration::from_secs(10);
/// A lesson on durations: so many heard at least, which puts thirty of them above the p99.
const HEARD: u64 = 3_000;
/// Any lesson: heard for so long, the first, and later ones.
const FIRST: Duration = Duration::from_secs(30);
const LATER: Duration = Duration::from_mins(5);
/// Lessons that the result remembers.
const MEMORY: u32 = 8;

/// A stretch of time, put together from looks at the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stretch {
    elapsed: Duration,
    stolen: Duration,
    be_cpu: Duration,
    /// Something that must be known is not.
    is_doubtful: bool,
}

impl Stretch {
    /// Adds a look, `elapsed` after the one before.
    pub fn look(&mut self, elapsed: Duration, steal: Option<f64>) {
        self.elapsed += elapsed;
        match steal {
            Some(share) => self.stolen += elapsed.mul_f64(share.clamp(0.0, 1.0)),
            None => self.is_doubtful = true,
        }
    }

    /// Adds CPU time of BE.
    pub fn be_ran(&mut self, time: Duration) {
        self.be_cpu += time;
    }

    /// What BE used cannot be told.
    pub const fn doubt(&mut self) {
        self.is_doubtful = true;
    }

    /// How long it is.
    pub const fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn be_rested(&self) -> bool {
        !self.is_doubtful && !self.elapsed.is_zero() && self.be_cpu < self.elapsed.mul_f64(BE_CORES)
    }

    /// Whether it tells what the node is like without BE. `rest`: how long BE has been at rest, kept between calls.
    pub fn is_quiet(&self, rest: &mut Duration) -> bool {
        let settled = *rest >= SETTLE;
        *rest = if self.be_rested() { rest.saturating_add(self.elapsed) } else { Duration::ZERO };
        settled && self.be_rested() && self.stolen < self.elapsed.mul_f64(STEAL_MAX)
    }
}

/// What was learned of one signal of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// Without BE: the p99 in seconds, or the share of the time that tasks stall.
    pub usual: f64,
    /// How often it was heard.
    pub lessons: u32,
}

/// Learns what is normal.
#[derive(Clone, Debug, Default)]
pub struct Learner {
    counts: Counts,
    stalled: Duration,
    heard_for: Duration,
    normal: Option<Normal>,
}

impl Learner {
    /// Goes on from what was learned before.
    pub fn knowing(normal: Option<Normal>) -> Self {
        Self { normal, ..Self::default() }
    }

    /// `None`: not enough was heard yet.
    pub const fn normal(&self) -> Option<Normal> {
        self.normal
    }

    /// Takes in what was counted in a quiet stretch. Whether a lesson was learned from it.
    pub fn hear(&mut self, counts: &Counts, elapsed: Duration) -> bool {
        self.counts.add(counts);
        self.heard_for += elapsed;
        if !self.was_long_enough() || self.counts.total() < HEARD {
            return false;
        }
        let Some(p99) = self.counts.quantile(0.99) else { return false };
        self.counts.clear();
        self.learn(p99.as_secs_f64(), by_ratio);
        true
    }

    /// Takes in how long tasks stalled in a quiet stretch, for all of it at most, as in [`super::memory::StallCounter`].
    /// Whether a lesson was learned from it.
    pub fn hear_stalls(&mut self, stalled: Duration, elapsed: Duration) -> bool {
        self.stalled += stalled.min(elapsed);
        self.heard_for += elapsed;
        if !self.was_long_enough() {
            return false;
        }
        let share = std::mem::take(&mut self.stalled).div_duration_f64(self.heard_for);
        self.learn(share, by_difference);
        true
    }

    fn was_long_enough(&self) -> bool {
        self.heard_for >= if self.normal.is_some() { LATER } else { FIRST }
    }

    /// `towards`: moves what is known by one part in so many towards what was heard.
    fn learn(&mut self, heard: f64, towards: fn(f64, f64, u32) -> f64) {
        self.heard_for = Duration::ZERO;
        self.normal = Some(match self.normal {
            None => Normal { usual: heard, lessons: 1 },
            Some(Normal { usual, lessons }) => {
                let lessons = lessons.saturating_add(1);
                Normal { usual: towards(usual, heard, lessons.min(MEMORY)), lessons }
            }
        });
    }
}

/// Times are compared by ratio, and one awful lesson must not count for more than its turn.
fn by_ratio(from: f64, to: f64, parts: u32) -> f64 {
    let (from, to) = (from.max(1e-9), to.max(1e-9));
    from * (to / from).powf(1.0 / f64::from(parts))
}

/// A share may be zero, and is never more than one.
fn by_difference(from: f64, to: f64, parts: u32) -> f64 {
    from + (to - from) / f64::from(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stretch(be_cores: f64, steal: Option<f64>) -> Stretch {
        let mut stretch = Stretch::default();
        stretch.look(SECOND, steal);
        stretch.be_ran(SECOND.mul_f64(be_cores));
        stretch
    }

    /// A second at 200 requests/s, of which 2 % take `ms`.
    fn second(ms: u64) -> Counts {
        let mut counts = Counts::default();
        for n in 0..200 {
            counts.record(Duration::from_millis(if n % 50 == 0 { ms } else { 1 }));
        }
        counts
    }

    fn seconds_until_lesson(learner: &mut Learner, ms: u64) -> u32 {
        (1..10_000).find(|_| learner.hear(&second(ms), SECOND)).unwrap()
    }

    fn p99_ms(learner: &Learner) -> f64 {
        learner.normal().unwrap().usual * 1e3
    }

    #[test]
    fn it_is_quiet_only_when_be_has_rested_for_long_enough() {
        let mut rest = Duration::ZERO;
        let mut is_quiet = |stretch: Stretch| stretch.is_quiet(&mut rest);
        assert!((0..10).all(|_| !is_quiet(stretch(0.0, Some(0.0)))), "not settled yet");
        assert!(is_quiet(stretch(0.019, Some(0.01))));
        assert!(!is_quiet(stretch(0.0, Some(0.03))), "stolen");
        assert!(is_quiet(stretch(0.0, Some(0.0))), "the theft is over");
        assert!(!is_quiet(stretch(0.021, Some(0.0))), "BE runs");
        assert!((0..10).all(|_| !is_quiet(stretch(0.0, Some(0.0)))), "what it did is still felt");
        assert!(is_quiet(stretch(0.0, Some(0.0))));
    }

    #[test]
    fn where_something_is_unknown_it_is_not_quiet() {
        let spoilers: [fn(&mut Stretch); 2] = [Stretch::doubt, |stretch| stretch.look(SECOND, None)];
        for spoil in spoilers {
            let mut rest = SETTLE;
            let mut doubtful = stretch(0.0, Some(0.0));
            spoil(&mut doubtful);
            assert!(!doubtful.is_quiet(&mut rest));
            assert_eq!(rest, Duration::ZERO);
        }
        let mut rest = SETTLE;
        assert!(!Stretch::default().is_quiet(&mut rest), "no time passed");
    }

    #[test]
    fn nothing_is_known_until_enough_was_heard() {
        let mut learner = Learner::default();
        assert_eq!(seconds_until_lesson(&mut learner, 4), 30);
        assert!((3.5..4.5).contains(&p99_ms(&learner)), "{learner:?}");
        // Ten requests per second take longer.
        let mut learner = Learner::default();
        let mut ten = Counts::default();
        (0..10).for_each(|_| ten.record(Duration::from_millis(2)));
        assert_eq!((1..10_000).find(|_| learner.hear(&ten, SECOND)), Some(300));
    }

    #[test]
    fn a_bad_first_lesson_is_outweighed_and_a_later_one_hardly_counts() {
        let mut learner = Learner::default();
        seconds_until_lesson(&mut learner, 64);
        for _ in 0..20 {
            assert_eq!(seconds_until_lesson(&mut learner, 4), 300);
        }
        assert!(p99_ms(&learner) < 6.0, "{}", p99_ms(&learner));
        let before = p99_ms(&learner);
        seconds_until_lesson(&mut learner, 64);
        let after = p99_ms(&learner);
        assert!(after > before && after < before * 1.5, "{before} {after}");
        // One that changed for good is followed.
        for _ in 0..30 {
            seconds_until_lesson(&mut learner, 64);
        }
        assert!(p99_ms(&learner) > 50.0, "{}", p99_ms(&learner));
    }

    #[test]
    fn what_was_learned_before_is_gone_on_from() {
        let normal = Normal { usual: 0.003, lessons: 5 };
        let mut learner = Learner::knowing(Some(normal));
        assert_eq!(learner.normal(), Some(normal));
        assert_eq!(seconds_until_lesson(&mut learner, 4), 300);
        assert_eq!(learner.normal().unwrap().lessons, 6);
        assert!((3.0..3.3).contains(&p99_ms(&learner)), "{learner:?}");
    }

    #[test]
    fn of_stalls_the_share_of_the_time_is_learned_which_may_be_none() {
        let mut learner = Learner::default();
        let mut live = |stalled: Duration| {
            let seconds = (1..10_000).find(|_| learner.hear_stalls(stalled, SECOND)).unwrap();
            (seconds, learner.normal().unwrap().usual)
        };
        assert_eq!(live(Duration::ZERO), (30, 0.0));
        // The second counts for half, the third for a third.
        assert_eq!(live(SECOND / 10).0, 300);
        assert!((live(Duration::ZERO).1 - 0.1 / 3.0).abs() < 1e-9, "{learner:?}");
        assert!(Learner::default().normal().is_none());
        let mut learner = Learner::default();
        (0..30).for_each(|_| _ = learner.hear_stalls(SECOND * 4, SECOND));
        assert_eq!(learner.normal(), Some(Normal { usual: 1.0, lessons: 1 }), "four tasks at once");
    }
}

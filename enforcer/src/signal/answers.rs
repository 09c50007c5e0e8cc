//! What a group's requests say about its objective, those included that have no answer yet.
//!
//! A request that is not answered in time is slow as soon as that is certain, not when its answer comes: a server that is
//! stuck answers nothing.

use std::time::Duration;

use super::{average::averaged, in_flight::Look, tally::Tally};

/// The usual rate of answers forgets with this time constant.
const AVERAGE: Duration = Duration::from_secs(1);

/// Running totals of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Answered, and how many of them slower than the objective.
    pub served: u64,
    pub slow: u64,
    /// Ended without an answer when they were older than the objective already.
    pub unanswered_slow: u64,
}

/// Makes of running totals what is new, so that each request counts once: when it is answered or when it becomes overdue,
/// whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    served: u64,
    /// The most that was ever counted. An overdue request that is answered moves from one total to another and is gone
    /// from both for a moment; what comes next makes up for it before it counts.
    fast: u64,
    slow: u64,
    looked_at_ns: u64,
    /// The last answer came after this.
    answered_after_ns: u64,
    rate_hz: f64,
    /// Answers that a stuck group owes, the part that is not yet a whole one.
    owed: f64,
}

impl Answers {
    /// What is new at `now_ns`, which comes with the look.
    pub fn observe(&mut self, totals: Totals, look: &Look, now_ns: u64) -> Tally {
        let late = totals.slow + totals.unanswered_slow + look.in_flight.overdue + look.written_off;
        let slow = new(late, &mut self.slow);
        let fast = new(totals.served.saturating_sub(totals.slow), &mut self.fast);
        let answered = new(totals.served, &mut self.served);
        let slow = slow + self.stand_ins(answered, slow, look, now_ns);
        Tally { total: fast + slow, slow }
    }

    /// A client that waits for an answer sends nothing meanwhile, so a server that is stuck would soon look idle. While
    /// nothing is answered and something is overdue that came after the last answer, requests that the group would have
    /// answered at its usual rate stand in. The rate fades, so this ends by itself: a group of long silences is no group
    /// that is stuck.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small whole number, not negative"
    )]
    fn stand_ins(&mut self, answered: u64, slow: u64, look: &Look, now_ns: u64) -> u64 {
        let elapsed = Duration::from_nanos(now_ns.saturating_sub(self.looked_at_ns));
        if answered > 0 {
            self.answered_after_ns = self.looked_at_ns;
        }
        self.looked_at_ns = now_ns;
        // After a late look, no more than the average knows of.
        let expected = self.rate_hz * elapsed.min(AVERAGE).as_secs_f64();
        let rate_hz = answered as f64 / elapsed.as_secs_f64();
        self.rate_hz = averaged(self.rate_hz, rate_hz, elapsed, AVERAGE);
        let is_stuck =
            answered == 0 && look.last_overdue_ns.is_some_and(|since_ns| since_ns >= self.answered_after_ns);
        if !is_stuck {
            self.owed = 0.0;
            return 0;
        }
        self.owed = (self.owed + expected - slow as f64).max(0.0);
        let whole = self.owed.floor();
        self.owed -= whole;
        whole as u64
    }
}

/// How far a total is above the highest so far.
fn new(total: u64, highest: &mut u64) -> u64 {
    let new = total.saturating_sub(*highest);
    *highest += new;
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::in_flight::InFlight;

    const TICK_NS: u64 = 100_000_000;

    /// A group looked at ten times per second.
    #[derive(Default)]
    struct Group {
        totals: Totals,
        look: Look,
        answers: Answers,
        now_ns: u64,
    }

    impl Group {
        fn tick(&mut self) -> Tally {
            self.now_ns += TICK_NS;
            self.answers.observe(self.totals, &self.look, self.now_ns)
        }

        fn serves(&mut self, fast: u64, slow: u64) -> Tally {
            self.totals.served += fast + slow;
            self.totals.slow += slow;
            self.tick()
        }

        /// So many are overdue; the last of them began just now.
        fn overdue(&mut self, overdue: u64) {
            let last_overdue_ns = (overdue > 0).then_some(self.now_ns);
            self.look.in_flight = InFlight { requests: overdue, overdue, oldest: None };
            self.look.last_overdue_ns = last_overdue_ns;
        }
    }

    #[test]
    fn an_overdue_request_counts_when_it_is_overdue_and_not_again_when_it_is_answered() {
        let mut group = Group::default();
        assert_eq!(group.serves(10, 0), Tally { total: 10, slow: 0 });
        group.overdue(3);
        assert_eq!(group.serves(10, 0), Tally { total: 13, slow: 3 });
        assert_eq!(group.serves(10, 0), Tally { total: 10, slow: 0 });
        group.overdue(0);
        assert_eq!(group.serves(10, 3), Tally { total: 10, slow: 0 });
        assert_eq!(group.serves(0, 1), Tally { total: 1, slow: 1 });
    }

    #[test]
    fn one_that_ends_unanswered_counts_once_as_well() {
        let mut group = Group::default();
        group.overdue(2);
        assert_eq!(group.serves(1, 0), Tally { total: 3, slow: 2 });
        group.overdue(1);
        group.totals.unanswered_slow += 1;
        assert_eq!(group.serves(1, 0), Tally { total: 1, slow: 0 });
        group.overdue(0);
        group.look.written_off += 1;
        assert_eq!(group.serves(1, 0), Tally { total: 1, slow: 0 });
    }

    #[test]
    fn counts_never_go_backwards() {
        let mut group = Group::default();
        group.overdue(5);
        assert_eq!(group.serves(1, 0), Tally { total: 6, slow: 5 });
        // Read between the two totals that it moves from and to.
        group.overdue(0);
        assert_eq!(group.serves(1, 0), Tally { total: 1, slow: 0 });
        assert_eq!(group.serves(0, 5), Tally { total: 0, slow: 0 });
        // The objective of those was missed, they are made up for, and the next slow one counts.
        assert_eq!(group.serves(0, 1), Tally { total: 1, slow: 1 });
    }

    #[test]
    fn a_stuck_group_is_slow_at_its_usual_rate_for_about_a_second() {
        let mut group = Group::default();
        for _ in 0..50 {
            assert_eq!(group.serves(20, 0), Tally { total: 20, slow: 0 });
        }
        // Four clients, each waiting.
        group.overdue(4);
        let ticks: Vec<u64> = (0..100).map(|_| group.tick().slow).collect();
        assert!((18..=20).contains(&ticks[0]), "{ticks:?}");
        assert!(ticks[..5].iter().all(|&slow| slow > 10), "{ticks:?}");
        assert!(ticks[60..].iter().sum::<u64>() <= 1, "it fades: {ticks:?}");
        assert!((190..=215).contains(&ticks.iter().sum::<u64>()), "about a second's worth: {ticks:?}");
    }

    #[test]
    fn a_long_poll_in_a_silent_moment_is_not_a_stuck_group() {
        let mut group = Group::default();
        group.overdue(1);
        for _ in 0..50 {
            group.serves(20, 0);
        }
        // Answers came after it began, so the silence has nothing to do with it.
        assert_eq!((0..20).map(|_| group.tick().total).sum::<u64>(), 0);
    }
}

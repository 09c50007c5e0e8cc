//! What the agent leaves out when it costs more than it may.
//!
//! Cheap things first: looks at the node come less often while there is no trouble, then requests are no longer measured,
//! at first of groups to which nothing was promised about them. Waits and CPU time are always measured: without them
//! nothing could be decided.

use std::time::Duration;

use crate::signal::average::averaged;

/// Beyond the budget for so long, the first time and when something was left out already: what the probes cost is known
/// every 30 s only.
const FIRST: Duration = Duration::from_secs(30);
const FURTHER: Duration = Duration::from_mins(1);
/// Below this part of the budget for so long, something is taken up again; twice as long each time that was a mistake.
const ROOM: f64 = 0.7;
const BACK_MIN: Duration = Duration::from_mins(10);
const BACK_MAX: Duration = Duration::from_mins(160);
/// Request probes that cost less than this part of all are kept: to detach them would help nobody.
const WORTH: f64 = 0.2;
/// Costs are averaged over this time.
const AVERAGE: Duration = Duration::from_secs(10);

/// What is left out; each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Nothing,
    /// Looks while nothing is wrong.
    Looks,
    /// Requests of groups to which nothing was promised about them.
    UnpromisedRequests,
    /// All requests.
    Requests,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Looks, Self::UnpromisedRequests, Self::Requests];

    /// What is done, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "everything is measured",
            Self::Looks => "the node is looked at less often while no objective is missed",
            Self::UnpromisedRequests => "requests are measured only where an objective wants it",
            Self::Requests => "no requests are measured: objectives on requestLatency have no effect",
        }
    }

    fn next(self) -> Option<Self> {
        Self::ALL.get(self as usize + 1).copied()
    }

    fn previous(self) -> Option<Self> {
        Self::ALL.get((self as usize).checked_sub(1)?).copied()
    }
}

/// What the agent costs, as shares of the node's CPU time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Itself, its guardian and its probes, as far as known.
    pub all: f64,
    /// The request probes. `None`: not known.
    pub requests: Option<f64>,
}

/// Keeps the agent within its budget.
#[derive(Clone, Debug)]
pub struct Shedder {
    budget: f64,
    level: Level,
    average: Option<f64>,
    over_since: Option<Duration>,
    room_since: Option<Duration>,
    changed_at: Duration,
    /// The level that was left last for the one before it, and when.
    left: Option<(Level, Duration)>,
    back_after: Duration,
}

impl Shedder {
    /// `budget`: share of the node's CPU time.
    pub const fn new(budget: f64) -> Self {
        Self {
            budget,
            level: Level::Nothing,
            average: None,
            over_since: None,
            room_since: None,
            changed_at: Duration::ZERO,
            left: None,
            back_after: BACK_MIN,
        }
    }

    pub const fn level(&self) -> Level {
        self.level
    }

    /// The cost, averaged. `None`: not known yet.
    pub const fn average(&self) -> Option<f64> {
        self.average
    }

    /// Takes in the cost of the time since the last observation. The level, if it is another one now.
    pub fn observe(&mut self, now: Duration, elapsed: Duration, cost: Cost) -> Option<Level> {
        let average = self.average.map_or(cost.all, |old| averaged(old, cost.all, elapsed, AVERAGE));
        self.average = Some(average);
        self.over_since = (average > self.budget).then(|| self.over_since.unwrap_or(now));
        self.room_since = (average < ROOM * self.budget).then(|| self.room_since.unwrap_or(now));
        let for_long = |since: Option<Duration>, long| {
            since.is_some_and(|since| now >= since.max(self.changed_at).saturating_add(long))
        };
        let patience = if self.level == Level::Nothing { FIRST } else { FURTHER };
        if for_long(self.over_since, patience) {
            let next = self.level.next().filter(|next| *next <= Level::Looks || is_worth_it(cost))?;
            let was_a_mistake = self
                .left
                .is_some_and(|(level, at)| level == next && now < at.saturating_add(self.back_after));
            self.back_after = if was_a_mistake { (self.back_after * 2).min(BACK_MAX) } else { BACK_MIN };
            return Some(self.change(now, next));
        }
        if for_long(self.room_since, self.back_after) {
            let previous = self.level.previous()?;
            self.left = Some((self.level, now));
            return Some(self.change(now, previous));
        }
        None
    }

    const fn change(&mut self, now: Duration, level: Level) -> Level {
        (self.level, self.changed_at) = (level, now);
        level
    }
}

fn is_worth_it(cost: Cost) -> bool {
    cost.requests.is_some_and(|requests| requests >= WORTH * cost.all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Node {
        shedder: Shedder,
        now: Duration,
    }

    impl Node {
        fn new() -> Self {
            Self { shedder: Shedder::new(0.02), now: Duration::ZERO }
        }

        /// Changes within so many seconds: when, and to which level. `cost(level)`.
        fn run(&mut self, seconds: u64, cost: impl Fn(Level) -> Cost) -> Vec<(u64, Level)> {
            let mut changes = Vec::new();
            for second in 1..=seconds {
                self.now += SECOND;
                let level = self.shedder.observe(self.now, SECOND, cost(self.shedder.level()));
                changes.extend(level.map(|level| (second, level)));
            }
            changes
        }
    }

    fn cost(all: f64, requests: f64) -> Cost {
        Cost { all, requests: Some(requests) }
    }

    #[test]
    fn what_is_within_the_budget_is_left_alone_and_so_is_a_short_excess() {
        let mut node = Node::new();
        assert_eq!(node.run(3_600, |_| cost(0.019, 0.01)), []);
        assert_eq!(node.run(10, |_| cost(0.05, 0.04)), []);
        assert_eq!(node.run(3_600, |_| cost(0.015, 0.01)), []);
    }

    #[test]
    fn an_excess_that_lasts_takes_one_thing_after_the_other() {
        let changes = Node::new().run(600, |_| cost(0.05, 0.04));
        assert_eq!(changes, [(31, Level::Looks), (91, Level::UnpromisedRequests), (151, Level::Requests)]);
    }

    #[test]
    fn it_stops_where_the_budget_is_met() {
        let mut node = Node::new();
        let met =
            |level| if level >= Level::UnpromisedRequests { cost(0.018, 0.0) } else { cost(0.05, 0.03) };
        assert_eq!(node.run(3_600, met).last().unwrap().1, Level::UnpromisedRequests);
    }

    #[test]
    fn request_probes_that_cost_little_or_nobody_knows_what_are_kept() {
        for requests in [Some(0.001), None] {
            let changes = Node::new().run(3_600, |_| Cost { all: 0.05, requests });
            assert_eq!(changes, [(31, Level::Looks)], "{requests:?}");
        }
    }

    #[test]
    fn it_comes_back_when_there_is_room_and_waits_longer_after_a_mistake() {
        let mut node = Node::new();
        node.run(40, |_| cost(0.05, 0.0));
        assert_eq!(node.shedder.level(), Level::Looks);
        // With fewer looks it is cheap, without it is too much again.
        let trap = |level| if level == Level::Looks { cost(0.01, 0.0) } else { cost(0.05, 0.0) };
        let changes = node.run(4_000, trap);
        let back: Vec<u64> =
            changes.iter().filter(|(_, to)| *to == Level::Nothing).map(|(at, _)| *at).collect();
        assert!(back.len() >= 2 && back[1] - back[0] > 1_200, "{changes:?}");
        // When the load is over, everything is measured again.
        node.run(20_000, |_| cost(0.005, 0.0));
        assert_eq!(node.shedder.level(), Level::Nothing);
    }
}

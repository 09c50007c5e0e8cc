//! An objective under watch.

use std::time::Duration;

use super::yielding::Experience;
use crate::{
    decision::{
        alarm::Alarm,
        cause::{self, Cause, Evidence, FADES, FADES_SOON, Waited},
        plan::Objective,
        trial::Effect,
    },
    model::{GroupId, Signal, Snapshot},
    policy::{Class, Promise},
    signal::{average::averaged, tally::Tally},
};

/// Rates are averaged over this time for what takes seconds, and over the shorter one to see the load change.
const AVERAGE: Duration = Duration::from_secs(1);
const LOAD: Duration = Duration::from_millis(300);
/// After a trial that did not help: how long until the next, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_mins(5);
/// BE that runs so much more than when a trial failed is tried again sooner, but not at once: what it gets swings with what LS
/// leaves it, and trials cost it half of that.
const BE_GREW: f64 = 1.5;
const GREW_AFTER: Duration = Duration::from_secs(5);
/// CPUs; less than this is no growth.
const BE_GREW_MIN: f64 = 0.02;

/// An objective, what was heard of it, and of whom its victim had to wait for.
#[derive(Clone, Debug)]
pub struct Watched {
    pub objective: Objective,
    /// What groups of the same kind share.
    pub workload: String,
    /// What was promised. `None`: that is to be learned.
    promised: Option<Promise>,
    /// What counts as slow, or as too much. `None`: not learned yet.
    promise: Option<Promise>,
    pub alarm: Alarm,
    waited: Waited,
    /// The same of the last moments.
    lately: Waited,
    throttled: Option<f64>,
    steal: Option<f64>,
    /// Who is likely to use the memory that the victim lacks.
    pub memory_user: Option<GroupId>,
    /// Requests or waits that are heard per second, and that come.
    pub rate_hz: f64,
    pub load_hz: f64,
    pub heard_at: Duration,
    retry: Option<Retry>,
    /// What it did for it that BE yielded.
    pub yielding: Experience,
}

/// A trial that did not help.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    pub at: Duration,
    failed_at: Duration,
    pub effect: Effect,
    /// BE yielded meanwhile.
    yielded: bool,
    after: Duration,
    be_cores: f64,
}

impl Watched {
    pub fn new(objective: Objective) -> Self {
        Self {
            objective,
            workload: String::new(),
            promised: None,
            promise: None,
            alarm: Alarm::default(),
            waited: Waited::fading(FADES),
            lately: Waited::fading(FADES_SOON),
            throttled: None,
            steal: None,
            memory_user: None,
            rate_hz: 0.0,
            load_hz: 0.0,
            heard_at: Duration::ZERO,
            retry: None,
            yielding: Experience::default(),
        }
    }

    /// Promises this from now on. `None`: that is to be learned.
    pub const fn promise(&mut self, promised: Option<Promise>) {
        self.promised = promised;
        if promised.is_some() {
            self.promise = promised;
        }
    }

    /// What a snapshot says of it.
    pub fn tally(&self, node: &Snapshot) -> Option<Tally> {
        self.promise?;
        self.objective.signal.of(node.group(self.objective.victim))
    }

    /// Takes in a snapshot. `spoilt`: what was counted says nothing.
    pub fn observe(&mut self, node: &Snapshot, elapsed: Duration, spoilt: bool) {
        for waited in [&mut self.waited, &mut self.lately] {
            waited.fade(elapsed);
        }
        let group = node.group(self.objective.victim);
        self.promise = self.promised.or(Promise::learned(group.learned, self.objective.signal));
        self.throttled = group.throttled;
        self.steal = node.steal;
        self.memory_user = group.memory_user;
        let Some(tally) = self.tally(node) else { return };
        let rate_hz = tally.total as f64 / elapsed.as_secs_f64().max(1e-3);
        self.rate_hz = averaged(self.rate_hz, rate_hz, elapsed, AVERAGE);
        let one_in = group.one_in.filter(|_| self.objective.signal == Signal::RequestLatency).unwrap_or(1);
        self.load_hz = averaged(self.load_hz, rate_hz * f64::from(one_in), elapsed, LOAD);
        if tally.total > 0 {
            self.heard_at = node.taken_at;
        }
        if spoilt {
            return;
        }
        self.alarm.observe(tally, elapsed);
        for waited in [&mut self.waited, &mut self.lately] {
            waited.add_slow(tally.slow);
            for blame in node.blame.iter().filter(|blame| blame.victim == self.objective.victim) {
                waited.add(blame.culprit, blame.waited);
            }
        }
    }

    /// A group that it may have waited for went.
    pub fn forget(&mut self, group: GroupId) {
        for waited in [&mut self.waited, &mut self.lately] {
            waited.forget(group);
        }
    }

    /// What it waited for when slow ones came.
    const fn evident(&self) -> &Waited {
        if self.alarm.is_sudden() { &self.lately } else { &self.waited }
    }

    /// Why it is missed, if it is, and what that rests on.
    pub fn cause(&self, class: impl Fn(GroupId) -> Class) -> (Cause, Evidence) {
        let evidence = Evidence {
            throttled: self.throttled,
            steal: self.steal,
            effect: self.retry.filter(|retry| !retry.yielded).map(|retry| retry.effect),
            ..self.evident().evidence(self.objective.victim, &class)
        };
        let cause = match self.promise {
            Some(Promise::P99(threshold)) => evidence.cause(threshold),
            Some(Promise::Share(_)) => {
                cause::of_memory_stalls(self.objective.victim, self.memory_user, class)
            }
            None => Cause::Unknown,
        };
        (cause, evidence)
    }

    /// Of these groups, those that the victim waited for.
    pub fn culprits(&self, among: impl Iterator<Item = GroupId>) -> Vec<GroupId> {
        self.evident().culprits(among)
    }

    /// Seconds that the victim waited lately for a group.
    pub fn waited_for(&self, group: GroupId) -> f64 {
        self.evident().for_group(group)
    }

    pub const fn retry(&self) -> Option<Retry> {
        self.retry
    }

    /// A trial failed lately, and BE is about what it was. BE that yielded showed nothing of what it does otherwise.
    pub fn waits_for_retry(&self, now: Duration, be_cores: f64, yields: bool) -> bool {
        self.retry.is_some_and(|retry| {
            let grew = be_cores >= retry.be_cores * BE_GREW + BE_GREW_MIN;
            let until = if grew { retry.failed_at + GREW_AFTER } else { retry.at };
            (yields || !retry.yielded) && now < until
        })
    }

    /// Stopping BE, which yielded or not, did not help.
    pub fn did_not_help(&mut self, now: Duration, effect: Effect, yielded: bool, be_cores: f64) {
        let after = self.retry.map_or(RETRY_MIN, |retry| (retry.after * 2).min(RETRY_MAX));
        self.retry = Some(Retry { at: now + after, failed_at: now, effect, yielded, after, be_cores });
    }

    pub const fn helped(&mut self) {
        self.retry = None;
    }
}

impl Retry {
    /// Whether it speaks for BE. One in which the objective was met says nothing of what changed since, and one that could not
    /// tell says nothing at all.
    pub fn speaks_for_be(self) -> bool {
        !self.effect.is_met_with_be() && !self.effect.is_undecided()
    }
}

//! The order of alarm, trial and hold.

use std::time::Duration;

use super::{
    alarm::Alarm,
    hold::{Failure, Hold, Verdict},
    plan::{Objective, Plan, Reason},
    trial::{Effect, Step, Trial},
};
use crate::{
    model::{CpuLimit, GroupId, GroupSnapshot, Restraint, Signal, Snapshot},
    policy::{Class, Policy},
    signal::tally::Tally,
    units::MilliCores,
};

/// The period of every limit. Measured: for the same mean, bursts that are kept together hurt LS least; with 10 ms
/// every request meets one and the cache never recovers.
const PERIOD_US: u64 = 1_000_000;
/// "Stopped" in a trial: the smallest quota in the longest period, 0.1 % of one CPU. Quicker to end than a freeze, and
/// no harm if the agent dies.
const STOPPED: Restraint = Restraint::quota(CpuLimit { quota_us: Some(1_000), period_us: PERIOD_US });
/// A quota is never used up to the last slice; this much more keeps the mean at the floor.
const FLOOR_MARGIN: f64 = 1.05;
/// BE that uses less than this many CPUs does not run.
const RUNS_CORES: f64 = 0.02;
/// Steal above this share of the node spoils what was counted meanwhile.
const STEAL_MAX: f64 = 0.05;
/// Averages of rates and usage forget with this time constant, demand with the longer one.
const AVERAGE: Duration = Duration::from_secs(1);
const DEMAND_FADES: Duration = Duration::from_secs(20);
/// An LS group that says nothing for so long no longer keeps BE squeezed.
const SILENCE: Duration = Duration::from_secs(5);
/// After a trial that did not help: how long until the next, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_mins(5);
/// BE that runs so much more than when a trial failed is tried again at once.
const BE_GREW: f64 = 1.5;
/// How soon a squeeze must prove itself again, doubled each time it does.
const VERIFY_MIN: Duration = Duration::from_secs(30);
const VERIFY_MAX: Duration = Duration::from_mins(10);

/// Whether trials may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// Nothing is written, so nothing can be tried: see [`Reason::Shadow`].
    Shadow,
}

/// Decides, one snapshot after the other.
#[derive(Debug)]
pub struct Governor {
    mode: Mode,
    be: Vec<BeGroup>,
    objectives: Vec<Watched>,
    phase: Phase,
    /// The last share that was too much, kept between squeezes.
    failure: Option<Failure>,
    taken_at: Duration,
    plan: Plan,
}

/// A BE group and what it is known to want.
#[derive(Clone, Copy, Debug)]
struct BeGroup {
    id: GroupId,
    floor: MilliCores,
    exists: bool,
    /// CPUs used, averaged.
    usage: f64,
    /// CPUs that it uses when nothing limits it, as last seen.
    demand: f64,
}

/// An objective under watch.
#[derive(Clone, Copy, Debug)]
struct Watched {
    objective: Objective,
    alarm: Alarm,
    /// Requests or waits per second, averaged.
    rate_hz: f64,
    heard_at: Duration,
    retry: Option<Retry>,
}

/// A trial that did not help.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Duration,
    after: Duration,
    effect: Effect,
    be_cores: f64,
}

#[derive(Debug)]
enum Phase {
    Free,
    Trial { trial: Trial, watched: usize, proven: Option<Squeeze> },
    Squeeze(Squeeze),
}

#[derive(Debug)]
struct Squeeze {
    hold: Hold,
    watched: usize,
    effect: Effect,
    verify_at: Duration,
    verify_after: Duration,
}

impl Governor {
    /// Starts with no limits.
    pub fn new(policy: &Policy, mode: Mode) -> Self {
        let groups = || policy.groups.iter().enumerate().map(|(index, group)| (GroupId(index), group));
        let be = groups().filter(|(_, group)| group.class == Class::BE);
        let be =
            be.map(|(id, group)| BeGroup { id, floor: group.floor, exists: false, usage: 0.0, demand: 0.0 });
        let objectives = groups().flat_map(|(victim, group)| {
            let promised = Signal::ALL.into_iter().filter(|&signal| group.slo.threshold(signal).is_some());
            promised.map(move |signal| Watched::new(Objective { victim, signal }))
        });
        Self {
            mode,
            be: be.collect(),
            objectives: objectives.collect(),
            phase: Phase::Free,
            failure: None,
            taken_at: Duration::ZERO,
            plan: Plan::default(),
        }
    }

    /// The plan for a node that looks like `node`. Snapshots come in the order in which they were taken.
    pub fn decide(&mut self, node: &Snapshot) -> &Plan {
        let elapsed = node.taken_at.saturating_sub(self.taken_at);
        self.taken_at = node.taken_at;
        let spoilt = node.steal.is_some_and(|steal| steal > STEAL_MAX);
        self.observe(node, elapsed, spoilt);
        self.phase = match std::mem::replace(&mut self.phase, Phase::Free) {
            Phase::Free => self.look_for_trouble(),
            Phase::Trial { trial, watched, proven } => {
                self.go_on_trying(trial, watched, proven, node, spoilt)
            }
            Phase::Squeeze(squeeze) => self.go_on_squeezing(squeeze, node, spoilt),
        };
        self.write_plan();
        &self.plan
    }

    fn observe(&mut self, node: &Snapshot, elapsed: Duration, spoilt: bool) {
        for be in &mut self.be {
            let limited = self.plan.restraints.contains_key(&be.id);
            be.observe(&node.groups[be.id.0], elapsed, limited);
        }
        for watched in &mut self.objectives {
            let Some(tally) = watched.tally(node) else { continue };
            watched.rate_hz =
                averaged(watched.rate_hz, tally.total as f64 / elapsed.as_secs_f64(), elapsed, AVERAGE);
            if tally.total > 0 {
                watched.heard_at = node.taken_at;
            }
            if !spoilt {
                watched.alarm.observe(tally);
            }
        }
    }

    fn be_cores(&self) -> f64 {
        self.be.iter().map(|be| be.usage).sum()
    }

    fn be_runs(&self) -> bool {
        self.be.iter().any(|be| be.usage >= RUNS_CORES)
    }

    /// Nothing is squeezed: does an alarm call for a trial?
    fn look_for_trouble(&mut self) -> Phase {
        let (now, be_cores) = (self.taken_at, self.be_cores());
        if !self.be_runs() || self.mode == Mode::Shadow {
            return Phase::Free;
        }
        let Some(watched) = self.objectives.iter().position(|watched| watched.calls_for_trial(now, be_cores))
        else {
            return Phase::Free;
        };
        self.try_without_be(watched, None)
    }

    fn try_without_be(&self, watched: usize, proven: Option<Squeeze>) -> Phase {
        let seed = u64::try_from(self.taken_at.as_nanos()).unwrap_or(u64::MAX);
        let trial = Trial::start(self.taken_at, self.objectives[watched].rate_hz, seed);
        Phase::Trial { trial, watched, proven }
    }

    fn go_on_trying(
        &mut self,
        mut trial: Trial,
        watched: usize,
        proven: Option<Squeeze>,
        node: &Snapshot,
        spoilt: bool,
    ) -> Phase {
        let now = self.taken_at;
        let tally = self.objectives[watched].tally(node).unwrap_or_default();
        match trial.observe(now, (!spoilt).then_some(tally)) {
            Step::Continue { .. } => Phase::Trial { trial, watched, proven },
            Step::NoHelp(effect) => {
                let be_cores = self.be.iter().map(|be| be.demand).sum();
                self.objectives[watched].did_not_help(now, effect, be_cores);
                self.reset_alarms();
                Phase::Free
            }
            Step::Helps(effect) => {
                self.objectives[watched].retry = None;
                self.reset_alarms();
                Phase::Squeeze(self.squeeze(watched, effect, proven))
            }
        }
    }

    fn squeeze(&self, watched: usize, effect: Effect, proven: Option<Squeeze>) -> Squeeze {
        let now = self.taken_at;
        let (hold, verify_after) = match proven {
            Some(Squeeze { mut hold, verify_after, .. }) => {
                hold.restart(now);
                (hold, (verify_after * 2).min(VERIFY_MAX))
            }
            None => (Hold::start(now, self.objectives.len(), self.failure), VERIFY_MIN),
        };
        Squeeze { hold, watched, effect, verify_at: now + verify_after, verify_after }
    }

    fn go_on_squeezing(&mut self, mut squeeze: Squeeze, node: &Snapshot, spoilt: bool) -> Phase {
        let now = self.taken_at;
        if !self.be_runs() || now >= self.objectives[squeeze.watched].heard_at + SILENCE {
            self.reset_alarms();
            return Phase::Free;
        }
        let (be_cores, objectives) = (self.be_cores(), &self.objectives);
        let tallies = objectives.iter().map(|watched| {
            let says_nothing_of_be = spoilt || watched.waits_for_retry(now, be_cores);
            watched.tally(node).filter(|_| !says_nothing_of_be)
        });
        let verdict = squeeze.hold.observe(now, tallies);
        self.failure = squeeze.hold.failure();
        if verdict == Verdict::Release {
            self.failure = Some(Failure::new(1.0, now, None));
            self.reset_alarms();
            return Phase::Free;
        }
        if now >= squeeze.verify_at {
            return self.try_without_be(squeeze.watched, Some(squeeze));
        }
        Phase::Squeeze(squeeze)
    }

    /// What the alarms heard was said under other conditions.
    fn reset_alarms(&mut self) {
        for watched in &mut self.objectives {
            watched.alarm.reset();
        }
    }

    fn write_plan(&mut self) {
        self.plan.reason = self.reason();
        let restraints = &mut self.plan.restraints;
        restraints.clear();
        let existing = self.be.iter().filter(|be| be.exists);
        match &self.phase {
            Phase::Trial { trial, .. } if trial.stops_be() => {
                restraints.extend(existing.map(|be| (be.id, STOPPED)));
            }
            Phase::Free | Phase::Trial { .. } => {}
            Phase::Squeeze(squeeze) => {
                restraints.extend(existing.map(|be| (be.id, be.restraint(squeeze.hold.share()))));
            }
        }
    }

    fn reason(&self) -> Reason {
        match &self.phase {
            Phase::Free => self.why_free(),
            Phase::Trial { watched, .. } => Reason::Trial { objective: self.objectives[*watched].objective },
            Phase::Squeeze(squeeze) => Reason::Squeeze {
                objective: self.objectives[squeeze.watched].objective,
                share: squeeze.hold.share(),
                effect: squeeze.effect,
            },
        }
    }

    fn why_free(&self) -> Reason {
        let Some(missed) = self.objectives.iter().find(|watched| watched.alarm.is_on()) else {
            return Reason::Met;
        };
        let objective = missed.objective;
        match missed.retry {
            _ if !self.be_runs() => Reason::NoBe { objective },
            _ if self.mode == Mode::Shadow => Reason::Shadow { objective },
            Some(Retry { at, effect, .. }) => Reason::NoHelp { objective, effect, retry_at: at },
            None => Reason::Met,
        }
    }
}

impl BeGroup {
    fn observe(&mut self, group: &GroupSnapshot, elapsed: Duration, limited: bool) {
        self.exists = group.cpu_cores.is_some();
        let cores = group.cpu_cores.unwrap_or_default();
        self.usage = averaged(self.usage, cores, elapsed, AVERAGE);
        if !limited {
            self.demand = averaged(self.demand, self.usage, elapsed, DEMAND_FADES).max(self.usage);
        }
    }

    /// What leaves it `share` of what it wants above its floor.
    fn restraint(&self, share: f64) -> Restraint {
        let floor = self.floor.cores() * FLOOR_MARGIN;
        let above = (self.demand - floor).max(0.0);
        Restraint::quota(CpuLimit::of(MilliCores::from_cores(floor + share * above), PERIOD_US))
    }
}

impl Watched {
    fn new(objective: Objective) -> Self {
        Self { objective, alarm: Alarm::default(), rate_hz: 0.0, heard_at: Duration::ZERO, retry: None }
    }

    fn tally(&self, node: &Snapshot) -> Option<Tally> {
        self.objective.signal.of(&node.groups[self.objective.victim.0])
    }

    fn calls_for_trial(&self, now: Duration, be_cores: f64) -> bool {
        self.alarm.is_on() && !self.waits_for_retry(now, be_cores)
    }

    /// A trial failed lately, and BE is about what it was.
    fn waits_for_retry(&self, now: Duration, be_cores: f64) -> bool {
        self.retry.is_some_and(|retry| now < retry.at && be_cores < retry.be_cores * BE_GREW + RUNS_CORES)
    }

    fn did_not_help(&mut self, now: Duration, effect: Effect, be_cores: f64) {
        let after = self.retry.map_or(RETRY_MIN, |retry| (retry.after * 2).min(RETRY_MAX));
        self.retry = Some(Retry { at: now + after, after, effect, be_cores });
    }
}

/// `old`, moved towards `new` as much as `elapsed` is of the time constant.
fn averaged(old: f64, new: f64, elapsed: Duration, time_constant: Duration) -> f64 {
    let kept = (-elapsed.as_secs_f64() / time_constant.as_secs_f64()).exp();
    if elapsed.is_zero() { old } else { old * kept + new * (1.0 - kept) }
}

#[cfg(test)]
mod tests;

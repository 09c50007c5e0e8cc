//! The order of alarm, cause, yielding, trial and hold.

mod be;
mod learned;
mod outcome;
mod squeeze;
mod squeezing;
mod trying;
mod watched;
mod yielding;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::{
    be::BeGroup, learned::Learned, squeeze::Squeeze, trying::Trying, watched::Watched, yielding::Yielding,
};
use super::{
    cause::{Cause, STEAL_MAX},
    plan::{Objective, Plan},
};
use crate::{
    model::{GroupId, Lever, Signal, Snapshot},
    policy::{Class, Group},
};

/// An LS group that says nothing for so long no longer keeps BE squeezed.
const SILENCE: Duration = Duration::from_secs(5);

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
    cpus: u32,
    be: BTreeMap<GroupId, BeGroup>,
    /// Those that keep the node going.
    system: BTreeSet<GroupId>,
    objectives: BTreeMap<Objective, Watched>,
    phase: Phase,
    learned: Vec<Learned>,
    taken_at: Duration,
    /// When the hypervisor last left the node its CPUs.
    clean_at: Duration,
    plan: Plan,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, and it is moved ten times per second")]
enum Phase {
    Free,
    Yielding(Yielding),
    Trying(Trying),
    Squeeze(Squeeze),
}

impl Governor {
    /// Starts with no limits and no groups. `cpus`: of the node.
    pub fn new(mode: Mode, cpus: u32) -> Self {
        Self {
            mode,
            cpus,
            be: BTreeMap::new(),
            system: BTreeSet::new(),
            objectives: BTreeMap::new(),
            phase: Phase::Free,
            learned: Vec::new(),
            taken_at: Duration::ZERO,
            clean_at: Duration::ZERO,
            plan: Plan::default(),
        }
    }

    /// A group came, or what holds for it has changed. The next snapshot tells of it.
    pub fn join(&mut self, id: GroupId, group: &Group) {
        match group.class {
            Class::SYSTEM => _ = self.system.insert(id),
            Class::BE => {
                let be = self.be.entry(id).or_insert_with(|| BeGroup::new(id));
                be.workload.clone_from(&group.workload);
                be.set_floor(group.floor);
            }
            Class::LS => {
                for signal in Signal::ALL {
                    let objective = Objective { victim: id, signal };
                    let promised = group.slo.promise(signal);
                    if promised.is_some() || group.slo.auto(signal).is_some() {
                        let new = || Watched::new(objective);
                        let watched = self.objectives.entry(objective).or_insert_with(new);
                        watched.workload.clone_from(&group.workload);
                        watched.promise(promised);
                    } else {
                        self.forget(objective);
                    }
                }
            }
        }
    }

    /// A group went. What was learned of its workload is kept.
    pub fn leave(&mut self, id: GroupId) {
        for signal in Signal::ALL {
            self.forget(Objective { victim: id, signal });
        }
        self.objectives.values_mut().for_each(|watched| watched.forget(id));
        self.be.remove(&id);
        self.system.remove(&id);
        self.plan.restraints.remove(&id);
        self.phase = match std::mem::replace(&mut self.phase, Phase::Free) {
            phase @ (Phase::Free | Phase::Yielding(_)) => phase,
            Phase::Trying(mut trying) => {
                let others = |who: &mut Vec<GroupId>| who.retain(|other| *other != id);
                others(&mut trying.who);
                trying.next.iter_mut().for_each(others);
                trying.next.retain(|who| !who.is_empty());
                trying.proven.iter_mut().for_each(|squeeze| others(&mut squeeze.who));
                match trying.proven.take_if(|_| trying.who.is_empty()) {
                    Some(squeeze) => self.release(squeeze),
                    None if trying.who.is_empty() => trying.given_up(),
                    None => Phase::Trying(trying),
                }
            }
            Phase::Squeeze(mut squeeze) => {
                squeeze.who.retain(|other| *other != id);
                if squeeze.who.is_empty() { self.release(squeeze) } else { Phase::Squeeze(squeeze) }
            }
        };
    }

    /// Nothing is promised of it any more.
    fn forget(&mut self, objective: Objective) {
        if !self.objectives.contains_key(&objective) {
            return;
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Free).without(objective) {
            Phase::Trying(Trying { watched, proven: Some(squeeze), .. }) if watched == objective => {
                self.release(squeeze)
            }
            Phase::Trying(trying) if trying.watched == objective => trying.given_up(),
            Phase::Squeeze(squeeze) if squeeze.watched == objective => self.release(squeeze),
            phase => phase,
        };
        self.objectives.remove(&objective);
    }

    /// The plan for a node that looks like `node`. Snapshots come in the order in which they were taken.
    pub fn decide(&mut self, node: &Snapshot) -> &Plan {
        let elapsed = node.taken_at.saturating_sub(self.taken_at);
        self.taken_at = node.taken_at;
        let spoilt = node.steal.is_some_and(|steal| steal > STEAL_MAX);
        if !spoilt {
            self.clean_at = node.taken_at;
        }
        for (id, be) in &mut self.be {
            let restraint = self.plan.restraints.get(id).copied().unwrap_or_default();
            be.observe(node.group(*id), elapsed, restraint);
        }
        for watched in self.objectives.values_mut() {
            watched.observe(node, elapsed, spoilt);
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Free) {
            // What was heard before counts, but what would be done about it could not be seen to help.
            Phase::Free if spoilt => Phase::Free,
            Phase::Free => self.look_for_trouble(),
            Phase::Yielding(yielding) => self.go_on_yielding(yielding, node, spoilt),
            Phase::Trying(trying) => self.go_on_trying(trying, node, spoilt),
            Phase::Squeeze(squeeze) => self.go_on_squeezing(squeeze, node, spoilt),
        };
        self.write_plan(node);
        &self.plan
    }

    fn class(&self, group: GroupId) -> Class {
        if self.be.contains_key(&group) {
            Class::BE
        } else if self.system.contains(&group) {
            Class::SYSTEM
        } else {
            Class::LS
        }
    }

    fn be_cores(&self) -> f64 {
        self.be.values().map(|be| be.usage).sum()
    }

    /// CPUs that BE uses when nothing limits it.
    fn be_wants(&self) -> f64 {
        self.be.values().map(|be| be.demand).sum()
    }

    fn be_runs(&self) -> bool {
        self.be.values().any(BeGroup::runs)
    }

    /// Nothing is squeezed: does an alarm call for something?
    fn look_for_trouble(&mut self) -> Phase {
        if self.mode == Mode::Shadow {
            return Phase::Free;
        }
        let in_trouble: Vec<Objective> = self.in_trouble().collect();
        in_trouble.into_iter().find_map(|objective| self.react(objective)).unwrap_or(Phase::Free)
    }

    fn in_trouble(&self) -> impl Iterator<Item = Objective> {
        let in_trouble = |watched: &&Watched| watched.alarm.is_on() || watched.alarm.is_sudden();
        self.objectives.values().filter(in_trouble).map(|watched| watched.objective)
    }

    fn react(&mut self, watched: Objective) -> Option<Phase> {
        let objective = &self.objectives[&watched];
        let alarm = objective.alarm;
        let waits = objective.waits_for_retry(self.taken_at, self.be_cores(), false);
        let may_suspect = self.may_suspect(watched, false);
        if may_suspect && let Some(squeeze) = self.blame(watched) {
            return Some(Phase::Squeeze(squeeze));
        }
        // What follows costs BE something on less than the kernel's word.
        if !alarm.lasts() || !self.be_runs() {
            return None;
        }
        if !waits && let Some(squeeze) = self.remember(watched) {
            return Some(Phase::Squeeze(squeeze));
        }
        if may_suspect && let Some(phase) = self.let_yield(watched) {
            return Some(phase);
        }
        if waits { None } else { self.try_without_be(watched, None) }
    }

    /// Whether BE, which yields or does not, may be suspected: a trial without effect speaks for it, for a while.
    fn may_suspect(&self, watched: Objective, yields: bool) -> bool {
        let objective = &self.objectives[&watched];
        !objective.waits_for_retry(self.taken_at, self.be_cores(), yields)
            || objective.retry().is_some_and(|retry| !retry.speaks_for_be())
    }

    /// BE makes room where others want the CPU: no proof is needed for what costs it so little.
    fn let_yield(&mut self, watched: Objective) -> Option<Phase> {
        let now = self.taken_at;
        let objective = &self.objectives[&watched];
        let (cause, _) = objective.cause(|group| self.class(group));
        let is_about_cpus = watched.signal != Signal::MemoryStall
            && !matches!(cause, Cause::BeMemory | Cause::OwnQuota | Cause::Steal);
        let can_yield = self.be.values().any(|be| be.runs() && be.has(Lever::Idle));
        if !is_about_cpus || !can_yield || !objective.yielding.is_promising(now) {
            return None;
        }
        let before = objective.alarm.slow_share();
        self.reset_alarms();
        let until = self.watched_mut(watched).yielding.begin(now);
        Some(Phase::Yielding(Yielding::begin(now, watched, cause, before, until)))
    }

    fn go_on_yielding(&mut self, mut yielding: Yielding, node: &Snapshot, spoilt: bool) -> Phase {
        let (now, watched) = (self.taken_at, yielding.watched);
        if let Some(tally) = self.objectives[&watched].tally(node).filter(|_| !spoilt) {
            yielding.observe(now, tally);
        }
        let in_trouble: Vec<Objective> = if spoilt { Vec::new() } else { self.in_trouble().collect() };
        for &objective in &in_trouble {
            if self.may_suspect(objective, true)
                && let Some(squeeze) = self.blame(objective)
            {
                return Phase::Squeeze(squeeze.beside(Some(yielding)));
            }
        }
        let objective = &self.objectives[&watched];
        if !self.be.values().any(BeGroup::can_yield) || now >= objective.heard_at + SILENCE {
            return Phase::Free;
        }
        if now >= yielding.until {
            let is_met = !objective.alarm.is_on() && yielding.is_met();
            let objective = self.watched_mut(watched);
            objective.yielding.ended(now);
            if is_met {
                objective.yielding.helped();
                // What a trial said then, it said of BE that yields.
                objective.helped();
            }
            // What comes now shows whether it is still needed, and for how much.
            self.reset_alarms();
            return Phase::Free;
        }
        let below_floors = be::are_below_floors(self.be.values().filter(|be| be.can_yield()));
        if yielding.starves(now, below_floors) {
            self.watched_mut(watched).yielding.was_in_vain(now);
            self.reset_alarms();
            return Phase::Free;
        }
        let is_not_enough = |objective: &&Objective| {
            let objective = &self.objectives[*objective];
            objective.alarm.lasts() && !objective.waits_for_retry(now, self.be_cores(), true)
        };
        let Some(missed) = in_trouble.iter().find(is_not_enough).copied() else {
            return Phase::Yielding(yielding);
        };
        if let Some(squeeze) = self.remember(missed) {
            return Phase::Squeeze(squeeze.beside(Some(yielding)));
        }
        self.try_without_be(missed, Some(yielding)).unwrap_or(Phase::Yielding(yielding))
    }

    fn watched_mut(&mut self, objective: Objective) -> &mut Watched {
        self.objectives.get_mut(&objective).expect("BUG: something is done about a forgotten objective")
    }

    /// What the alarms heard was said under other conditions.
    fn reset_alarms(&mut self) {
        for watched in self.objectives.values_mut() {
            watched.alarm.reset();
        }
    }
}

impl Phase {
    /// What follows when nothing more than yielding is left of a phase.
    fn after(yields: Option<Yielding>) -> Self {
        yields.map_or(Self::Free, Self::Yielding)
    }

    /// The same without yielding for an objective that is no more.
    fn without(self, objective: Objective) -> Self {
        let others = |yielding: &Yielding| yielding.watched != objective;
        let of_squeeze = |squeeze: Squeeze| {
            let yields = squeeze.yields.filter(others);
            squeeze.beside(yields)
        };
        match self {
            Self::Free => Self::Free,
            Self::Yielding(yielding) => Self::after(Some(yielding).filter(others)),
            Self::Trying(trying) => Self::Trying(Trying {
                yields: trying.yields.filter(others),
                proven: trying.proven.map(of_squeeze),
                ..trying
            }),
            Self::Squeeze(squeeze) => Self::Squeeze(of_squeeze(squeeze)),
        }
    }
}

#[cfg(test)]
mod tests;

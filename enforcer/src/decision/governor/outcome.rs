//! What the governor's phase comes to: the plan, its reason and the verdicts.

use std::collections::BTreeMap;

use super::{
    Governor, Mode, Phase, Trying,
    be::{BeGroup, STOPPED},
    yielding::Yielding,
};
use crate::{
    decision::{cause::Verdict, plan::Reason},
    model::{GroupId, Lever, Restraint, Snapshot},
};

/// BE that uses less than this part of what a rule leaves it needs no limit.
const NEARLY: f64 = 0.8;

impl Governor {
    pub(super) fn write_plan(&mut self, node: &Snapshot) {
        let now = self.taken_at;
        self.plan.reason = self.reason();
        self.plan.restraints.clear();
        self.plan.evict.clear();
        self.plan.again_at = None;
        match &self.phase {
            Phase::Free => {}
            Phase::Yielding(_) => self.plan.restraints.extend(yielding(&self.be)),
            Phase::Trying(Trying { trial, who, yields, .. }) => {
                if yields.is_some() {
                    self.plan.restraints.extend(yielding(&self.be));
                }
                if trial.stops_be() {
                    let can = |be: &&BeGroup| be.exists && be.has(Lever::Quota);
                    for be in who.iter().map(|id| &self.be[id]).filter(can) {
                        self.plan.restraints.entry(be.id).or_default().quota = STOPPED.quota;
                    }
                }
            }
            Phase::Squeeze(squeeze) => {
                if squeeze.yields.is_some() {
                    self.plan.restraints.extend(yielding(&self.be));
                }
                let existing = squeeze.who.iter().map(|id| &self.be[id]).filter(|be| be.exists);
                for be in existing {
                    let restraint = squeeze.restraint(now, be, self.cpus);
                    if restraint == Restraint::default() {
                        // Who takes turns does not yield beside the others either.
                        self.plan.restraints.remove(&be.id);
                    } else {
                        self.plan.restraints.insert(be.id, restraint);
                    }
                    // Whoever was never held back has not been at its floor.
                    if squeeze.evicts(now) && restraint.takes_something() {
                        self.plan.evict.push(be.id);
                    }
                }
                self.plan.again_at = squeeze.again_at(now);
            }
        }
        if let Some(cores) = node.be_cores_max {
            self.hold_within(cores);
        }
        self.write_verdicts();
    }

    /// All BE together gets no more than so many CPUs, each group in proportion to what it used and its floor.
    fn hold_within(&mut self, cores: f64) {
        if self.mode == Mode::Shadow || self.be_cores() < NEARLY * cores {
            return;
        }
        let claims: f64 = self.be.values().filter(|be| be.runs()).map(BeGroup::claim).sum();
        for be in self.be.values().filter(|be| be.runs() && be.has(Lever::Quota)) {
            let quota = be.quota_of(cores * be.claim() / claims);
            let restraint = self.plan.restraints.entry(be.id).or_default();
            if restraint.cores().is_none_or(|held| quota.cores().is_some_and(|ours| ours < held)) {
                restraint.quota = Some(quota);
            }
        }
    }

    fn write_verdicts(&mut self) {
        let mut verdicts = std::mem::take(&mut self.plan.verdicts);
        verdicts.clear();
        for watched in self.objectives.values() {
            let proven = match &self.phase {
                // Cured, it shows nothing any more.
                Phase::Squeeze(squeeze) if squeeze.watched == watched.objective => Some(squeeze.cause),
                Phase::Yielding(yielding) if yielding.watched == watched.objective => Some(yielding.cause),
                Phase::Trying(trying) if trying.watched == watched.objective => None,
                _ if watched.alarm.is_on() => None,
                _ => continue,
            };
            let (cause, evidence) = watched.cause(|group| self.class(group));
            let cause = proven.unwrap_or(cause);
            verdicts.push(Verdict { objective: watched.objective, cause, evidence });
        }
        self.plan.verdicts = verdicts;
    }

    fn reason(&self) -> Reason {
        match &self.phase {
            Phase::Free => self.why_free(),
            Phase::Yielding(Yielding { watched, .. }) => Reason::Yield { objective: *watched },
            Phase::Trying(Trying { watched, .. }) => Reason::Trial { objective: *watched },
            Phase::Squeeze(squeeze) => Reason::Squeeze {
                objective: squeeze.watched,
                share: squeeze.hold.share(),
                proof: squeeze.proof,
            },
        }
    }

    fn why_free(&self) -> Reason {
        let Some(missed) = self.objectives.values().find(|watched| watched.alarm.is_on()) else {
            return Reason::Met;
        };
        let objective = missed.objective;
        let (cause, _) = missed.cause(|group| self.class(group));
        match missed.retry() {
            _ if !self.be_runs() => Reason::NoBe { objective },
            _ if self.mode == Mode::Shadow => {
                let takes_cores = self.be.values().map(BeGroup::above_floor).sum();
                Reason::Shadow { objective, cause, takes_cores }
            }
            Some(retry) => Reason::NoHelp { objective, cause, effect: retry.effect, retry_at: retry.at },
            None => Reason::Met,
        }
    }
}

/// What makes BE yield, group by group, where it can.
fn yielding(be: &BTreeMap<GroupId, BeGroup>) -> impl Iterator<Item = (GroupId, Restraint)> {
    let can = be.values().filter(|be| be.can_yield());
    can.map(|be| (be.id, Restraint { idle: true, ..Restraint::default() }))
}

//! The order of alarm, cause, trial and hold.

mod be;
mod squeeze;
mod watched;

use std::time::Duration;

use self::{
    be::{BeGroup, STOPPED},
    squeeze::Squeeze,
    watched::Watched,
};
use super::{
    bands::Bands,
    cause::{Cause, STEAL_MAX, Verdict},
    hold::{self, Hold},
    plan::{Objective, Plan, Proof, Reason},
    trial::{Effect, Step, Trial},
};
use crate::{
    model::{GroupId, Lever, Restraint, Signal, Snapshot},
    policy::{Class, Policy},
    signal::tally::ALLOWED,
};

/// An LS group that says nothing for so long no longer keeps BE squeezed.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it is remembered that these BE groups were the cause.
const REMEMBERED: Duration = Duration::from_mins(30);
/// The slow share that a first quota aims at, of what is allowed, and the most it leaves.
const AIM: f64 = 0.7;
const FIRST_SHARE_MAX: f64 = 0.6;
/// Of the memory that may be taken from BE, it keeps so much at first.
const MEMORY_FIRST: f64 = 0.5;
/// So many BE groups are tried one by one before all together.
const SINGLES_MAX: usize = 3;

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
    be: Vec<BeGroup>,
    objectives: Vec<Watched>,
    phase: Phase,
    learned: Vec<Learned>,
    taken_at: Duration,
    plan: Plan,
}

/// That some BE groups, by place, were the cause of one objective's trouble, and what they may keep.
#[derive(Debug)]
struct Learned {
    watched: usize,
    who: Vec<usize>,
    bands: Bands,
    at: Duration,
}

#[derive(Debug)]
enum Phase {
    Free,
    Trying(Trying),
    Squeeze(Squeeze),
}

/// A trial that goes on.
#[derive(Debug)]
struct Trying {
    trial: Trial,
    watched: usize,
    /// Who is stopped, by place.
    who: Vec<usize>,
    /// When it ran last.
    ran_at: Duration,
    /// Who is tried next, last first.
    next: Vec<Vec<usize>>,
    /// The squeeze that is to be verified.
    proven: Option<Squeeze>,
}

impl Governor {
    /// Starts with no limits.
    pub fn new(policy: &Policy, mode: Mode) -> Self {
        let groups = || policy.groups.iter().enumerate().map(|(index, group)| (GroupId(index), group));
        let be = groups().filter(|(_, group)| group.class == Class::BE);
        let objectives = groups().flat_map(|(victim, group)| {
            let slo = group.slo;
            let watched = move |&signal: &Signal| slo.promise(signal).is_some() || slo.auto(signal).is_some();
            let signals = Signal::ALL.into_iter().filter(watched);
            signals.map(move |signal| Watched::new(Objective { victim, signal }, slo.promise(signal)))
        });
        Self {
            mode,
            cpus: policy.cpus,
            be: be.map(|(id, group)| BeGroup::new(id, group.floor)).collect(),
            objectives: objectives.collect(),
            phase: Phase::Free,
            learned: Vec::new(),
            taken_at: Duration::ZERO,
            plan: Plan::default(),
        }
    }

    /// The plan for a node that looks like `node`. Snapshots come in the order in which they were taken.
    pub fn decide(&mut self, node: &Snapshot) -> &Plan {
        let elapsed = node.taken_at.saturating_sub(self.taken_at);
        self.taken_at = node.taken_at;
        let spoilt = node.steal.is_some_and(|steal| steal > STEAL_MAX);
        for be in &mut self.be {
            let restraint = self.plan.restraints.get(&be.id).copied().unwrap_or_default();
            be.observe(&node.groups[be.id.0], elapsed, restraint);
        }
        for watched in &mut self.objectives {
            watched.observe(node, elapsed, spoilt);
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Free) {
            Phase::Free => self.look_for_trouble(),
            Phase::Trying(trying) => self.go_on_trying(trying, node, spoilt),
            Phase::Squeeze(squeeze) => self.go_on_squeezing(squeeze, node, spoilt),
        };
        self.write_plan();
        &self.plan
    }

    fn is_be(&self, group: GroupId) -> bool {
        self.be.iter().any(|be| be.id == group)
    }

    fn be_cores(&self) -> f64 {
        self.be.iter().map(|be| be.usage).sum()
    }

    /// CPUs that BE uses when nothing limits it.
    fn be_wants(&self) -> f64 {
        self.be.iter().map(|be| be.demand).sum()
    }

    fn be_runs(&self) -> bool {
        self.be.iter().any(BeGroup::runs)
    }

    /// Nothing is squeezed: does an alarm call for something?
    fn look_for_trouble(&mut self) -> Phase {
        if self.mode == Mode::Shadow {
            return Phase::Free;
        }
        (0..self.objectives.len()).find_map(|watched| self.react(watched)).unwrap_or(Phase::Free)
    }

    fn react(&mut self, watched: usize) -> Option<Phase> {
        let objective = &self.objectives[watched];
        let alarm = objective.alarm;
        if !(alarm.is_on() || alarm.is_sudden()) {
            return None;
        }
        let waits = objective.waits_for_retry(self.taken_at, self.be_cores());
        // A trial without effect contradicts blame. One in which the objective was met says nothing of what changed since.
        let may_blame = !waits || objective.retry().is_some_and(|retry| retry.effect.is_met_with_be());
        if may_blame && let Some(phase) = self.blame(watched) {
            return Some(phase);
        }
        // What follows costs BE something on less than the kernel's word.
        if waits || !alarm.lasts() || !self.be_runs() {
            return None;
        }
        self.remember(watched).or_else(|| self.try_without_be(watched))
    }

    /// The kernel itself saw what BE did while the victim waited: no trial is needed.
    fn blame(&mut self, watched: usize) -> Option<Phase> {
        let objective = &self.objectives[watched];
        let (cause, evidence) = objective.cause(|group| self.is_be(group));
        match cause {
            Cause::BeCpu => {
                let who = self.places(&objective.culprits(self.be.iter().map(|be| be.id)));
                let proof = Proof::Blame { waited_for_be: evidence.waited_for_be };
                // The weakest lever first: one that takes nothing from BE where nobody else wants the CPU.
                let all_idle = who.iter().all(|&place| self.be[place].has(Lever::Idle));
                let squeeze = self.squeeze(watched, who, proof, if all_idle { 1.0 } else { 0.0 });
                Some(Phase::Squeeze(squeeze.frozen_at_the_floor(self.taken_at)))
            }
            Cause::BeMemory => {
                let who = self.places(objective.memory_user.as_slice());
                let can = who.iter().all(|&place| self.be[place].has(Lever::Memory));
                can.then(|| Phase::Squeeze(self.squeeze(watched, who, Proof::Memory, MEMORY_FIRST)))
            }
            _ => None,
        }
    }

    /// BE that was proven to be the cause lately, and runs, need not be tried again.
    fn remember(&mut self, watched: usize) -> Option<Phase> {
        let now = self.taken_at;
        let found = self.learned.iter().find(|learned| {
            learned.watched == watched
                && now < learned.at + REMEMBERED
                && learned.who.iter().any(|&place| self.be[place].runs())
        });
        let who = found?.who.clone();
        let squeeze = self.squeeze(watched, who, Proof::Remembered, 0.0);
        Some(Phase::Squeeze(squeeze.frozen_at_the_floor(now)))
    }

    /// Starts a squeeze with what was learned of these groups, or with `share`.
    fn squeeze(&mut self, watched: usize, who: Vec<usize>, proof: Proof, share: f64) -> Squeeze {
        let now = self.taken_at;
        let known = self.learned.iter().position(|learned| learned.watched == watched && learned.who == who);
        let cause = self.proven_cause(watched, proof);
        let mut bands = known.map_or_else(Bands::default, |place| self.learned.swap_remove(place).bands);
        bands.follow(self.objectives[watched].load_hz);
        let hold = Hold::start(now, self.objectives.len(), bands, share);
        self.reset_alarms();
        Squeeze::start(now, hold, watched, who, cause, proof)
    }

    /// What the proof says, and where it says only that it is BE: on the CPUs, or in the caches?
    fn proven_cause(&self, watched: usize, proof: Proof) -> Cause {
        match (proof, self.objectives[watched].cause(|group| self.is_be(group))) {
            (Proof::Blame { .. }, _) => Cause::BeCpu,
            (Proof::Memory, _) => Cause::BeMemory,
            (Proof::Trial(_) | Proof::Remembered, (cause @ (Cause::BeCpu | Cause::BeMemory), _)) => cause,
            (Proof::Trial(_) | Proof::Remembered, _) => Cause::BeCache,
        }
    }

    /// Who is to be tried: what runs, one group after the other, the likeliest first, then all of them.
    fn try_without_be(&self, watched: usize) -> Option<Phase> {
        let objective = &self.objectives[watched];
        let running = |place: &usize| self.be[*place].runs() && self.be[*place].has(Lever::Quota);
        let mut running: Vec<usize> = (0..self.be.len()).filter(running).collect();
        let all = running.clone();
        let guilt = |place: &usize| {
            let be = &self.be[*place];
            objective.waited_for(be.id) + be.usage
        };
        running.sort_by(|a, b| guilt(b).total_cmp(&guilt(a)));
        let singles = running.into_iter().take(SINGLES_MAX).map(|place| vec![place]);
        let mut next: Vec<Vec<usize>> = singles.collect();
        if all.len() > 1 {
            next.push(all);
        }
        next.reverse();
        self.try_next(watched, next)
    }

    fn try_next(&self, watched: usize, mut next: Vec<Vec<usize>>) -> Option<Phase> {
        let who = next.pop()?;
        Some(Phase::Trying(self.trying(watched, who, next, None)))
    }

    fn trying(
        &self,
        watched: usize,
        who: Vec<usize>,
        next: Vec<Vec<usize>>,
        proven: Option<Squeeze>,
    ) -> Trying {
        let now = self.taken_at;
        let seed = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let trial = Trial::start(now, self.objectives[watched].rate_hz, seed);
        Trying { trial, watched, who, ran_at: now, next, proven }
    }

    fn go_on_trying(&mut self, mut trying: Trying, node: &Snapshot, spoilt: bool) -> Phase {
        let now = self.taken_at;
        let watched = trying.watched;
        let tally = self.objectives[watched].tally(node).unwrap_or_default();
        if trying.who.iter().any(|&place| self.be[place].runs_now(node)) {
            trying.ran_at = now;
        }
        match trying.trial.observe(now, (!spoilt).then_some(tally)) {
            Step::Continue { .. } => Phase::Trying(trying),
            Step::NoHelp(_) | Step::Met(_) if now > trying.ran_at + trying.trial.longest_stop() => {
                // It ended by itself meanwhile: nothing was compared.
                self.reset_alarms();
                trying.proven.map_or(Phase::Free, |squeeze| self.release(squeeze))
            }
            Step::Met(effect) => {
                self.did_not_help(watched, effect);
                trying.proven.map_or(Phase::Free, |mut squeeze| {
                    squeeze.hold.allow_all();
                    self.release(squeeze)
                })
            }
            Step::NoHelp(effect) => {
                if let Some(phase) = self.try_next(watched, trying.next) {
                    return phase;
                }
                self.did_not_help(watched, effect);
                self.learned.retain(|learned| learned.watched != watched);
                Phase::Free
            }
            Step::Helps(effect) => {
                self.objectives[watched].helped();
                let proof = Proof::Trial(effect);
                Phase::Squeeze(match trying.proven {
                    Some(squeeze) => {
                        self.reset_alarms();
                        squeeze.proven_again(now, proof)
                    }
                    None => self.squeeze(watched, trying.who, proof, first_share(effect)),
                })
            }
        }
    }

    fn go_on_squeezing(&mut self, mut squeeze: Squeeze, node: &Snapshot, spoilt: bool) -> Phase {
        let now = self.taken_at;
        let objective = &self.objectives[squeeze.watched];
        let someone_runs = squeeze.who.iter().any(|&place| self.be[place].runs());
        if squeeze.has_taken_hold(now) && (!someone_runs || now >= objective.heard_at + SILENCE) {
            return self.release(squeeze);
        }
        let (be_cores, objectives) = (self.be_cores(), &self.objectives);
        let tallies = objectives.iter().map(|watched| {
            let says_nothing_of_be = spoilt || watched.waits_for_retry(now, be_cores);
            watched.tally(node).filter(|_| !says_nothing_of_be)
        });
        if squeeze.observe(now, objective.load_hz, tallies) == hold::Verdict::Release {
            return self.release(squeeze);
        }
        if squeeze.must_be_verified(now) {
            let (watched, who) = (squeeze.watched, squeeze.who.clone());
            return Phase::Trying(self.trying(watched, who, Vec::new(), Some(squeeze)));
        }
        Phase::Squeeze(squeeze)
    }

    fn did_not_help(&mut self, watched: usize, effect: Effect) {
        let be_cores = self.be_wants();
        self.objectives[watched].did_not_help(self.taken_at, effect, be_cores);
        self.reset_alarms();
    }

    fn release(&mut self, squeeze: Squeeze) -> Phase {
        let Squeeze { watched, who, hold, proof, .. } = squeeze;
        // Shares of memory say nothing of shares of CPU.
        if proof != Proof::Memory {
            self.learned.push(Learned { watched, who, bands: hold.into_bands(), at: self.taken_at });
        }
        self.reset_alarms();
        Phase::Free
    }

    /// What the alarms heard was said under other conditions.
    fn reset_alarms(&mut self) {
        for watched in &mut self.objectives {
            watched.alarm.reset();
        }
    }

    /// Places of these BE groups, ascending.
    fn places(&self, groups: &[GroupId]) -> Vec<usize> {
        (0..self.be.len()).filter(|&place| groups.contains(&self.be[place].id)).collect()
    }

    fn write_plan(&mut self) {
        let now = self.taken_at;
        self.plan.reason = self.reason();
        self.plan.restraints.clear();
        self.plan.evict.clear();
        self.plan.again_at = None;
        match &self.phase {
            Phase::Trying(Trying { trial, who, .. }) if trial.stops_be() => {
                let existing = who.iter().map(|&place| &self.be[place]).filter(|be| be.exists);
                self.plan.restraints.extend(existing.map(|be| (be.id, STOPPED)));
            }
            Phase::Free | Phase::Trying(_) => {}
            Phase::Squeeze(squeeze) => {
                let existing = squeeze.who.iter().map(|&place| &self.be[place]).filter(|be| be.exists);
                for be in existing {
                    let restraint = squeeze.restraint(now, be, self.cpus);
                    if restraint != Restraint::default() {
                        self.plan.restraints.insert(be.id, restraint);
                    }
                    if squeeze.evicts(now) {
                        self.plan.evict.push(be.id);
                    }
                }
                self.plan.again_at = squeeze.again_at(now);
            }
        }
        self.write_verdicts();
    }

    fn write_verdicts(&mut self) {
        let mut verdicts = std::mem::take(&mut self.plan.verdicts);
        verdicts.clear();
        for (place, watched) in self.objectives.iter().enumerate() {
            let proven = match &self.phase {
                // Cured, it shows nothing any more.
                Phase::Squeeze(squeeze) if squeeze.watched == place => Some(squeeze.cause),
                Phase::Trying(trying) if trying.watched == place => None,
                _ if watched.alarm.is_on() => None,
                _ => continue,
            };
            let (cause, evidence) = watched.cause(|group| self.is_be(group));
            let cause = proven.unwrap_or(cause);
            verdicts.push(Verdict { objective: watched.objective, cause, evidence });
        }
        self.plan.verdicts = verdicts;
    }

    fn reason(&self) -> Reason {
        match &self.phase {
            Phase::Free => self.why_free(),
            Phase::Trying(Trying { watched, .. }) => {
                Reason::Trial { objective: self.objectives[*watched].objective }
            }
            Phase::Squeeze(squeeze) => Reason::Squeeze {
                objective: self.objectives[squeeze.watched].objective,
                share: squeeze.hold.share(),
                proof: squeeze.proof,
            },
        }
    }

    fn why_free(&self) -> Reason {
        let Some(missed) = self.objectives.iter().find(|watched| watched.alarm.is_on()) else {
            return Reason::Met;
        };
        let objective = missed.objective;
        let (cause, _) = missed.cause(|group| self.is_be(group));
        match missed.retry() {
            _ if !self.be_runs() => Reason::NoBe { objective },
            _ if self.mode == Mode::Shadow => {
                let takes_cores = self.be.iter().map(BeGroup::above_floor).sum();
                Reason::Shadow { objective, cause, takes_cores }
            }
            Some(retry) => Reason::NoHelp { objective, cause, effect: retry.effect, retry_at: retry.at },
            None => Reason::Met,
        }
    }
}

/// What BE may keep at first, by what stopping it showed. With long periods BE runs at full speed for its share of the
/// time, so the slow share lies on the line between that without BE and that with all of it.
fn first_share(effect: Effect) -> f64 {
    let (Some(with_be), Some(without_be)) = (effect.with_be.share(), effect.without_be.share()) else {
        return 0.0;
    };
    let share = (AIM * ALLOWED - without_be) / (with_be - without_be).max(1e-6);
    if share > 0.0 { share.min(FIRST_SHARE_MAX) } else { 0.0 }
}

#[cfg(test)]
mod tests;

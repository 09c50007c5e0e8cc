//! Squeezes: what begins one, how it goes on, and what ends it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Governor, Phase, SILENCE,
    be::{self, BeGroup},
    learned::Learned,
    squeeze::Squeeze,
    trying::Trying,
};
use crate::{
    decision::{
        bands::Bands,
        cause::Cause,
        hold::{Hold, Verdict},
        plan::{Objective, Proof},
    },
    model::{GroupId, Lever, Signal, Snapshot},
};

/// An LS group of which nothing but stolen time is heard for so long keeps nobody squeezed: whether BE is the cause cannot be seen
/// then.
const SPOILT: Duration = Duration::from_mins(1);
/// Of the memory that may be taken from BE, it keeps so much at first.
const MEMORY_FIRST: f64 = 0.5;

/// Whom the kernel names, and what is missed for it.
#[derive(Debug)]
pub struct Blamed {
    watched: Objective,
    who: Vec<GroupId>,
    proof: Proof,
}

impl Governor {
    /// The kernel itself saw what BE did while the victim waited: no trial is needed.
    pub(super) fn blame(&mut self, watched: Objective) -> Option<Squeeze> {
        let blamed = self.blamed(watched)?;
        Some(self.squeeze_blamed(blamed))
    }

    pub(super) fn blamed(&self, watched: Objective) -> Option<Blamed> {
        let objective = &self.objectives[&watched];
        let (cause, evidence) = objective.cause(|group| self.class(group));
        match cause {
            Cause::BeCpu => {
                let mut who = objective.culprits(self.be.keys().copied());
                who.retain(|id| self.be[id].can_be_held_back());
                let proof = Proof::Blame { waited_for_be: evidence.waited_for_be };
                (!who.is_empty()).then_some(Blamed { watched, who, proof })
            }
            Cause::BeMemory => {
                let who: Vec<GroupId> = objective.memory_user.into_iter().collect();
                let can = who.iter().all(|id| self.be[id].has(Lever::Memory));
                can.then_some(Blamed { watched, who, proof: Proof::Memory })
            }
            _ => None,
        }
    }

    pub(super) fn squeeze_blamed(&mut self, Blamed { watched, who, proof }: Blamed) -> Squeeze {
        if proof == Proof::Memory {
            return self.squeeze(watched, who, proof, MEMORY_FIRST);
        }
        // The weakest lever first: one that takes nothing from BE where nobody else wants the CPU.
        let share = if self.can_all_idle(&who) { 1.0 } else { 0.0 };
        self.squeeze(watched, who, proof, share).frozen_at_the_floor(self.taken_at)
    }

    fn can_all_idle(&self, who: &[GroupId]) -> bool {
        who.iter().all(|id| self.be[id].has(Lever::Idle))
    }

    /// BE that was proven to be the cause lately, and runs, need not be tried again.
    pub(super) fn remember(&mut self, watched: Objective) -> Option<Squeeze> {
        let now = self.taken_at;
        let objective = &self.objectives[&watched];
        let victim = &objective.workload;
        // What is known to have another cause is no reason to suspect whom it once suffered from.
        let (cause, _) = objective.cause(|group| self.class(group));
        let is_anothers = match cause {
            Cause::OwnQuota | Cause::Steal => true,
            Cause::OwnLoad | Cause::OtherLs | Cause::System => watched.signal == Signal::MemoryStall,
            Cause::BeCpu | Cause::BeCache | Cause::BeMemory | Cause::Unknown => false,
        };
        if is_anothers {
            return None;
        }
        let found = self.learned.iter().find_map(|learned| {
            let is_it = learned.is_of(victim, watched.signal) && learned.is_fresh(now);
            let who = if is_it { self.members(&learned.culprits) } else { Vec::new() };
            who.iter().any(|id| self.be[id].runs() && self.be[id].can_be_held_back()).then_some(who)
        });
        let squeeze = self.squeeze(watched, found?, Proof::Remembered, 0.0);
        Some(squeeze.frozen_at_the_floor(now))
    }

    /// The groups of these workloads.
    fn members(&self, workloads: &BTreeSet<String>) -> Vec<GroupId> {
        let members = self.be.values().filter(|be| workloads.contains(&be.workload));
        members.map(|be| be.id).collect()
    }

    /// Starts a squeeze with what was learned of these groups' workloads, or with `share`.
    pub(super) fn squeeze(
        &mut self,
        watched: Objective,
        who: Vec<GroupId>,
        proof: Proof,
        share: f64,
    ) -> Squeeze {
        let now = self.taken_at;
        let culprits: BTreeSet<String> = who.iter().map(|id| self.be[id].workload.clone()).collect();
        let victim = &self.objectives[&watched].workload;
        let is_known =
            |learned: &Learned| learned.is_of(victim, watched.signal) && learned.culprits == culprits;
        let known = self.learned.iter().position(is_known);
        let cause = self.proven_cause(watched, proof);
        let of_any =
            |learned: &&Learned| learned.victim == *victim && !learned.culprits.is_disjoint(&culprits);
        let patience = self.learned.iter().filter(of_any).map(|learned| learned.next_patience(now)).max();
        let patience = patience.unwrap_or_default();
        let mut bands = known.map_or_else(Bands::default, |place| self.learned.swap_remove(place).bands);
        bands.enter(self.objectives[&watched].load_hz);
        let hold = Hold::start(now, bands, share).with_patience(patience);
        self.reset_alarms();
        Squeeze::start(now, hold, watched, (who, culprits), cause, proof)
    }

    /// What the proof says, and where it says only that it is BE: on the CPUs, or in the caches?
    fn proven_cause(&self, watched: Objective, proof: Proof) -> Cause {
        match (proof, self.objectives[&watched].cause(|group| self.class(group))) {
            (Proof::Blame { .. }, _) => Cause::BeCpu,
            (Proof::Memory, _) => Cause::BeMemory,
            (Proof::Trial(_) | Proof::Remembered, (cause @ (Cause::BeCpu | Cause::BeMemory), _)) => cause,
            (Proof::Trial(_) | Proof::Remembered, _) => Cause::BeCache,
        }
    }

    pub(super) fn go_on_squeezing(&mut self, mut squeeze: Squeeze, node: &Snapshot, spoilt: bool) -> Phase {
        // Another pod of the same workload shares its lot.
        squeeze.who = self.members(&squeeze.culprits);
        if self.is_pointless(&squeeze) {
            return self.release(squeeze);
        }
        self.note_floors(&mut squeeze);
        if self.search(&mut squeeze, node, spoilt) == Verdict::Release {
            return self.release(squeeze);
        }
        let those: &[GroupId] = if squeeze.is_of_memory() { &[] } else { &squeeze.who };
        if !spoilt && let Some(blamed) = self.blamed_besides(those, squeeze.yields.is_some()) {
            return Phase::Squeeze(self.squeeze_besides(squeeze, blamed));
        }
        let can_be_stopped = squeeze.who.iter().any(|id| self.be[id].has(Lever::Quota));
        if !spoilt && can_be_stopped && squeeze.must_be_verified(self.taken_at) {
            let (watched, who, yields) = (squeeze.watched, squeeze.who.clone(), squeeze.yields);
            let trying = self.trying(watched, who, Vec::new(), Some(squeeze));
            return Phase::Trying(Trying { yields, ..trying });
        }
        Phase::Squeeze(squeeze)
    }

    /// Whom the kernel names on the CPUs besides those whose CPU something is done about.
    pub(super) fn blamed_besides(&self, those: &[GroupId], yields: bool) -> Option<Blamed> {
        let in_trouble = self.in_trouble().filter(|watched| self.may_suspect(*watched, yields));
        in_trouble
            .filter_map(|watched| self.blamed(watched))
            .find(|blamed| blamed.proof != Proof::Memory && blamed.who.iter().any(|id| !those.contains(id)))
    }

    /// Squeezes them as well: with the share that the others have, or where all may stay at that, by nothing but rank. Memory is
    /// given back for it.
    pub(super) fn squeeze_besides(&mut self, squeeze: Squeeze, mut blamed: Blamed) -> Squeeze {
        let (share, yields) = (squeeze.hold.share(), squeeze.yields);
        let takes_quota = share < 1.0 && !squeeze.is_of_memory();
        let is_of_rank = || self.can_all_idle(&blamed.who) && self.can_all_idle(&squeeze.who);
        if takes_quota || (!squeeze.is_of_memory() && is_of_rank()) {
            blamed.who.extend(&squeeze.who);
            blamed.who.sort_unstable();
            blamed.who.dedup();
        }
        self.release(squeeze);
        let squeeze = if takes_quota {
            let Blamed { watched, who, proof } = blamed;
            self.squeeze(watched, who, proof, share).frozen_at_the_floor(self.taken_at)
        } else {
            self.squeeze_blamed(blamed)
        };
        squeeze.beside(yields)
    }

    /// Whether nobody is there any more who could be held back, or for whom.
    fn is_pointless(&self, squeeze: &Squeeze) -> bool {
        let now = self.taken_at;
        let objective = &self.objectives[&squeeze.watched];
        // Who sleeps on memory holds it all the same.
        let goes_on = |be: &BeGroup| if squeeze.is_of_memory() { be.exists } else { be.runs() };
        let someone_runs = squeeze.who.iter().any(|id| goes_on(&self.be[id]));
        let says_nothing = now >= objective.heard_at + SILENCE || now >= self.clean_at + SPOILT;
        if squeeze.has_taken_hold(now) && (!someone_runs || says_nothing) {
            return true;
        }
        // In vain: somebody else takes the memory now, or nobody does and something is missed all the same.
        let takes_no_more = match objective.memory_user {
            Some(user) => !squeeze.who.contains(&user),
            None => self.objectives.values().any(|watched| watched.alarm.is_on()),
        };
        squeeze.is_of_memory() && squeeze.is_in_vain(now) && takes_no_more
    }

    /// BE that has less than its floors for too long takes turns with the others, or yields no longer.
    fn note_floors(&mut self, squeeze: &mut Squeeze) {
        let now = self.taken_at;
        squeeze.note_floors(now, be::are_below_floors(squeeze.who.iter().map(|id| &self.be[id])));
        let Some(yielding) = &mut squeeze.yields else { return };
        let others = self.be.values().filter(|be| be.can_yield() && !squeeze.who.contains(&be.id));
        if yielding.starves(now, be::are_below_floors(others)) {
            let dear = yielding.watched;
            squeeze.yields = None;
            self.watched_mut(dear).yielding.was_in_vain(now);
        }
    }

    /// Searches on for what BE may keep.
    fn search(&self, squeeze: &mut Squeeze, node: &Snapshot, spoilt: bool) -> Verdict {
        let (now, be_cores, yields) = (self.taken_at, self.be_cores(), squeeze.yields.is_some());
        let tallies = self.objectives.values().filter_map(|watched| {
            let says_nothing_of_be = spoilt || watched.waits_for_retry(now, be_cores, yields);
            Some((watched.objective, watched.tally(node).filter(|_| !says_nothing_of_be)?))
        });
        squeeze.observe(now, self.objectives[&squeeze.watched].load_hz, tallies)
    }

    pub(super) fn release(&mut self, squeeze: Squeeze) -> Phase {
        let Squeeze { watched, culprits, hold, proof, yields, .. } = squeeze;
        let now = self.taken_at;
        self.learned.retain(|learned| learned.is_fresh(now));
        // Shares of memory say nothing of shares of CPU.
        if proof != Proof::Memory && !culprits.is_empty() {
            let victim = self.objectives[&watched].workload.clone();
            let (patience, bands) = (hold.patience(), hold.into_bands());
            self.learned.push(Learned { victim, signal: watched.signal, culprits, bands, patience, at: now });
        }
        self.reset_alarms();
        Phase::after(yields)
    }
}

//! A squeeze in force: who is held back, with which levers, and until when without another look.

use std::{collections::BTreeSet, time::Duration};

use super::{
    be::BeGroup,
    yielding::{Hunger, Yielding},
};
use crate::{
    decision::{
        cause::Cause,
        hold::{Hold, Verdict},
        plan::{Objective, Proof},
    },
    model::{GroupId, Lever, Restraint},
    signal::tally::Tally,
};

/// How long BE is frozen while its quota takes hold. Tens of milliseconds at most: what is frozen may hold what LS waits
/// for.
const FREEZE: Duration = Duration::from_millis(20);
/// How soon a squeeze must prove itself again, doubled each time it does.
const VERIFY_MIN: Duration = Duration::from_secs(30);
const VERIFY_MAX: Duration = Duration::from_mins(10);
/// BE at its floor and the objective still missed for so long: fewer CPUs as well.
const PIN_AFTER: Duration = Duration::from_secs(3);
/// BE at its floor for so long is better off on another node.
const EVICT_AFTER: Duration = Duration::from_mins(2);
/// A squeeze is not given up earlier: what it does takes a moment to show.
const TAKES_HOLD: Duration = Duration::from_secs(1);

/// A squeeze.
#[derive(Clone, Debug)]
pub struct Squeeze {
    pub hold: Hold,
    /// Which objective it is for.
    pub watched: Objective,
    /// Which BE groups it holds back.
    pub who: Vec<GroupId>,
    /// Their workloads.
    pub culprits: BTreeSet<String>,
    pub cause: Cause,
    pub proof: Proof,
    /// The other BE yields: that was not enough, but is not undone either.
    pub yields: Option<Yielding>,
    began: Duration,
    frozen_until: Duration,
    /// Since when BE has had its floor only.
    floor_since: Option<Duration>,
    /// Since when that has been in vain.
    in_vain_since: Option<Duration>,
    verify_at: Duration,
    verify_after: Duration,
    hunger: Hunger,
    /// BE had less than its floors for too long, and yields no longer.
    takes_turns: bool,
}

impl Squeeze {
    pub fn start(
        now: Duration,
        hold: Hold,
        watched: Objective,
        (who, culprits): (Vec<GroupId>, BTreeSet<String>),
        cause: Cause,
        proof: Proof,
    ) -> Self {
        Self {
            hold,
            watched,
            who,
            culprits,
            cause,
            proof,
            yields: None,
            began: now,
            frozen_until: Duration::ZERO,
            floor_since: None,
            in_vain_since: None,
            verify_at: now + VERIFY_MIN,
            verify_after: VERIFY_MIN,
            hunger: Hunger::default(),
            takes_turns: false,
        }
    }

    /// Stops BE at once if little is left to it; the quota takes some milliseconds.
    #[must_use]
    pub fn frozen_at_the_floor(mut self, now: Duration) -> Self {
        if self.hold.share() == 0.0 {
            self.frozen_until = now + FREEZE;
        }
        self
    }

    /// Proven once more.
    #[must_use]
    pub fn proven_again(mut self, now: Duration, proof: Proof) -> Self {
        self.proof = proof;
        self.verify_after = (self.verify_after * 2).min(VERIFY_MAX);
        self.resumed(now)
    }

    /// The other BE goes on yielding, if it does.
    #[must_use]
    pub const fn beside(mut self, yields: Option<Yielding>) -> Self {
        self.yields = yields;
        self
    }

    /// Goes on after a trial.
    #[must_use]
    pub fn resumed(mut self, now: Duration) -> Self {
        self.hold.restart(now);
        self.verify_at = now + self.verify_after;
        self.in_vain_since = None;
        // In the trial BE could not show whether it starves.
        self.hunger = Hunger::default();
        self
    }

    /// Takes in what was counted, per objective.
    pub fn observe(
        &mut self,
        now: Duration,
        load_hz: f64,
        tallies: impl Iterator<Item = (Objective, Tally)>,
    ) -> Verdict {
        let verdict = self.hold.observe(now, load_hz, tallies);
        let at_floor = self.hold.share() == 0.0;
        self.floor_since = at_floor.then(|| self.floor_since.unwrap_or(now));
        self.in_vain_since = self.hold.is_in_vain().then(|| self.in_vain_since.unwrap_or(now));
        if self.in_vain_since == Some(now) && matches!(self.proof, Proof::Blame { .. } | Proof::Remembered) {
            // Only a trial can tell whether it would be worse without.
            self.verify_at = now;
        }
        verdict
    }

    pub fn has_taken_hold(&self, now: Duration) -> bool {
        now >= self.began + TAKES_HOLD
    }

    /// Whether it holds memory back, not CPU.
    pub const fn is_of_memory(&self) -> bool {
        matches!(self.proof, Proof::Memory)
    }

    /// Whether BE has long had its floor only and the objective is missed all the same.
    pub fn is_in_vain(&self, now: Duration) -> bool {
        self.in_vain_since.is_some_and(|since| now >= since + PIN_AFTER)
    }

    /// Takes note of whether BE, which yields to too many, has less than its floors. If it has had for too long, it yields no
    /// longer: then its quota alone holds it back.
    pub fn note_floors(&mut self, now: Duration, below_floors: bool) {
        self.takes_turns |= self.hunger.is_long(now, below_floors);
    }

    /// One of memory is not verified: stopped, BE gives nothing back. One that leaves BE all that nobody else wants need not
    /// prove itself at BE's cost: it ends by itself soon.
    pub fn must_be_verified(&self, now: Duration) -> bool {
        !self.is_of_memory() && now >= self.verify_at && self.has_taken_hold(now) && self.hold.share() < 1.0
    }

    /// What it does to one group. `cpus`: of the node.
    pub fn restraint(&self, now: Duration, be: &BeGroup, cpus: u32) -> Restraint {
        if self.is_of_memory() {
            let memory_high = be.memory_high(self.hold.share());
            return Restraint { memory_high, ..Restraint::default() };
        }
        let pinned = self.is_in_vain(now);
        Restraint {
            frozen: now < self.frozen_until && be.has(Lever::Freeze),
            idle: be.has(Lever::Idle) && !self.takes_turns,
            quota: be.quota(self.hold.share(), self.cause).filter(|_| be.has(Lever::Quota)),
            memory_high: None,
            cpus: (pinned && be.has(Lever::Cpuset) && cpus > 1).then(|| cpus.div_ceil(2)),
        }
    }

    /// When a freeze ends.
    pub fn again_at(&self, now: Duration) -> Option<Duration> {
        (now < self.frozen_until).then_some(self.frozen_until)
    }

    pub fn evicts(&self, now: Duration) -> bool {
        self.floor_since.is_some_and(|since| now >= since + EVICT_AFTER)
    }
}

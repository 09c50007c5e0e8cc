//! Why does an LS group miss its objective?

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{plan::Objective, trial::Effect};
use crate::{
    model::{Culprit, GroupId},
    policy::Class,
    signal::{average::kept, tally::ALLOWED},
};

/// Waiting for somebody explains slow ones if it took this part of the objective for each of them. Half: the rest of a
/// slow request is its own work.
const EXPLAINS: f64 = 0.5;
/// A group that its own quota stops for so much of the time need not look further.
const THROTTLED: f64 = 0.05;
/// One that its own quota stops for more of the time than it may have slow ones waits while others run, whom that does not
/// make guilty: its tasks count as runnable. Only a trial tells.
const THROTTLED_SOMEWHAT: f64 = ALLOWED;
/// Steal above this share of the node spoils what was counted meanwhile.
pub const STEAL_MAX: f64 = 0.05;
/// The part of BE's blame that must be covered before the others are let off.
const CULPRITS: f64 = 0.8;
/// What was heard fades with this time constant, and with the shorter one where slow ones came thick just now: what the
/// victim waited for before that has nothing to do with it.
pub const FADES: Duration = Duration::from_secs(1);
pub const FADES_SOON: Duration = Duration::from_millis(30);

/// The verdict on one missed objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// BE ran while it waited for a CPU.
    BeCpu,
    /// BE ran, and stopping it helped, though not by shorter waits: shared cache or memory bandwidth.
    BeCache,
    /// BE took the memory that it had to wait for.
    BeMemory,
    /// Its own CPU quota.
    OwnQuota,
    /// Its own tasks wait for each other, its own work takes longer, or its own memory is too little.
    OwnLoad,
    /// Other LS groups ran while it waited.
    OtherLs,
    /// Something that keeps the node going or that no policy names ran while it waited, the kernel's own threads included.
    System,
    /// The hypervisor gave the CPUs to others.
    Steal,
    /// Not known yet.
    Unknown,
}

impl Cause {
    pub const ALL: [Self; 9] = [
        Self::BeCpu,
        Self::BeCache,
        Self::BeMemory,
        Self::OwnQuota,
        Self::OwnLoad,
        Self::OtherLs,
        Self::System,
        Self::Steal,
        Self::Unknown,
    ];

    /// A fixed word for metric labels and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BeCpu => "be_cpu",
            Self::BeCache => "be_cache",
            Self::BeMemory => "be_memory",
            Self::OwnQuota => "own_quota",
            Self::OwnLoad => "own_load",
            Self::OtherLs => "other_ls",
            Self::System => "system",
            Self::Steal => "steal",
            Self::Unknown => "unknown",
        }
    }

    /// For people: what it suffers from.
    pub const fn words(self) -> &'static str {
        match self {
            Self::BeCpu => "BE on its CPUs",
            Self::BeCache => "BE in its caches or on its memory bus",
            Self::BeMemory => "BE in its memory",
            Self::OwnQuota => "its own CPU quota",
            Self::OwnLoad => "its own load",
            Self::OtherLs => "other LS groups on its CPUs",
            Self::System => "tasks outside all groups on its CPUs",
            Self::Steal => "the hypervisor, which gave its CPUs to others",
            Self::Unknown => "something not known yet",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.words())
    }
}

/// One missed objective and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub objective: Objective,
    pub cause: Cause,
    pub evidence: Evidence,
}

/// What a verdict rests on. Waits in seconds per second, summed over tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Slow ones per second.
    pub slow_hz: f64,
    /// Waited while BE ran, while its own group ran, while other LS groups did, while anything else did.
    pub waited_for_be: f64,
    pub waited_for_own: f64,
    pub waited_for_ls: f64,
    pub waited_for_others: f64,
    /// Waited for longer than the CPUs remember, so that nobody can be named. It speaks neither for nor against anybody.
    pub waited_for_unknown: f64,
    /// Share of the time that its own quota took.
    pub throttled: Option<f64>,
    pub steal: Option<f64>,
    /// What the last trial showed.
    pub effect: Option<Effect>,
}

impl Evidence {
    /// Why the objective, which promises `threshold`, is missed.
    pub fn cause(&self, threshold: Duration) -> Cause {
        let enough = EXPLAINS * self.slow_hz * threshold.as_secs_f64();
        let others = [
            (self.waited_for_own, Cause::OwnLoad),
            (self.waited_for_ls, Cause::OtherLs),
            (self.waited_for_others, Cause::System),
        ];
        let (most, who) = others.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("BUG: three of them");
        let throttled = |share| self.throttled.is_some_and(|found| found >= share);
        let explains = |waited: f64| self.slow_hz > 0.0 && waited >= enough && !throttled(THROTTLED_SOMEWHAT);
        if self.steal.is_some_and(|steal| steal > STEAL_MAX) {
            Cause::Steal
        } else if explains(self.waited_for_be) && self.waited_for_be >= most / 2.0 {
            Cause::BeCpu
        } else if self.effect.is_some_and(Effect::is_harm) {
            Cause::BeCache
        } else if throttled(THROTTLED) {
            Cause::OwnQuota
        } else if explains(most) {
            who
        } else if self.effect.is_some_and(|effect| !effect.is_met_with_be() && !effect.is_undecided()) {
            // Neither waits nor BE: what is left is its own doing.
            Cause::OwnLoad
        } else {
            Cause::Unknown
        }
    }
}

/// Why a group stalls for want of memory, by who is likely to use what it lacks.
pub fn of_memory_stalls(victim: GroupId, user: Option<GroupId>, class: impl Fn(GroupId) -> Class) -> Cause {
    match user.map(|user| (user, class(user))) {
        None => Cause::Unknown,
        Some((_, Class::BE)) => Cause::BeMemory,
        Some((_, Class::SYSTEM)) => Cause::System,
        Some((user, Class::LS)) if user == victim => Cause::OwnLoad,
        Some((_, Class::LS)) => Cause::OtherLs,
    }
}

/// Who one victim waited for lately, in seconds, and how many slow ones it had. Both fade.
#[derive(Clone, Debug)]
pub struct Waited {
    fades: Duration,
    /// What is left at the end of a stretch of time of what came evenly over it.
    left: f64,
    by: BTreeMap<Culprit, f64>,
    slow: f64,
}

impl Waited {
    /// What is heard fades with this time constant.
    pub const fn fading(fades: Duration) -> Self {
        Self { fades, left: 1.0, by: BTreeMap::new(), slow: 0.0 }
    }

    /// Lets what was heard fade. What is added next came in the time that elapsed.
    pub fn fade(&mut self, elapsed: Duration) {
        let kept = kept(elapsed, self.fades);
        let periods = elapsed.div_duration_f64(self.fades);
        self.left = if periods > 0.0 { (1.0 - kept) / periods } else { 1.0 };
        self.slow *= kept;
        self.by.values_mut().for_each(|seconds| *seconds *= kept);
    }

    /// Adds slow ones.
    pub fn add_slow(&mut self, slow: u64) {
        self.slow += slow as f64 * self.left;
    }

    /// Adds waits.
    pub fn add(&mut self, culprit: Culprit, waited: Duration) {
        *self.by.entry(culprit).or_default() += waited.as_secs_f64() * self.left;
    }

    /// A group went: what was waited for it is no reason to suspect whoever takes its place.
    pub fn forget(&mut self, group: GroupId) {
        if let Some(seconds) = self.by.remove(&Culprit::Group(group)) {
            *self.by.entry(Culprit::Unattributed).or_default() += seconds;
        }
    }

    /// As evidence; `class` tells what a group is.
    pub fn evidence(&self, victim: GroupId, class: impl Fn(GroupId) -> Class) -> Evidence {
        let scale = 1.0 / self.fades.as_secs_f64();
        let mut evidence = Evidence { slow_hz: self.slow * scale, ..Evidence::default() };
        for (culprit, seconds) in &self.by {
            let waited = match culprit {
                Culprit::Group(group) if *group == victim => &mut evidence.waited_for_own,
                Culprit::Group(group) => match class(*group) {
                    Class::BE => &mut evidence.waited_for_be,
                    Class::LS => &mut evidence.waited_for_ls,
                    Class::SYSTEM => &mut evidence.waited_for_others,
                },
                Culprit::Other | Culprit::Idle => &mut evidence.waited_for_others,
                Culprit::Unattributed => &mut evidence.waited_for_unknown,
            };
            *waited += seconds * scale;
        }
        evidence
    }

    /// Of these groups, those that it waited for most, until they cover most of the blame on all of them.
    pub fn culprits(&self, among: impl Iterator<Item = GroupId>) -> Vec<GroupId> {
        let mut blamed: Vec<(f64, GroupId)> = among.map(|group| (self.for_group(group), group)).collect();
        blamed.retain(|(seconds, _)| *seconds > 0.0);
        blamed.sort_by(|a, b| b.0.total_cmp(&a.0));
        let all: f64 = blamed.iter().map(|(seconds, _)| seconds).sum();
        let mut covered = 0.0;
        let mut found = Vec::new();
        for (seconds, group) in blamed {
            if covered >= CULPRITS * all {
                break;
            }
            covered += seconds;
            found.push(group);
        }
        found
    }

    /// Seconds waited for one group.
    pub fn for_group(&self, group: GroupId) -> f64 {
        self.by.get(&Culprit::Group(group)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::tally::Tally;

    const THRESHOLD: Duration = Duration::from_millis(2);
    const BAD: Evidence = Evidence {
        slow_hz: 100.0,
        waited_for_be: 0.01,
        waited_for_own: 0.01,
        waited_for_ls: 0.0,
        waited_for_others: 0.0,
        waited_for_unknown: 0.0,
        throttled: None,
        steal: Some(0.0),
        effect: None,
    };

    #[test]
    fn each_cause_has_its_evidence() {
        let tally = |slow| Tally { total: 1_000, slow };
        let helped = Effect { with_be: tally(50), without_be: tally(5), ..Effect::default() };
        let did_not_help = Effect { with_be: tally(50), without_be: tally(50), ..Effect::default() };
        for (evidence, expected) in [
            (BAD, Cause::Unknown),
            (Evidence { waited_for_be: 0.3, ..BAD }, Cause::BeCpu),
            (Evidence { waited_for_be: 0.3, waited_for_own: 0.9, ..BAD }, Cause::OwnLoad),
            (Evidence { waited_for_be: 0.3, waited_for_unknown: 0.9, ..BAD }, Cause::BeCpu),
            (Evidence { waited_for_unknown: 0.9, ..BAD }, Cause::Unknown),
            (Evidence { waited_for_own: 0.2, ..BAD }, Cause::OwnLoad),
            (Evidence { waited_for_ls: 0.2, ..BAD }, Cause::OtherLs),
            (Evidence { waited_for_others: 0.2, ..BAD }, Cause::System),
            (Evidence { throttled: Some(0.3), ..BAD }, Cause::OwnQuota),
            (Evidence { throttled: Some(0.3), waited_for_be: 0.9, ..BAD }, Cause::OwnQuota),
            (Evidence { throttled: Some(0.02), waited_for_be: 0.9, ..BAD }, Cause::Unknown),
            (Evidence { effect: Some(helped), ..BAD }, Cause::BeCache),
            (Evidence { effect: Some(did_not_help), ..BAD }, Cause::OwnLoad),
            (Evidence { steal: Some(0.2), waited_for_be: 0.3, ..BAD }, Cause::Steal),
        ] {
            assert_eq!(evidence.cause(THRESHOLD), expected, "{evidence:?}");
        }
    }

    #[test]
    fn the_worst_are_named_until_they_cover_most_of_the_blame() {
        let mut waited = Waited::fading(FADES);
        for (group, ms) in [(1, 700), (2, 200), (3, 100), (9, 5_000)] {
            waited.add(Culprit::Group(GroupId(group)), Duration::from_millis(ms));
        }
        let be = || [1, 2, 3, 4].into_iter().map(GroupId);
        assert_eq!(waited.culprits(be()), [GroupId(1), GroupId(2)]);
        waited.fade(Duration::from_secs(10));
        assert!(waited.for_group(GroupId(1)) < 0.001);
    }

    #[test]
    fn whoever_takes_the_place_of_one_that_went_inherits_no_blame() {
        let mut waited = Waited::fading(FADES);
        waited.add(Culprit::Group(GroupId(1)), Duration::from_secs(1));
        waited.forget(GroupId(1));
        assert_eq!(waited.culprits([GroupId(1)].into_iter()), []);
        let evidence = waited.evidence(GroupId(0), |_| Class::BE);
        assert!(evidence.waited_for_be == 0.0 && evidence.waited_for_unknown > 0.0, "{evidence:?}");
    }
}

//! The governor against a simulated node: an LS group at 1,000 requests/s and one BE group.

mod blame;
mod bounds;
mod yields;

use super::*;
use crate::{
    decision::{
        governor::be::STOPPED,
        plan::{Proof, Reason},
    },
    model::{Blame, CpuLimit, Culprit, GroupSnapshot, Learned, Levers, Restraint},
    policy::Slo,
    signal::tally::Tally,
    units::{Factor, MilliCores, Share},
};

const TICK: Duration = Duration::from_millis(100);
const WANTS_CORES: f64 = 1.2;
const FLOOR_CORES: f64 = 0.1;

struct Node {
    governor: Governor,
    ticks: u32,
    limit: Option<CpuLimit>,
    /// BE's CPU time, for means.
    be_seconds: f64,
    slow: f64,
    reasons: Vec<&'static str>,
    changes: u32,
}

/// A tenth of a second of the LS group.
fn web(total: u64, slow: u64) -> GroupSnapshot {
    GroupSnapshot { cpu_cores: Some(0.6), requests: Some(Tally { total, slow }), ..GroupSnapshot::default() }
}

/// A BE group that can be held back by its quota.
fn batch(cores: f64) -> GroupSnapshot {
    let levers = Levers::default().with(Lever::Quota);
    GroupSnapshot { cpu_cores: Some(cores), levers, ..GroupSnapshot::default() }
}

/// A BE group that can yield as well.
fn yielder(cores: f64) -> GroupSnapshot {
    let levers = batch(cores).levers.with(Lever::Idle);
    GroupSnapshot { levers, ..batch(cores) }
}

/// These groups on a node of which the hypervisor takes nothing.
fn seen(taken_at: Duration, groups: Vec<GroupSnapshot>) -> Snapshot {
    Snapshot { taken_at, steal: Some(0.0), groups, ..Snapshot::default() }
}

/// One LS group and so many BE groups.
fn groups(be_groups: usize) -> Vec<Group> {
    let group = |name: String, class, slo| Group {
        workload: name.clone(),
        name,
        class,
        patterns: Vec::new(),
        slo,
        floor: MilliCores::from_cores(FLOOR_CORES),
        levers: Levers::ALL,
    };
    let slo = Slo { request_latency_p99: Some(Duration::from_millis(5)), ..Slo::default() };
    let be = (1..=be_groups).map(|n| group(format!("batch{n}"), Class::BE, Slo::default()));
    std::iter::once(group("web".to_owned(), Class::LS, slo)).chain(be).collect()
}

/// Of two CPUs.
fn governor(groups: &[Group], mode: Mode) -> Governor {
    let mut governor = Governor::new(mode, 2);
    groups.iter().enumerate().for_each(|(place, group)| governor.join(GroupId(place), group));
    governor
}

impl Node {
    fn new(mode: Mode) -> Self {
        let governor = governor(&groups(1), mode);
        Self { governor, ticks: 0, limit: None, be_seconds: 0.0, slow: 0.0, reasons: Vec::new(), changes: 0 }
    }

    /// Runs for some time. `slow(be_cores)` per 1,000 requests are slow. Returns BE's mean CPU use.
    fn run(&mut self, seconds: u32, be_wants: f64, slow: impl Fn(f64) -> f64) -> f64 {
        let before = self.be_seconds;
        for _ in 0..seconds * 10 {
            self.ticks += 1;
            let allowed = self.limit.and_then(CpuLimit::cores).unwrap_or(f64::MAX);
            let be_cores = be_wants.min(allowed);
            self.be_seconds += be_cores * TICK.as_secs_f64();
            // The fraction of a request that is left over comes later: no randomness, the same mean.
            self.slow += slow(be_cores) / 10.0;
            let whole = Duration::from_secs_f64(self.slow).as_secs();
            self.slow -= whole as f64;
            let node = seen(TICK * self.ticks, vec![web(100, whole), batch(be_cores)]);
            let plan = self.governor.decide(&node);
            let limit = plan.restraints.get(&GroupId(1)).and_then(|restraint| restraint.quota);
            self.changes += u32::from(limit != self.limit);
            self.limit = limit;
            if self.reasons.last() != Some(&plan.reason.label()) {
                self.reasons.push(plan.reason.label());
            }
        }
        (self.be_seconds - before) / f64::from(seconds)
    }

    fn limit_cores(&self) -> Option<f64> {
        self.limit.and_then(CpuLimit::cores)
    }
}

/// BE that the kernel saw run while LS waited, `ms` per tick.
fn blamed(culprit: usize, ms: u64) -> Blame {
    Blame { victim: GroupId(0), culprit: Culprit::Group(GroupId(culprit)), waited: Duration::from_millis(ms) }
}

fn labels(plans: &[Plan]) -> Vec<&'static str> {
    plans.iter().map(|plan| plan.reason.label()).collect()
}

/// A memory streamer: harm in proportion to how much it runs.
fn harmful(be_cores: f64) -> f64 {
    5.0 + 40.0 * be_cores / WANTS_CORES
}

#[test]
fn a_harmful_be_is_squeezed_within_three_seconds_and_kept_above_its_floor() {
    let mut node = Node::new(Mode::Enforce);
    node.run(5, WANTS_CORES, |_| 5.0);
    assert_eq!((node.limit, node.changes), (None, 0));
    node.run(3, WANTS_CORES, harmful);
    assert!(node.limit_cores().is_some_and(|cores| cores < 0.3), "{:?}", node.limit);
    assert_eq!(node.reasons, ["met", "trial", "squeeze"]);
    let Reason::Squeeze { proof: Proof::Trial(effect), .. } = node.governor.plan.reason else {
        panic!("{:?}", node.governor.plan)
    };
    // Two windows of 0.4 s, and the first ticks of each.
    assert!((0.8..=1.0).contains(&effect.be_lost_core_seconds), "{effect:?}");
    let mean = node.run(20, WANTS_CORES, harmful);
    assert!(mean >= FLOOR_CORES, "{mean}");
    // Half a percent is slow anyway: 0.15 cores are what still meets one percent.
    assert!(node.limit_cores().is_some_and(|cores| cores < 0.3), "{:?}", node.limit);
}

#[test]
fn a_harmless_be_is_left_alone_although_the_objective_is_missed() {
    let mut node = Node::new(Mode::Enforce);
    let mean = node.run(600, WANTS_CORES, |_| 40.0);
    assert!(mean > 0.95 * WANTS_CORES, "{mean}");
    assert!(node.reasons.contains(&"no_help") && !node.reasons.contains(&"squeeze"), "{:?}", node.reasons);
}

#[test]
fn an_objective_that_is_met_costs_be_nothing() {
    let mut node = Node::new(Mode::Enforce);
    let mean = node.run(600, WANTS_CORES, |_| 9.0);
    assert!((mean - WANTS_CORES).abs() < 1e-9 && node.changes == 0, "{mean} {}", node.changes);
}

#[test]
fn without_be_nothing_is_squeezed_and_the_reason_says_so() {
    let mut node = Node::new(Mode::Enforce);
    node.run(60, 0.0, |_| 100.0);
    assert_eq!((node.reasons.as_slice(), node.changes), (["met", "no_be"].as_slice(), 0));
}

#[test]
fn a_be_that_turns_harmful_after_a_failed_trial_is_tried_again_soon() {
    let mut node = Node::new(Mode::Enforce);
    node.run(20, 0.3, |_| 30.0);
    assert!(node.reasons.contains(&"no_help"), "{:?}", node.reasons);
    node.run(6, WANTS_CORES, |cores| 20.0 + harmful(cores));
    assert!(node.limit_cores().is_some_and(|cores| cores < 0.2), "{:?}", node.reasons);
}

#[test]
fn a_be_that_gets_more_each_second_is_not_tried_all_the_time() {
    let mut node = Node::new(Mode::Enforce);
    let mut be_cores = 0.03;
    for _ in 0..12 {
        node.run(1, be_cores, |_| 40.0);
        be_cores = f64::min(be_cores * 1.5, 1.9);
    }
    let trials = node.reasons.iter().filter(|reason| **reason == "trial").count();
    assert_eq!(trials, 2, "{:?}", node.reasons);
}

#[test]
fn a_squeeze_that_no_longer_helps_ends() {
    let mut node = Node::new(Mode::Enforce);
    node.run(10, WANTS_CORES, harmful);
    assert!(node.limit.is_some());
    // LS's own trouble now: as slow with BE as without.
    node.run(40, WANTS_CORES, |_| 40.0);
    node.reasons.clear();
    let mean = node.run(120, WANTS_CORES, |_| 40.0);
    assert!(mean > 0.9 * WANTS_CORES && !node.reasons.contains(&"squeeze"), "{mean} {:?}", node.reasons);
}

#[test]
fn a_squeeze_ends_soon_after_be_did() {
    let mut node = Node::new(Mode::Enforce);
    node.run(10, WANTS_CORES, harmful);
    node.run(10, 0.0, |_| 5.0);
    assert_eq!(node.limit, None, "{:?}", node.reasons);
}

#[test]
fn at_rest_limits_change_at_most_twice_a_minute() {
    let mut node = Node::new(Mode::Enforce);
    // A knee: up to half a core does no harm.
    let knee = |cores: f64| if cores < 0.5 { 3.0 } else { 45.0 };
    node.run(120, WANTS_CORES, knee);
    let before = node.changes;
    let mean = node.run(600, WANTS_CORES, knee);
    assert!(mean > 0.3, "{mean}");
    // Verification trials (two at most in ten minutes by then) come on top.
    assert!(node.changes - before <= 2 * 10 + 2 * 16, "{}", node.changes - before);
}

#[test]
fn stolen_time_is_not_held_against_be() {
    let mut node = Node::new(Mode::Enforce);
    for tick in 1..100 {
        let groups = vec![web(100, 20), batch(WANTS_CORES)];
        let snapshot = Snapshot { taken_at: TICK * tick, steal: Some(0.3), groups, ..Snapshot::default() };
        assert!(node.governor.decide(&snapshot).restraints.is_empty());
    }
}

#[test]
fn shadow_mode_says_what_is_wrong_and_does_nothing() {
    let mut node = Node::new(Mode::Shadow);
    node.run(30, WANTS_CORES, harmful);
    assert_eq!((node.reasons.as_slice(), node.changes), (["met", "shadow"].as_slice(), 0));
}

#[test]
fn the_same_snapshots_give_the_same_plans() {
    let plans = || {
        let mut node = Node::new(Mode::Enforce);
        node.run(100, WANTS_CORES, harmful);
        format!("{:?} {} {}", node.governor.plan, node.changes, node.be_seconds)
    };
    assert_eq!(plans(), plans());
}

#[test]
fn of_two_be_groups_only_the_harmful_one_is_squeezed() {
    let mut governor = governor(&groups(2), Mode::Enforce);
    let mut plan = Plan::default();
    for tick in 1..150 {
        let cores = |group, wants: f64| {
            let restraint: Option<&Restraint> = plan.restraints.get(&GroupId(group));
            wants.min(restraint.and_then(Restraint::cores).unwrap_or(f64::MAX))
        };
        let (harmless, harmful) = (cores(1, 0.9), cores(2, 0.6));
        let slow = if harmful > 0.3 { 5 } else { 0 };
        let groups = vec![web(100, slow), batch(harmless), batch(harmful)];
        plan = governor.decide(&seen(TICK * tick, groups)).clone();
    }
    assert!(matches!(plan.reason, Reason::Squeeze { .. }), "{plan:?}");
    assert_eq!(plan.restraints.keys().collect::<Vec<_>>(), [&GroupId(2)]);
}

#[test]
fn a_cause_that_is_known_is_not_tried_again() {
    let mut node = Node::new(Mode::Enforce);
    node.run(20, WANTS_CORES, harmful);
    node.run(10, 0.0, |_| 5.0);
    assert_eq!(node.limit, None, "{:?}", node.reasons);
    node.reasons.clear();
    node.run(2, WANTS_CORES, harmful);
    assert!(node.limit.is_some());
    assert_eq!(node.reasons, ["met", "squeeze"]);
}

#[test]
fn who_was_the_cause_once_is_not_suspected_of_what_ls_does_to_itself() {
    let mut node = Node::new(Mode::Enforce);
    node.run(20, WANTS_CORES, harmful);
    node.run(10, 0.0, |_| 5.0);
    assert!(node.reasons.contains(&"squeeze") && node.limit.is_none(), "{:?}", node.reasons);
    let mut squeezed = 0;
    for tick in 1..300 {
        let throttled = GroupSnapshot { throttled: Some(0.3), ..web(100, 20) };
        let groups = vec![throttled, batch(WANTS_CORES)];
        let reason = node.governor.decide(&seen(TICK * (node.ticks + tick), groups)).reason;
        squeezed += u32::from(matches!(reason, Reason::Squeeze { .. }));
    }
    assert_eq!(squeezed, 0);
}

#[test]
fn trouble_of_its_own_making_gets_its_verdict_and_no_lasting_squeeze() {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let mut squeezed = 0;
    let mut last = Plan::default();
    for tick in 1..6000 {
        let own = Blame { victim: GroupId(0), culprit: Culprit::Group(GroupId(0)), waited: TICK };
        let throttled = GroupSnapshot { throttled: Some(0.3), ..web(100, 20) };
        let groups = vec![throttled, batch(1.2)];
        let node = Snapshot { blame: vec![own], ..seen(TICK * tick, groups) };
        last = governor.decide(&node).clone();
        squeezed += u32::from(matches!(last.reason, Reason::Squeeze { .. }));
    }
    assert_eq!(squeezed, 0);
    assert_eq!(last.verdicts[0].cause, Cause::OwnQuota, "{last:?}");
}

#[test]
fn be_that_is_kept_at_its_floor_for_long_is_handed_over_to_eviction() {
    let mut node = Node::new(Mode::Enforce);
    node.run(60, WANTS_CORES, |cores| 15.0 + harmful(cores));
    assert!(node.governor.plan.evict.is_empty());
    node.run(240, WANTS_CORES, |cores| 15.0 + harmful(cores));
    assert_eq!(node.governor.plan.evict, [GroupId(1)]);
}

#[test]
fn be_that_takes_the_memory_that_ls_stalls_for_gets_less_of_it() {
    const GIB: u64 = 1 << 30;
    let mut groups = groups(2);
    groups[0].slo = Slo { memory_stall: Some("1%".parse().unwrap()), ..Slo::default() };
    let mut governor = governor(&groups, Mode::Enforce);
    let hog = GroupSnapshot {
        levers: batch(0.5).levers.with(Lever::Memory),
        memory_bytes: Some(GIB),
        ..batch(0.5)
    };
    let mut plan = Plan::default();
    for tick in 1..=10 {
        let stalled = GroupSnapshot {
            memory_stalls: Some(Tally { total: 100, slow: 30 }),
            memory_user: Some(GroupId(1)),
            ..GroupSnapshot::default()
        };
        let groups = vec![stalled, hog, batch(0.5)];
        let node = seen(TICK * tick, groups);
        plan = governor.decide(&node).clone();
    }
    let restraint = plan.restraints[&GroupId(1)];
    assert!(restraint.memory_high.is_some_and(|bytes| (GIB / 2..GIB).contains(&bytes)), "{plan:?}");
    assert_eq!((restraint.quota, plan.restraints.len()), (None, 1), "{plan:?}");
}

#[test]
fn who_takes_memory_is_known_a_second_later_and_needs_no_trial_then() {
    let mut groups = groups(1);
    groups[0].slo = Slo { memory_stall: Some("1%".parse().unwrap()), ..Slo::default() };
    let mut governor = governor(&groups, Mode::Enforce);
    let hog = GroupSnapshot {
        levers: batch(0.5).levers.with(Lever::Memory),
        memory_bytes: Some(1 << 30),
        ..batch(0.5)
    };
    let mut labels = Vec::new();
    for tick in 1..=20 {
        let stalled = GroupSnapshot {
            memory_stalls: Some(Tally { total: 100, slow: 30 }),
            memory_user: (tick >= 13).then_some(GroupId(1)),
            ..GroupSnapshot::default()
        };
        let plan = governor.decide(&seen(TICK * tick, vec![stalled, hog]));
        labels.push(plan.reason.label());
    }
    assert_eq!((labels[11], labels[12]), ("trial", "squeeze"), "{labels:?}");
    assert!(governor.plan.restraints[&GroupId(1)].memory_high.is_some(), "{:?}", governor.plan);
}

#[test]
fn stalls_that_are_to_be_learned_count_from_when_they_are() {
    let mut groups = groups(1);
    groups[0].slo = Slo { memory_stall_auto: Some(Factor(1500)), ..Slo::default() };
    let mut governor = governor(&groups, Mode::Enforce);
    let mut decide = |tick, memory_stall: Option<Share>| {
        let stalled = GroupSnapshot {
            memory_stalls: Some(Tally { total: 100, slow: 30 }),
            learned: Learned { memory_stall, ..Learned::default() },
            ..GroupSnapshot::default()
        };
        governor.decide(&seen(TICK * tick, vec![stalled, batch(1.2)])).reason.label()
    };
    assert!((1..100).all(|tick| decide(tick, None) == "met"), "nothing is promised yet");
    let reasons: Vec<_> = (100..110).map(|tick| decide(tick, Some(Share::percent(1)))).collect();
    assert!(reasons.contains(&"trial"), "{reasons:?}");
}

#[test]
fn an_objective_that_is_to_be_learned_counts_from_when_it_is() {
    let mut groups = groups(1);
    groups[0].slo = Slo { request_latency_auto: Some(Factor(1500)), ..Slo::default() };
    let mut governor = governor(&groups, Mode::Enforce);
    let mut decide = |tick, learned: Option<Duration>| {
        let learned = Learned { request_latency: learned, ..Learned::default() };
        let groups = vec![GroupSnapshot { learned, ..web(100, 20) }, batch(1.2)];
        let node = seen(TICK * tick, groups);
        governor.decide(&node).reason.label()
    };
    for tick in 1..100 {
        assert_eq!(decide(tick, None), "met", "nothing is promised yet");
    }
    let reasons: Vec<_> = (100..110).map(|tick| decide(tick, Some(Duration::from_millis(5)))).collect();
    assert!(reasons.contains(&"trial"), "{reasons:?}");
}

#[test]
fn a_trial_of_be_that_ends_meanwhile_proves_nothing() {
    let mut node = Node::new(Mode::Enforce);
    node.run(5, WANTS_CORES, |_| 5.0);
    node.run(1, WANTS_CORES, harmful);
    assert_eq!(node.reasons.last(), Some(&"trial"), "{:?}", node.reasons);
    // LS goes on being slow for a while, for reasons of its own.
    node.run(6, 0.0, |_| 40.0);
    node.reasons.clear();
    node.run(4, WANTS_CORES, harmful);
    assert!(node.limit.is_some() && !node.reasons.contains(&"no_help"), "{:?}", node.reasons);
}

/// The kernel refuses the quota, or somebody else sets it all the time.
#[test]
fn a_be_that_was_not_stopped_in_its_trial_is_not_called_harmless() {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let decide = |tick: u32| {
        let groups = vec![web(100, 5), batch(WANTS_CORES)];
        let node = seen(TICK * tick, groups);
        governor.decide(&node).clone()
    };
    let plans: Vec<_> = (1..300).map(decide).collect();
    let is_told = |plan: &Plan| matches!(plan.reason, Reason::NoHelp { effect, .. } if effect.is_nothing());
    assert!(plans.iter().any(is_told), "{:?}", labels(&plans));
    let causes: Vec<_> = plans.iter().flat_map(|plan| &plan.verdicts).map(|verdict| verdict.cause).collect();
    assert!(causes.iter().all(|cause| *cause == Cause::Unknown), "{causes:?}");
}

#[test]
fn a_be_that_hurts_within_the_objective_loses_next_to_nothing() {
    let mut node = Node::new(Mode::Enforce);
    // Half a percent slow beside BE, none without it; a burst of the host's own every half a minute.
    for _ in 0..20 {
        node.run(29, WANTS_CORES, |cores| 5.0 * cores / WANTS_CORES);
        node.run(1, WANTS_CORES, |_| 300.0);
    }
    let mean = node.be_seconds / 600.0;
    assert!(mean > 0.97 * WANTS_CORES, "{mean} {:?}", node.reasons);
    assert!(!node.reasons.contains(&"squeeze"), "{:?}", node.reasons);
}

#[test]
fn a_rule_of_utilisation_holds_be_within_what_it_leaves() {
    let mut governor = governor(&groups(2), Mode::Enforce);
    let mut cores_of = |max: Option<f64>| {
        for tick in 1..=30 {
            let taken_at = governor.taken_at + TICK * tick.min(1);
            let groups = vec![web(100, 0), batch(1.2), batch(0.4)];
            governor.decide(&Snapshot { be_cores_max: max, ..seen(taken_at, groups) });
        }
        let cores = |id| governor.plan.restraints.get(&GroupId(id)).and_then(Restraint::cores);
        [cores(1), cores(2)]
    };
    assert_eq!(cores_of(None), [None, None]);
    assert_eq!(cores_of(Some(3.0)), [None, None], "it uses less");
    let [Some(much), Some(little)] = cores_of(Some(0.8)) else { panic!("no limit") };
    assert!(much > little && (much + little - 0.8).abs() < 0.05, "{much} {little}");
    let [Some(much), Some(little)] = cores_of(Some(0.0)) else { panic!("no limit") };
    assert!(much >= FLOOR_CORES && little >= FLOOR_CORES, "{much} {little}");
}

#[test]
fn a_pod_of_a_job_that_was_the_cause_inherits_what_was_learned() {
    let mut node = Node::new(Mode::Enforce);
    node.run(5, WANTS_CORES, |_| 5.0);
    node.run(20, WANTS_CORES, harmful);
    assert_eq!(node.reasons.last(), Some(&"squeeze"), "{:?}", node.reasons);
    // The pod ends, and the next one of the same job takes its place.
    node.run(10, 0.0, |_| 2.0);
    let all = groups(1);
    node.governor.leave(GroupId(1));
    node.governor.join(GroupId(1), &Group { name: "batch-2".to_owned(), ..all[1].clone() });
    node.reasons.clear();
    node.run(5, WANTS_CORES, harmful);
    assert!(node.reasons.contains(&"squeeze") && !node.reasons.contains(&"trial"), "{:?}", node.reasons);
}

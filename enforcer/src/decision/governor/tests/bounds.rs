//! What a squeeze or a trial never does, whatever happens meanwhile.

use super::*;

/// One LS group and one BE group of which so much is known, tick by tick.
struct Pair {
    governor: Governor,
    ticks: u32,
}

impl Pair {
    /// BE keeps so much at least.
    fn with_floor(floor: MilliCores) -> Self {
        let mut groups = groups(1);
        groups[1].floor = floor;
        Self { governor: governor(&groups, Mode::Enforce), ticks: 0 }
    }

    /// LS is promised that it stalls no more than 1 % of the time for memory, and BE sleeps on what it took.
    fn with_a_hog() -> (Self, GroupSnapshot) {
        let mut groups = groups(1);
        groups[0].slo = Slo { memory_stall: Some("1%".parse().unwrap()), ..Slo::default() };
        let hog = GroupSnapshot {
            levers: batch(0.0).levers.with(Lever::Memory),
            memory_bytes: Some(1 << 30),
            ..batch(0.0)
        };
        (Self { governor: governor(&groups, Mode::Enforce), ticks: 0 }, hog)
    }

    fn tick(&mut self, steal: f64, web: GroupSnapshot, batch: GroupSnapshot) -> Plan {
        self.tell(steal, web, batch, Vec::new())
    }

    fn tell(&mut self, steal: f64, web: GroupSnapshot, batch: GroupSnapshot, blame: Vec<Blame>) -> Plan {
        self.ticks += 1;
        let taken_at = TICK * self.ticks;
        let groups = vec![web, batch];
        let node = Snapshot { taken_at, steal: Some(steal), groups, blame, ..Snapshot::default() };
        self.governor.decide(&node).clone()
    }

    /// BE does harm until the plan's reason is `reason`.
    fn harm_until(&mut self, reason: &str) {
        let mut cores = WANTS_CORES;
        for _ in 0..300 {
            let slow = if cores > 0.3 { 5 } else { 0 };
            let plan = self.tick(0.0, web(100, slow), batch(cores));
            cores = held(&plan).unwrap_or(WANTS_CORES);
            if plan.reason.label() == reason {
                return;
            }
        }
        panic!("no {reason}: {:?}", self.governor.plan);
    }
}

/// Each reason as often as it was come to.
fn reasons(plans: &[Plan]) -> Vec<&'static str> {
    let mut reasons: Vec<_> = plans.iter().map(|plan| plan.reason.label()).collect();
    reasons.dedup();
    reasons
}

/// What a plan leaves BE.
fn held(plan: &Plan) -> Option<f64> {
    plan.restraints.get(&GroupId(1)).and_then(Restraint::cores)
}

#[test]
fn be_does_not_stand_still_while_the_hypervisor_has_the_cpus() {
    let stopped = STOPPED.cores().unwrap();
    for reason in ["trial", "squeeze"] {
        let mut node = Pair::with_floor(MilliCores::from_cores(FLOOR_CORES));
        node.harm_until(reason);
        let mut cores = 0.0;
        let plans: Vec<Plan> = (0..1_000)
            .map(|_| {
                let plan = node.tick(0.3, web(100, 5), batch(cores));
                cores = held(&plan).unwrap_or(WANTS_CORES);
                plan
            })
            .collect();
        let still = plans.iter().filter(|plan| held(plan).is_some_and(|cores| cores <= stopped)).count();
        assert!(still < 50, "{reason}: {still} tenths of a second");
        // Nor is a squeeze kept that nobody can see to help.
        assert!(
            plans[700..].iter().all(|plan| plan.restraints.is_empty()),
            "{reason}: {:?}",
            reasons(&plans)
        );
    }
}

#[test]
fn a_lever_that_the_owner_excluded_is_not_pulled_in_trials_either() {
    let idle = Levers::default().with(Lever::Idle);
    let mut node = Pair::with_floor(MilliCores::from_cores(FLOOR_CORES));
    let plans: Vec<Plan> = (0..3_000)
        .map(|_| {
            let be = GroupSnapshot { levers: idle, ..batch(WANTS_CORES) };
            node.tell(0.0, web(100, 5), be, vec![blamed(1, 40)])
        })
        .collect();
    assert!(reasons(&plans).contains(&"squeeze"), "{:?}", reasons(&plans));
    assert!(plans.iter().all(|plan| held(plan).is_none() && plan.evict.is_empty()));
    // Where nothing is left, nothing is said to be done.
    let mut node = Pair::with_floor(MilliCores::from_cores(FLOOR_CORES));
    let plans: Vec<Plan> = (0..100)
        .map(|_| {
            let be = GroupSnapshot { levers: Levers::default(), ..batch(WANTS_CORES) };
            node.tell(0.0, web(100, 5), be, vec![blamed(1, 40)])
        })
        .collect();
    assert!(!reasons(&plans).contains(&"squeeze"), "{:?}", reasons(&plans));
}

#[test]
fn be_that_is_held_back_to_next_to_nothing_is_not_taken_for_one_that_ended() {
    let mut node = Pair::with_floor(MilliCores(0));
    node.harm_until("squeeze");
    let mut cores = 0.0;
    let mut plans = Vec::new();
    for _ in 0..200 {
        // Nothing but standing still would do.
        let slow = if cores > 0.005 { 5 } else { 2 };
        plans.push(node.tick(0.0, web(100, slow), batch(cores)));
        cores = held(plans.last().unwrap()).unwrap_or(WANTS_CORES);
    }
    assert_eq!(reasons(&plans), ["squeeze"]);
}

#[test]
fn be_that_yields_to_too_many_in_a_squeeze_gets_its_floor_back() {
    let mut node = Pair::with_floor(MilliCores::from_cores(FLOOR_CORES));
    let levers = batch(0.0).levers.with(Lever::Idle);
    let mut idle = false;
    let mut idled = 0;
    for _ in 0..200 {
        // LS wants all CPUs.
        let (cores, waits) = if idle { (0.0, 2.0) } else { (FLOOR_CORES, 2.0) };
        let be = GroupSnapshot { levers, cpu_waits: Some(waits), ..batch(cores) };
        let plan = node.tell(0.0, web(100, 5), be, vec![blamed(1, 40)]);
        idle = plan.restraints.get(&GroupId(1)).is_some_and(|restraint| restraint.idle);
        idled += u32::from(idle);
    }
    assert!((50..120).contains(&idled), "{idled} tenths of a second");
}

#[test]
fn memory_is_given_back_when_ls_does_not_stall_and_cpu_is_never_taken_for_it() {
    let (mut node, hog) = Pair::with_a_hog();
    let mut high = None;
    let mut plans = Vec::new();
    for _ in 0..1_500 {
        let slow = if high.is_none_or(|high: u64| high > 700 << 20) { 30 } else { 0 };
        let stalled = GroupSnapshot {
            memory_stalls: Some(Tally { total: 100, slow }),
            memory_user: Some(GroupId(1)),
            ..GroupSnapshot::default()
        };
        let plan = node.tick(0.0, stalled, hog);
        high = plan.restraints.get(&GroupId(1)).and_then(|restraint| restraint.memory_high);
        plans.push(plan);
    }
    assert_eq!(reasons(&plans), ["squeeze"]);
    assert!(plans.iter().all(|plan| held(plan).is_none()), "{:?}", plans.last());
    let kept = plans.iter().flat_map(|plan| plan.restraints.values()).filter_map(|held| held.memory_high);
    assert!(kept.min().is_some_and(|bytes| bytes >= 1 << 29), "half of what it used at least");
    // Somebody else takes the memory, and holding BE back is in vain.
    let ended = (0..200).find(|_| {
        let stalled =
            GroupSnapshot { memory_stalls: Some(Tally { total: 100, slow: 30 }), ..GroupSnapshot::default() };
        node.tick(0.0, stalled, hog).restraints.is_empty()
    });
    assert!(ended.is_some(), "{:?}", node.governor.plan);
}

#[test]
fn memory_that_is_held_back_stays_so_when_nobody_stalls_any_more() {
    let (mut node, hog) = Pair::with_a_hog();
    // Reclaim takes some seconds. Who stalls for nothing stalls for nobody's memory.
    for tick in 1..=130 {
        let (slow, memory_user) = if tick <= 30 { (30, Some(GroupId(1))) } else { (0, None) };
        let web = GroupSnapshot {
            memory_stalls: Some(Tally { total: 100, slow }),
            memory_user,
            ..GroupSnapshot::default()
        };
        let plan = node.tick(0.0, web, hog);
        assert!(tick == 1 || plan.restraints.contains_key(&GroupId(1)), "{tick}: {plan:?}");
    }
}

#[test]
fn what_was_learned_of_a_workload_outlives_its_last_pod_also_within_a_trial() {
    let mut node = Pair::with_floor(MilliCores::from_cores(FLOOR_CORES));
    node.harm_until("squeeze");
    node.harm_until("trial");
    let be = groups(1)[1].clone();
    node.governor.leave(GroupId(1));
    node.tick(0.0, web(100, 0), GroupSnapshot::default());
    node.governor.join(GroupId(1), &be);
    let mut plans = Vec::new();
    for _ in 0..20 {
        plans.push(node.tick(0.0, web(100, 5), batch(WANTS_CORES)));
    }
    assert_eq!(reasons(&plans), ["met", "squeeze"], "no trial is needed");
}

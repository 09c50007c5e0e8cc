//! BE that the kernel names, which is squeezed without a trial.

use super::*;

/// What a node with two BE groups is told after a quiet second and one bad millisecond.
fn struck(first: GroupSnapshot, second: GroupSnapshot, blame: Vec<Blame>) -> (Governor, Duration) {
    let mut governor = governor(&groups(2), Mode::Enforce);
    for tick in 1..=10 {
        let groups = vec![web(100, 0), first, second];
        governor.decide(&seen(TICK * tick, groups));
    }
    let now = TICK * 10 + Duration::from_millis(1);
    governor.decide(&Snapshot { blame, ..seen(now, vec![web(8, 6), first, second]) });
    (governor, now)
}

#[test]
fn be_that_ran_while_ls_waited_is_squeezed_at_once_and_nobody_else_is() {
    let frozen = GroupSnapshot { levers: batch(0.5).levers.with(Lever::Freeze), ..batch(0.5) };
    let (mut governor, now) = struck(frozen, batch(0.5), vec![blamed(1, 40), blamed(2, 1)]);
    let restraint = governor.plan.restraints[&GroupId(1)];
    assert!(restraint.frozen && restraint.cores().is_some_and(|cores| cores < 0.11), "{restraint}");
    assert_eq!(governor.plan.restraints.len(), 1, "{:?}", governor.plan);
    // The freeze ends when it said it would.
    let again_at = governor.plan.again_at.unwrap();
    assert!(again_at <= now + Duration::from_millis(50), "{again_at:?}");
    let groups = vec![web(8, 0), batch(0.0), batch(0.5)];
    let plan = governor.decide(&Snapshot { taken_at: again_at, steal: None, groups, ..Snapshot::default() });
    assert!(!plan.restraints[&GroupId(1)].frozen && plan.again_at.is_none(), "{plan:?}");
}

#[test]
fn the_weakest_lever_is_pulled_first_where_there_is_one() {
    let idle = yielder(0.5);
    let (mut governor, now) = struck(idle, batch(0.5), vec![blamed(1, 40)]);
    let restraint = governor.plan.restraints[&GroupId(1)];
    assert_eq!(restraint, Restraint { idle: true, ..Restraint::default() });
    // It does not help: the quota follows.
    let mut ticks = 0;
    while governor.plan.restraints[&GroupId(1)].quota.is_none() {
        ticks += 1;
        let groups = vec![web(100, 30), idle, batch(0.5)];
        let taken_at = now + TICK * ticks;
        governor.decide(&Snapshot { blame: vec![blamed(1, 40)], ..seen(taken_at, groups) });
        assert!(ticks < 10, "{:?}", governor.plan);
    }
}

#[test]
fn a_sudden_burst_that_nobody_is_to_blame_for_changes_nothing() {
    let (governor, _) = struck(batch(0.5), batch(0.5), Vec::new());
    assert_eq!(governor.plan.reason, Reason::Met, "{:?}", governor.plan);
}

#[test]
fn a_single_slow_request_never_squeezes() {
    let mut governor = governor(&groups(2), Mode::Enforce);
    for tick in 1..1000 {
        let groups = vec![web(100, 1), batch(0.5), batch(0.5)];
        let node = Snapshot { blame: vec![blamed(1, 50)], ..seen(TICK * tick, groups) };
        assert!(governor.decide(&node).restraints.is_empty(), "{tick}");
    }
}

#[test]
fn waits_of_a_busy_past_do_not_hide_who_struck() {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let own = |ms| Blame { culprit: Culprit::Group(GroupId(0)), ..blamed(0, ms) };
    for tick in 1..=10 {
        let (groups, blame) = (vec![web(100, 0), batch(0.5)], vec![own(80)]);
        governor.decide(&Snapshot { blame, ..seen(TICK * tick, groups) });
    }
    let taken_at = TICK * 10 + Duration::from_millis(12);
    let (groups, blame) = (vec![web(10, 5), batch(0.5)], vec![own(9), blamed(1, 30)]);
    let plan = governor.decide(&Snapshot { blame, ..seen(taken_at, groups) });
    assert_eq!(plan.reason.label(), "squeeze", "{plan:?}");
}

#[test]
fn a_trial_in_which_the_objective_was_met_does_not_hide_who_struck() {
    let mut node = Node::new(Mode::Enforce);
    node.run(5, 0.3, |_| 5.0);
    node.run(1, 0.3, |_| 200.0);
    node.run(9, 0.3, |_| 2.0);
    assert!(node.reasons.contains(&"trial") && node.limit.is_none(), "{:?}", node.reasons);
    assert!(
        node.governor
            .objectives
            .values()
            .next()
            .unwrap()
            .retry()
            .is_some_and(|retry| retry.effect.is_met_with_be())
    );
    let taken_at = TICK * node.ticks + Duration::from_millis(12);
    let (groups, blame) = (vec![web(10, 5), batch(0.3)], vec![blamed(1, 30)]);
    let plan = node.governor.decide(&Snapshot { blame, ..seen(taken_at, groups) });
    assert_eq!(plan.reason.label(), "squeeze", "{plan:?}");
}

#[test]
fn a_squeeze_that_leaves_be_everything_ends_although_little_is_heard() {
    let idle = yielder(0.5);
    let (mut governor, now) = struck(idle, batch(0.5), vec![blamed(1, 40)]);
    let ends = (1..1_000).find(|tick| {
        let groups = vec![web(1, 0), idle, batch(0.5)];
        let node = seen(now + TICK * *tick, groups);
        governor.decide(&node).restraints.is_empty()
    });
    assert!(ends.is_some_and(|tick| (600..610).contains(&tick)), "{ends:?}");
}

/// What is told of two BE groups that both can yield, the first of which is squeezed, after so many ticks more.
fn told(governor: &mut Governor, now: Duration, (total, slow): (u64, u64), blame: Vec<Blame>) -> Plan {
    let idle = yielder(0.5);
    let groups = vec![web(total, slow), idle, idle];
    let node = Snapshot { blame, ..seen(now, groups) };
    governor.decide(&node).clone()
}

#[test]
fn a_squeeze_whose_trouble_comes_back_as_soon_as_it_ends_lasts_twice_as_long() {
    let idle = yielder(0.5);
    let (mut governor, mut now) = struck(idle, idle, vec![blamed(1, 40)]);
    let mut lasted = Vec::new();
    for pause in [1, 1, 4_000, 1] {
        let began = now;
        // The load changes now and then: what is waited for is not begun anew.
        for total in [40, 10].into_iter().flat_map(|total| [total; 300]).cycle() {
            now += TICK;
            assert!(now < began + Duration::from_mins(10), "{lasted:?}");
            if told(&mut governor, now, (total, 0), Vec::new()).restraints.is_empty() {
                break;
            }
        }
        lasted.push(now.saturating_sub(began).as_secs() / 60);
        for _ in 0..pause {
            now += TICK;
            told(&mut governor, now, (8, 0), Vec::new());
        }
        now += TICK;
        told(&mut governor, now, (8, 6), vec![blamed(1, 40)]);
    }
    assert_eq!(lasted, [1, 2, 4, 1]);
}

#[test]
fn somebody_else_who_is_blamed_joins_a_squeeze_that_takes_nothing_but_rank() {
    let idle = yielder(0.5);
    let (mut governor, now) = struck(idle, idle, vec![blamed(1, 40)]);
    let who = |plan: &Plan| plan.restraints.iter().map(|(id, held)| (*id, held.idle)).collect::<Vec<_>>();
    assert_eq!(who(&governor.plan), [(GroupId(1), true)]);
    let plan = told(&mut governor, now + TICK, (8, 6), vec![blamed(2, 40)]);
    assert_eq!(who(&plan), [(GroupId(1), true), (GroupId(2), true)], "{plan:?}");
    assert!(plan.restraints.values().all(|held| held.quota.is_none()), "{plan:?}");
}

#[test]
fn somebody_else_who_is_blamed_joins_a_squeeze_by_quota_at_once() {
    let mut governor = governor(&groups(2), Mode::Enforce);
    let mut now = Duration::ZERO;
    let slow = |plan: &Plan| if plan.restraints.contains_key(&GroupId(1)) { 0 } else { 5 };
    while !matches!(governor.plan.reason, Reason::Squeeze { .. }) {
        now += TICK;
        assert!(now < TICK * 100, "{:?}", governor.plan);
        let groups = vec![web(100, slow(&governor.plan)), batch(0.6), batch(0.0)];
        governor.decide(&seen(now, groups));
    }
    assert_eq!(governor.plan.restraints.keys().collect::<Vec<_>>(), [&GroupId(1)]);
    // Out of nothing, the second one takes the CPUs.
    for _ in 0..3 {
        now += TICK;
        let groups = vec![web(100, 30), batch(0.1), batch(1.2)];
        governor.decide(&Snapshot { blame: vec![blamed(2, 90)], ..seen(now, groups) });
    }
    let held = |id| governor.plan.restraints.get(&GroupId(id)).and_then(Restraint::cores);
    assert!(held(1).is_some() && held(2).is_some_and(|cores| cores < 1.0), "{:?}", governor.plan);
}

#[test]
fn who_is_blamed_does_not_wait_for_the_end_of_anothers_trial() {
    let mut governor = governor(&groups(2), Mode::Enforce);
    let mut now = Duration::ZERO;
    while !matches!(governor.plan.reason, Reason::Trial { .. }) {
        now += TICK;
        assert!(now < TICK * 100, "{:?}", governor.plan);
        governor.decide(&seen(now, vec![web(100, 5), batch(0.9), batch(0.0)]));
    }
    let mut ticks = 0;
    while !governor.plan.restraints.contains_key(&GroupId(2)) {
        (now, ticks) = (now + TICK, ticks + 1);
        assert!(ticks < 3, "{:?}", governor.plan);
        let groups = vec![web(100, 30), batch(0.0), batch(0.9)];
        governor.decide(&Snapshot { blame: vec![blamed(2, 90)], ..seen(now, groups) });
    }
    assert!(matches!(governor.plan.reason, Reason::Squeeze { .. }), "{:?}", governor.plan);
}

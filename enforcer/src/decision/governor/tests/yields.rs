//! BE that yields before anything is proven.

use super::*;

/// Runs a governor for some time beside one BE group that can yield. `slow(tick, restraint)` of 100 requests are slow per
/// tick. What was planned, each reason once in a row.
fn yields(seconds: u32, slow: impl Fn(u32, Restraint) -> u64) -> Vec<Plan> {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let idle = yielder(WANTS_CORES);
    let mut plans: Vec<Plan> = vec![Plan::default()];
    let mut restraint = Restraint::default();
    for tick in 1..=seconds * 10 {
        let cores = restraint.cores().unwrap_or(f64::MAX).min(WANTS_CORES);
        let be = GroupSnapshot { cpu_cores: Some(cores), ..idle };
        let plan = governor.decide(&seen(TICK * tick, vec![web(100, slow(tick, restraint)), be]));
        restraint = plan.restraints.get(&GroupId(1)).copied().unwrap_or_default();
        if plans.last().is_some_and(|last| last.reason.label() != plan.reason.label()) {
            plans.push(plan.clone());
        }
    }
    plans
}

#[test]
fn stalls_that_come_again_and_again_make_be_yield_for_ever_longer() {
    let plans = yields(240, |tick, restraint| if tick % 30 == 0 && !restraint.idle { 90 } else { 0 });
    assert_eq!(labels(&plans), ["met", "yield", "met", "yield", "met"], "1 minute, then 2");
    assert_eq!(plans[1].restraints[&GroupId(1)], Restraint { idle: true, ..Restraint::default() });
    let yielded = |plan: &Plan| plan.verdicts.first().map(|verdict| verdict.objective.victim);
    assert_eq!(yielded(&plans[1]), Some(GroupId(0)), "{:?}", plans[1]);
}

#[test]
fn where_yielding_is_not_enough_a_trial_tells() {
    let harm =
        |_, restraint: Restraint| if restraint.cores().is_some_and(|cores| cores < 0.5) { 0 } else { 5 };
    let plans = yields(20, harm);
    assert_eq!(labels(&plans), ["met", "yield", "trial", "squeeze"]);
    // BE that runs in the trial yields, BE that is stopped does as well.
    assert!(plans[2].restraints[&GroupId(1)].idle, "{:?}", plans[2]);
}

#[test]
fn trouble_that_be_has_no_part_in_makes_it_yield_hardly_ever() {
    let plans = yields(600, |_, _| 4);
    let times = labels(&plans).into_iter().filter(|label| *label == "yield").count();
    assert!((1..=5).contains(&times), "{times} in ten minutes");
    assert!(!labels(&plans).contains(&"squeeze"));
    // What is known to be its own quota costs BE nothing at all.
    let mut governor = governor(&groups(1), Mode::Enforce);
    let idle = yielder(1.2);
    for tick in 1..=50 {
        let throttled = GroupSnapshot { throttled: Some(0.3), ..web(100, 20) };
        let groups = vec![throttled, idle];
        let plan = governor.decide(&seen(TICK * tick, groups));
        assert_ne!(plan.reason.label(), "yield");
    }
}

#[test]
fn stalls_that_be_has_no_part_in_do_not_make_it_yield_for_ever() {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let idle = yielder(WANTS_CORES);
    let yielded = (1..=12_000).filter(|tick| {
        let plan =
            governor.decide(&seen(TICK * *tick, vec![web(100, if tick % 30 == 0 { 90 } else { 0 }), idle]));
        plan.reason.label() == "yield"
    });
    let yielded = yielded.count();
    assert!((1..12_000 / 3).contains(&yielded), "{yielded} of 12,000 ticks");
}

/// Ticks of thirty seconds in which BE yields, which then uses `cores` while so many of its tasks wait, and `slow` of 100
/// requests are.
fn yields_with(cores: f64, cpu_waits: f64, slow: u64) -> u32 {
    let mut governor = governor(&groups(1), Mode::Enforce);
    let idle = yielder(WANTS_CORES);
    let mut yielded = 0;
    let mut yields = false;
    for tick in 1..=300 {
        let (cores, waits) = if yields { (cores, cpu_waits) } else { (WANTS_CORES, 0.1) };
        let be = GroupSnapshot { cpu_cores: Some(cores), cpu_waits: Some(waits), ..idle };
        let plan = governor.decide(&seen(TICK * tick, vec![web(100, if yields { slow } else { 5 }), be]));
        yields = plan.restraints.get(&GroupId(1)).is_some_and(|restraint| restraint.idle);
        yielded += u32::from(yields);
    }
    yielded
}

#[test]
fn be_that_yields_to_too_many_gets_its_floor_back() {
    let yielded = yields_with(0.01, 2.0, 0);
    assert!((50..100).contains(&yielded), "{yielded} ticks");
    // Also where LS overloads itself, so that a trial is begun and BE does not run in any part of it.
    let yielded = yields_with(0.01, 2.0, 5);
    assert!((50..150).contains(&yielded), "{yielded} ticks");
}

#[test]
fn be_that_has_nothing_to_do_goes_on_yielding() {
    let yielded = yields_with(0.01, 0.002, 0);
    assert!(yielded > 250, "{yielded} ticks");
}

#[test]
fn a_pod_with_little_to_do_beside_a_busy_one_starves_nobody() {
    let mut idle = BeGroup::new(GroupId(1));
    let mut busy = BeGroup::new(GroupId(2));
    for group in [&mut idle, &mut busy] {
        group.set_floor(MilliCores::from_cores(FLOOR_CORES));
    }
    let mut observe = |cores: [f64; 2]| {
        for (group, cores) in [&mut idle, &mut busy].into_iter().zip(cores) {
            // Java has many threads.
            let waited = GroupSnapshot { cpu_waits: Some(0.4), ..batch(cores) };
            (0..50).for_each(|_| group.observe(&waited, TICK, Restraint::default()));
        }
        be::are_below_floors([&idle, &busy].into_iter())
    };
    assert!(!observe([0.9, 0.9]));
    assert!(!observe([0.04, 0.8]));
    assert!(observe([0.04, 0.04]));
}

#[test]
fn yielding_goes_on_where_it_has_mended_most() {
    // A fifth of the stalls are the host's own, which is four times what is allowed.
    let plans = yields(300, |tick, restraint| {
        let stalls = if restraint.idle { 25 } else { 5 };
        if tick % stalls == 0 { 100 } else { 0 }
    });
    let free = |plan: &&Plan| plan.restraints.is_empty();
    assert!(labels(&plans).contains(&"trial"), "{:?}", labels(&plans));
    assert!(plans.iter().filter(free).count() <= 3, "{:?}", labels(&plans));
}

#[test]
fn an_objective_that_is_given_up_takes_its_yielding_along_also_from_anothers_trial() {
    let all = groups(1);
    let slo = Slo { run_queue_wait_p99: Some(Duration::from_millis(1)), ..all[0].slo };
    let mut governor = governor(&[Group { slo, ..all[0].clone() }, all[1].clone()], Mode::Enforce);
    let idle = yielder(WANTS_CORES);
    let mut ticks = 0;
    let mut run_until = |governor: &mut Governor, reason: &str, requests: u64, waits: u64| {
        for _ in 0..100 {
            ticks += 1;
            let waits = Some(Tally { total: 100, slow: waits });
            let groups = vec![GroupSnapshot { waits, ..web(100, requests) }, idle];
            let taken_at = TICK * ticks;
            let node = seen(taken_at, groups);
            if governor.decide(&node).reason.label() == reason {
                return;
            }
        }
        panic!("no {reason}: {:?}", governor.plan);
    };
    run_until(&mut governor, "yield", 5, 0);
    run_until(&mut governor, "trial", 0, 5);
    governor.join(GroupId(0), &Group { slo: Slo { request_latency_p99: None, ..slo }, ..all[0].clone() });
    run_until(&mut governor, "no_help", 0, 5);
}

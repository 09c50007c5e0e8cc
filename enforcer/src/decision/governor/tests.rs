//! The governor against a simulated node: an LS group at 1,000 requests/s and one BE group.

use super::*;
use crate::policy::Slo;

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

impl Node {
    fn new(mode: Mode) -> Self {
        let group = |name: &str, class, slo| crate::policy::Group {
            name: name.to_owned(),
            class,
            patterns: Vec::new(),
            slo,
            floor: MilliCores::from_cores(FLOOR_CORES),
        };
        let slo = Slo { request_latency_p99: Some(Duration::from_millis(5)), run_queue_wait_p99: None };
        let groups = vec![group("web", Class::LS, slo), group("batch", Class::BE, Slo::default())];
        let governor = Governor::new(&Policy { groups, cgroups_max: 16 }, mode);
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
            let web = GroupSnapshot {
                cpu_cores: Some(0.6),
                requests: Some(Tally { total: 100, slow: whole }),
                waits: None,
            };
            let batch = GroupSnapshot { cpu_cores: Some(be_cores), ..GroupSnapshot::default() };
            let node = Snapshot { taken_at: TICK * self.ticks, steal: Some(0.0), groups: vec![web, batch] };
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

/// A memory streamer: harm in proportion to how much it runs.
fn harmful(be_cores: f64) -> f64 {
    5.0 + 40.0 * be_cores / WANTS_CORES
}

#[test]
fn a_harmful_be_is_squeezed_within_two_seconds_and_kept_above_its_floor() {
    let mut node = Node::new(Mode::Enforce);
    node.run(5, WANTS_CORES, |_| 5.0);
    assert_eq!((node.limit, node.changes), (None, 0));
    node.run(2, WANTS_CORES, harmful);
    assert!(node.limit_cores().is_some_and(|cores| cores < 0.2), "{:?}", node.limit);
    assert_eq!(node.reasons, ["met", "trial", "squeeze"]);
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
fn a_be_that_turns_harmful_after_a_failed_trial_is_tried_again_at_once() {
    let mut node = Node::new(Mode::Enforce);
    node.run(20, 0.3, |_| 30.0);
    assert!(node.reasons.contains(&"no_help"), "{:?}", node.reasons);
    node.run(6, WANTS_CORES, |cores| 20.0 + harmful(cores));
    assert!(node.limit_cores().is_some_and(|cores| cores < 0.2), "{:?}", node.reasons);
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
    let groups = |slow| {
        let web =
            GroupSnapshot { cpu_cores: Some(0.6), requests: Some(Tally { total: 100, slow }), waits: None };
        vec![web, GroupSnapshot { cpu_cores: Some(WANTS_CORES), ..GroupSnapshot::default() }]
    };
    for tick in 1..100 {
        let snapshot = Snapshot { taken_at: TICK * tick, steal: Some(0.3), groups: groups(20) };
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

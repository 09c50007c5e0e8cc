//! Verdicts on made-up records.

use enforcer_rig::antagonist::Antagonist;

use super::*;
use crate::r#loop::{
    record::{Cell, Key, Outcome, Record, Settings, Window},
    scenario::{LsLoad, Scenario},
};

const SLO_US: f64 = 3_000.0;

/// A record with three rounds of two windows for each policy: its p99, slow requests of 1,000 in each window, and BE work.
fn record(load: LsLoad, policies: &[(Policy, f64, [u64; 2], f64)]) -> Record {
    let mut record = Record::new(Settings {
        warm_up_seconds: 5,
        seconds: 20,
        slo_factor: 1.5,
        be_floor_milli_cores: 100,
        cpus: 2,
        kernel: String::new(),
        programs: String::new(),
    });
    record.slo_us.insert(load.peak_percent(), SLO_US);
    for &(policy, p99_us, slow, be_work) in policies {
        for round in 0..3 {
            let be = (policy != Policy::Alone).then_some(Antagonist::CpuSpin);
            let windows = slow.map(|slow| Window { requests: 1_000, slow, p99_us }).to_vec();
            let outcome = Outcome {
                requests: 2_000,
                slow: slow.iter().sum(),
                p99_us,
                windows,
                be_work,
                ..Outcome::default()
            };
            record.cells.push(Cell { key: Key { be, load, policy, round }, outcome });
        }
    }
    record
}

fn verdicts(load: LsLoad, policies: &[(Policy, f64, [u64; 2], f64)]) -> [Verdict; 5] {
    let record = record(load, policies);
    let scenario = Scenario { be: Antagonist::CpuSpin, load };
    let comparison = Comparison::of(scenario, &record).unwrap();
    let judgements = judge(&comparison);
    judgements.iter().map(|judgement| judgement.verdict).collect::<Vec<_>>().try_into().unwrap()
}

use Verdict::{Met, Missed, NotApplicable};

const LOAD: LsLoad = LsLoad::Constant(50);
const STOCK: (Policy, f64, [u64; 2], f64) = (Policy::Stock, 6_000.0, [50, 60], 100.0);
const TIGHT: (Policy, f64, [u64; 2], f64) = (Policy::usual_static(10), 2_000.0, [2, 3], 10.0);
const LOOSE: (Policy, f64, [u64; 2], f64) = (Policy::usual_static(20), 2_900.0, [8, 9], 20.0);
const RULE: (Policy, f64, [u64; 2], f64) = (Policy::KoordinatorQuota, 5_000.0, [40, 40], 30.0);

#[test]
fn the_oracle_is_the_static_setting_that_meets_the_slo_with_most_work() {
    let record = record(LOAD, &[STOCK, TIGHT, LOOSE, RULE]);
    let scenario = Scenario { be: Antagonist::CpuSpin, load: LOAD };
    let comparison = Comparison::of(scenario, &record).unwrap();
    assert_eq!(comparison.oracle().map(|oracle| oracle.policy), Some(Policy::usual_static(20)));
}

#[test]
fn a_good_enforcer_meets_all_that_applies() {
    let enforcer = (Policy::Enforcer, 2_950.0, [9, 10], 18.0);
    let found = verdicts(LOAD, &[STOCK, TIGHT, LOOSE, RULE, enforcer]);
    assert_eq!(found, [Met, Met, Met, NotApplicable, NotApplicable]);
}

#[test]
fn too_many_slow_requests_or_too_little_work_are_missed() {
    let enforcer = (Policy::Enforcer, 2_950.0, [20, 45], 16.0);
    let found = verdicts(LOAD, &[STOCK, TIGHT, LOOSE, RULE, enforcer]);
    assert_eq!(found, [Missed, Missed, Met, NotApplicable, NotApplicable]);
}

#[test]
fn an_interval_that_reaches_beyond_a_point_is_no_proof() {
    // On average half a point above the oracle, but in half of the windows only.
    let enforcer = (Policy::Enforcer, 2_950.0, [0, 28], 18.0);
    let found = verdicts(LOAD, &[STOCK, TIGHT, LOOSE, RULE, enforcer]);
    assert_eq!(found[0], Missed);
}

#[test]
fn under_changing_load_the_oracle_must_be_surpassed() {
    let enforcer = |work| (Policy::Enforcer, 2_950.0, [9, 10], work);
    for (work, verdict) in [(19.0, Missed), (20.0, Missed), (21.0, Met)] {
        assert_eq!(verdicts(LsLoad::Square, &[STOCK, LOOSE, RULE, enforcer(work)])[1], verdict, "{work}");
    }
}

#[test]
fn where_koordinator_and_stock_weights_pass_work_is_compared() {
    let harmless =
        [(Policy::Stock, 2_500.0, [5, 5], 100.0), (Policy::KoordinatorQuota, 2_000.0, [1, 1], 30.0)];
    let with = |work| [harmless[0], harmless[1], (Policy::Enforcer, 2_600.0, [6, 6], work)];
    assert_eq!(verdicts(LOAD, &with(96.0)), [Met, Met, NotApplicable, Met, Met]);
    assert_eq!(verdicts(LOAD, &with(29.0)), [Met, Missed, NotApplicable, Missed, Missed]);
}

#[test]
fn without_enforcer_or_where_nothing_static_passes_nothing_is_claimed() {
    assert_eq!(verdicts(LOAD, &[STOCK, LOOSE]), [NotApplicable; 5]);
    let enforcer = (Policy::Enforcer, 5_500.0, [45, 45], 50.0);
    assert_eq!(verdicts(LOAD, &[STOCK, enforcer]), [NotApplicable; 5]);
}

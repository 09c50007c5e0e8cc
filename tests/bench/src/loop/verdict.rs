//! Whether enforcer keeps what it promises, by scenario. Pure.

use std::fmt;

use serde::Serialize;

use super::{
    interval::{Difference, Ratio, difference, ratio},
    policy::Policy,
    summary::{Comparison, Summary},
};

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Where any static setting meets the SLO: the share of slow requests is within a point of the oracle's.
    SlowLikeOracle,
    /// There, BE does 85 % of what it does under the oracle; more than that under changing load.
    WorkLikeOracle,
    /// Where Koordinator's rule misses the SLO: fewer slow requests.
    SlowerRequestsThanKoordinator,
    /// Where Koordinator's rule meets the SLO: more BE work.
    MoreWorkThanKoordinator,
    /// Where stock weights meet the SLO: BE keeps 95 % of its work.
    StockWorkKept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    NotApplicable,
}

/// What became of a promise in a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    pub target: Target,
    pub verdict: Verdict,
    /// With figures, for people.
    pub why: String,
    /// What was compared with what: the share of slow requests or the BE work of enforcer, and of the other policy.
    pub enforcer: Option<f64>,
    pub other: Option<f64>,
    pub other_policy: Option<Policy>,
    /// Of shares of slow requests.
    pub difference: Option<Difference>,
    /// Of BE work.
    pub ratio: Option<Ratio>,
}

/// At most, of the share of slow requests above the oracle's: one point.
const SLOW_MARGIN: f64 = 0.01;
const ORACLE_WORK: f64 = 0.85;
const STOCK_WORK: f64 = 0.95;

impl Target {
    pub const ALL: [Self; 5] = [
        Self::SlowLikeOracle,
        Self::WorkLikeOracle,
        Self::SlowerRequestsThanKoordinator,
        Self::MoreWorkThanKoordinator,
        Self::StockWorkKept,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::SlowLikeOracle => "slow requests within 1 point of the oracle's",
            Self::WorkLikeOracle => "BE work beside the oracle's",
            Self::SlowerRequestsThanKoordinator => "fewer slow requests where Koordinator's quota fails",
            Self::MoreWorkThanKoordinator => "more BE work where Koordinator's quota passes",
            Self::StockWorkKept => "95 % of stock BE work where stock weights pass",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotApplicable => "n/a",
        })
    }
}

/// All promises, in one scenario.
pub fn judge(comparison: &Comparison<'_>) -> Vec<Judgement> {
    let judge_one = |target| {
        let Some(enforcer) = comparison.of_policy(Policy::Enforcer) else {
            return Judgement::not_applicable(target, "enforcer has not been measured");
        };
        match target {
            Target::SlowLikeOracle | Target::WorkLikeOracle => match comparison.oracle() {
                None => Judgement::not_applicable(target, "no static setting meets the SLO"),
                Some(oracle) if target == Target::SlowLikeOracle => {
                    slow_like_oracle(comparison, enforcer, oracle)
                }
                Some(oracle) => work_like_oracle(comparison, enforcer, oracle),
            },
            Target::SlowerRequestsThanKoordinator | Target::MoreWorkThanKoordinator => {
                match comparison.of_policy(Policy::KoordinatorQuota) {
                    None => Judgement::not_applicable(target, "Koordinator's rule has not been measured"),
                    Some(rule) => beside_koordinator(target, comparison, enforcer, rule),
                }
            }
            Target::StockWorkKept => match comparison.of_policy(Policy::Stock) {
                None => Judgement::not_applicable(target, "stock weights have not been measured"),
                Some(stock) if !stock.meets(comparison.slo_us) => {
                    Judgement::not_applicable(target, "stock weights miss the SLO")
                }
                Some(stock) => Judgement::of_work(target, comparison, enforcer, stock, STOCK_WORK),
            },
        }
    };
    Target::ALL.into_iter().map(judge_one).collect()
}

fn slow_like_oracle(comparison: &Comparison<'_>, enforcer: &Summary, oracle: &Summary) -> Judgement {
    let found = difference(comparison.cells(Policy::Enforcer), comparison.cells(oracle.policy));
    // Met only if the whole interval is: a wide one proves nothing.
    let is_met = found.is_some_and(|found| found.high <= SLOW_MARGIN);
    Judgement::of_slow(Target::SlowLikeOracle, enforcer, oracle, found, is_met)
}

fn work_like_oracle(comparison: &Comparison<'_>, enforcer: &Summary, oracle: &Summary) -> Judgement {
    let target = Target::WorkLikeOracle;
    let wanted = if comparison.scenario.load.is_constant() { ORACLE_WORK } else { 1.0 };
    Judgement::of_work(target, comparison, enforcer, oracle, wanted)
}

fn beside_koordinator(
    target: Target,
    comparison: &Comparison<'_>,
    enforcer: &Summary,
    rule: &Summary,
) -> Judgement {
    match (target, rule.meets(comparison.slo_us)) {
        (Target::SlowerRequestsThanKoordinator, false) => {
            let found = difference(comparison.cells(Policy::Enforcer), comparison.cells(rule.policy));
            Judgement::of_slow(target, enforcer, rule, found, enforcer.slow_share < rule.slow_share)
        }
        (Target::SlowerRequestsThanKoordinator, true) => {
            Judgement::not_applicable(target, "Koordinator's rule meets the SLO")
        }
        (_, true) => Judgement::of_work(target, comparison, enforcer, rule, 1.0),
        (_, false) => Judgement::not_applicable(target, "Koordinator's rule misses the SLO"),
    }
}

impl Judgement {
    fn not_applicable(target: Target, why: &str) -> Self {
        Self {
            target,
            verdict: Verdict::NotApplicable,
            why: why.to_owned(),
            enforcer: None,
            other: None,
            other_policy: None,
            difference: None,
            ratio: None,
        }
    }

    fn of_slow(
        target: Target,
        enforcer: &Summary,
        other: &Summary,
        difference: Option<Difference>,
        is_met: bool,
    ) -> Self {
        let interval = difference.map_or_else(
            || "too few windows for an interval".to_owned(),
            |found| {
                format!(
                    "difference {:+.2} points, 95 % interval {:+.2} to {:+.2} from {} windows{}",
                    found.shares * 100.0,
                    found.low * 100.0,
                    found.high * 100.0,
                    found.windows,
                    unless_clear(found.low, 0.0, found.high)
                )
            },
        );
        let why = format!(
            "enforcer {:.2} %, {} {:.2} %; {interval}",
            enforcer.slow_share * 100.0,
            other.policy,
            other.slow_share * 100.0
        );
        Self {
            target,
            verdict: if is_met { Verdict::Met } else { Verdict::Missed },
            why,
            enforcer: Some(enforcer.slow_share),
            other: Some(other.slow_share),
            other_policy: Some(other.policy),
            difference,
            ratio: None,
        }
    }

    /// Compares medians of BE work. `wanted`: so much of the other's, or if that is all of it, more.
    fn of_work(
        target: Target,
        comparison: &Comparison<'_>,
        enforcer: &Summary,
        other: &Summary,
        wanted: f64,
    ) -> Self {
        let (own, others) = (enforcer.be_work.median, other.be_work.median);
        // BE that does nothing elsewhere cannot do less here.
        let kept = if others > 0.0 { own / others } else { f64::INFINITY };
        let found = ratio(comparison.cells(Policy::Enforcer), comparison.cells(other.policy));
        let interval = found.map_or_else(String::new, |found| {
            format!(
                "; of the rounds' pairs {:.0} %, 95 % interval {:.0} to {:.0} %{}",
                found.mean * 100.0,
                found.low * 100.0,
                found.high * 100.0,
                unless_clear(found.low, wanted, found.high)
            )
        });
        let why = format!(
            "enforcer {own:.1}, {} {others:.1}: {:.0} % (wanted {} {:.0} %){interval}",
            other.policy,
            kept * 100.0,
            if wanted < 1.0 { "at least" } else { "more than" },
            wanted * 100.0
        );
        let is_met = if wanted < 1.0 { kept >= wanted } else { kept > wanted };
        Self {
            target,
            verdict: if is_met { Verdict::Met } else { Verdict::Missed },
            why,
            enforcer: Some(own),
            other: Some(others),
            other_policy: Some(other.policy),
            difference: None,
            ratio: found,
        }
    }
}

/// What is said behind an interval that does not tell on which side of `wanted` the truth lies.
const fn unless_clear(low: f64, wanted: f64, high: f64) -> &'static str {
    if low <= wanted && wanted <= high { ", no more than noise" } else { "" }
}

#[cfg(test)]
mod tests;

//! Metrics of objectives, and of how far they are kept.

use std::time::Duration;

use prometheus::proto::{Metric, MetricFamily};

use super::sample::{counter, gauge, sample};
use crate::{
    model::Signal,
    report::ledger::{GroupLedger, Ledger},
    signal::budget::Window,
};

/// What was promised, and what is left of it.
pub fn families(ledger: &Ledger) -> Vec<MetricFamily> {
    let groups = &ledger.groups;
    vec![
        gauge(
            "enforcer_slo_seconds",
            "Objective: at most 1 % may be slower",
            groups.values().flat_map(objectives),
        ),
        gauge(
            "enforcer_slo_learned",
            "Whether an objective that is left to be learned is known",
            groups.values().flat_map(learned),
        ),
        counter(
            "enforcer_quiet_seconds_total",
            "Time without BE, from which objectives are learned",
            [sample([], ledger.quiet.as_secs_f64())],
        ),
        gauge(
            "enforcer_error_budget_remaining_ratio",
            "Part of the slow ones allowed in the window that is left; negative when there were more",
            groups.values().flat_map(|group| budgets(group, ledger.since_start)),
        ),
    ]
}

fn objectives(group: &GroupLedger) -> impl Iterator<Item = Metric> {
    Signal::ALL.into_iter().filter_map(|signal| {
        let objective = group.slo.threshold(signal)?.as_secs_f64();
        Some(sample([("group", group.name.as_str()), ("signal", signal.label())], objective))
    })
}

fn learned(group: &GroupLedger) -> impl Iterator<Item = Metric> {
    Signal::ALL.into_iter().filter_map(|signal| {
        group.slo.auto(signal)?;
        let is_known = group.slo.promise(signal).is_some();
        let labels = [("group", group.name.as_str()), ("signal", signal.label())];
        Some(sample(labels, f64::from(is_known)))
    })
}

fn budgets(group: &GroupLedger, now: Duration) -> impl Iterator<Item = Metric> {
    let windows = group.budgets.iter().flat_map(|objective| Window::ALL.map(|window| (objective, window)));
    windows.filter_map(move |((signal, budget), window)| {
        let labels = [("group", group.name.as_str()), ("signal", signal.label()), ("window", window.label())];
        Some(sample(labels, budget.remaining(now, window)?))
    })
}

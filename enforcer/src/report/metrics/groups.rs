//! Metrics per group: CPU, waits, blame and levers.

use prometheus::proto::{Metric, MetricFamily};

use super::sample::{counter, durations, gauge, sample};
use crate::{
    model::Lever,
    policy::Class,
    report::ledger::{GroupLedger, Ledger},
};

/// Per group.
pub fn families(ledger: &Ledger) -> Vec<MetricFamily> {
    let groups = &ledger.groups;
    let each = |value: fn(&GroupLedger) -> Option<f64>| {
        groups.values().filter_map(move |group| Some(sample([("group", &group.name)], value(group)?)))
    };
    vec![
        gauge(
            "enforcer_group_info",
            "Always 1; the class of a group",
            groups.values().map(|group| {
                sample([("group", group.name.as_str()), ("class", &group.class.to_string())], 1.0)
            }),
        ),
        gauge("enforcer_cgroups", "Cgroups counted for a group", each(|group| Some(group.cgroups as f64))),
        gauge(
            "enforcer_cgroups_uncounted",
            "Cgroups of a group that found no slot and count as other",
            each(|group| Some(group.cgroups_uncounted as f64)),
        ),
        counter(
            "enforcer_cpu_seconds_total",
            "CPU time of a group",
            each(|group| Some(group.cpu.total().as_secs_f64())),
        ),
        counter(
            "enforcer_context_switches_total",
            "Times that a task of a group got a CPU",
            each(|group| Some(group.switches as f64)),
        ),
        durations(
            "enforcer_run_queue_wait_seconds",
            "From runnable to running",
            groups.values().map(|group| (group, &group.waits)),
        ),
        counter(
            "enforcer_run_queue_wait_slow_total",
            "Waits longer than the objective",
            each(|group| group.slo.run_queue_wait_p99.map(|_| group.waits.tally.slow as f64)),
        ),
        counter(
            "enforcer_run_queue_blame_seconds_total",
            "Time that a victim waited while a culprit ran",
            blame(ledger),
        ),
        gauge(
            "enforcer_cpu_floor_cores",
            "CPU that a BE group keeps under any squeeze",
            each(|group| (group.class == Class::BE).then(|| group.floor.cores())),
        ),
        gauge(
            "enforcer_cpu_limit_cores",
            "Limit that enforcer puts on a group; absent where it puts none",
            each(|group| group.restraint?.cores()),
        ),
        gauge(
            "enforcer_memory_limit_bytes",
            "Memory that enforcer leaves a group; absent where it puts no limit",
            each(|group| Some(group.restraint?.memory_high? as f64)),
        ),
        counter(
            "enforcer_cpu_limited_seconds_total",
            "Time that a group was held back by enforcer, by whatever lever",
            each(|group| Some(group.restrained.as_secs_f64())),
        ),
        gauge(
            "enforcer_lever_available",
            "Whether a BE group can be held back with a lever",
            levers(ledger, |group, lever| group.levers.has(lever)),
        ),
        gauge(
            "enforcer_lever_pulled",
            "Whether a BE group is held back with a lever",
            levers(ledger, |group, lever| group.restraint.is_some_and(|restraint| restraint.uses(lever))),
        ),
        gauge(
            "enforcer_eviction_wanted",
            "Whether a BE group had its floor only for so long that it is better off on another node",
            each(|group| (group.class == Class::BE).then(|| f64::from(group.evict))),
        ),
        gauge(
            "enforcer_cause",
            "1 for the cause for which a group misses an objective; absent while it misses none",
            groups.values().filter_map(|group| {
                Some(sample([("group", group.name.as_str()), ("cause", group.cause?.label())], 1.0))
            }),
        ),
    ]
}

fn levers(ledger: &Ledger, is_so: fn(&GroupLedger, Lever) -> bool) -> impl Iterator<Item = Metric> {
    let be = ledger.groups.values().filter(|group| group.class == Class::BE);
    be.flat_map(move |group| {
        let sample_of = move |lever: Lever| {
            let labels = [("group", group.name.as_str()), ("lever", lever.label())];
            sample(labels, f64::from(is_so(group, lever)))
        };
        Lever::ALL.into_iter().map(sample_of)
    })
}

/// Only pairs that ever occurred: victims times culprits would be too many series.
fn blame(ledger: &Ledger) -> impl Iterator<Item = Metric> {
    ledger.groups.values().flat_map(move |victim| {
        victim.blame.iter().map(move |(&column, time)| {
            let labels = [("victim", victim.name.as_str()), ("culprit", ledger.culprit(column))];
            sample(labels, time.total().as_secs_f64())
        })
    })
}

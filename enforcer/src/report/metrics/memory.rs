//! Metrics of memory, and of what waited for it.

use enforcer_ebpf::layout::StallCause;
use prometheus::proto::{Metric, MetricFamily};

use super::sample::{counter, gauge, sample};
use crate::report::ledger::{Ledger, MemoryLedger, Stalls};

/// Per group.
pub fn families(ledger: &Ledger) -> Vec<MetricFamily> {
    let groups = &ledger.groups;
    let each = |value: fn(&MemoryLedger) -> Option<f64>| {
        groups.values().filter_map(move |group| Some(sample([("group", &group.name)], value(&group.memory)?)))
    };
    vec![
        gauge(
            "enforcer_slo_ratio",
            "Objective: at most this share of the time",
            groups.values().filter_map(|group| {
                let labels = [("group", group.name.as_str()), ("signal", "memory_stall")];
                Some(sample(labels, group.slo.memory_stall?.ratio()))
            }),
        ),
        counter(
            "enforcer_memory_stalls_total",
            "Times that a task had to wait until memory had been made free",
            stalls(ledger, |stalls| stalls.count as f64),
        ),
        counter(
            "enforcer_memory_stall_seconds_total",
            "Time that tasks waited until memory had been made free",
            stalls(ledger, |stalls| stalls.time.total().as_secs_f64()),
        ),
        counter(
            "enforcer_memory_blame_seconds_total",
            "Time that a victim stalled for memory that a culprit is likely to use",
            memory_blame(ledger),
        ),
        counter(
            "enforcer_memory_psi_some_seconds_total",
            "Time in which some task of a group stalled for want of memory, by PSI",
            each(|memory| Some(memory.psi_some?.as_secs_f64())),
        ),
        gauge("enforcer_memory_bytes", "Memory that a group uses", each(|memory| Some(memory.bytes? as f64))),
        counter(
            "enforcer_memory_reclaimed_bytes_total",
            "Memory that the kernel took from a group",
            each(|memory| Some(memory.reclaimed_bytes? as f64)),
        ),
        counter(
            "enforcer_memory_refaulted_bytes_total",
            "Memory that was taken from a group and needed again",
            each(|memory| Some(memory.refaulted_bytes? as f64)),
        ),
        counter(
            "enforcer_oom_kills_total",
            "Processes of a group that the kernel killed for want of memory",
            each(|memory| Some(memory.oom_kills? as f64)),
        ),
    ]
}

/// Per group and cause, where the cause is measured.
fn stalls(ledger: &Ledger, value: fn(&Stalls) -> f64) -> impl Iterator<Item = Metric> {
    ledger.groups.values().flat_map(move |group| {
        StallCause::ALL.into_iter().filter_map(move |cause| {
            let stalls = group.memory.stalls[cause as usize].as_ref()?;
            let labels = [("group", group.name.as_str()), ("cause", stall_label(cause))];
            Some(sample(labels, value(stalls)))
        })
    })
}

fn memory_blame(ledger: &Ledger) -> impl Iterator<Item = Metric> {
    ledger.groups.values().flat_map(move |victim| {
        victim.memory.blame.iter().map(move |(&user, time)| {
            let labels = [("victim", victim.name.as_str()), ("culprit", ledger.memory_user(user))];
            sample(labels, time.total().as_secs_f64())
        })
    })
}

const fn stall_label(cause: StallCause) -> &'static str {
    match cause {
        StallCause::DirectReclaim => "direct_reclaim",
        StallCause::MemcgReclaim => "memcg_reclaim",
        StallCause::Compaction => "compaction",
    }
}

//! Metrics of the node as a whole.

use enforcer_ebpf::layout::Drop;
use prometheus::proto::{MetricFamily, MetricType};

use super::sample::{counter, family, gauge, histogram_of, sample};
use crate::{decision::plan::Reason, kernel::support::WaitSource, report::ledger::Ledger, units::Amounts};

/// What the agent sees and does.
pub fn families(ledger: &Ledger) -> Vec<MetricFamily> {
    let wait_source = match ledger.wait_source {
        WaitSource::SchedInfo => "sched_info",
        WaitSource::Wakeups => "wakeups",
    };
    let reasons = || Reason::LABELS.into_iter().zip(ledger.reason_time);
    let now = ledger.reason.label();
    vec![
        gauge(
            "enforcer_build_info",
            "Always 1; version and the way in which waits are measured",
            [sample([("version", env!("CARGO_PKG_VERSION")), ("wait_source", wait_source)], 1.0)],
        ),
        gauge(
            "enforcer_shadow",
            "1 in shadow mode, in which nothing is written",
            [sample([], f64::from(u8::from(ledger.shadow)))],
        ),
        counter(
            "enforcer_shadow_be_core_seconds_total",
            "CPU time that BE would have lost at most, were this not shadow mode",
            ledger.shadow.then(|| sample([], ledger.shadow_cost)),
        ),
        counter(
            "enforcer_early_ticks_total",
            "Looks at the node that an onset of trouble asked for",
            [sample([], ledger.early_ticks as f64)],
        ),
        family(
            "enforcer_reaction_seconds",
            "From an onset of trouble in the kernel to the restraint in force",
            MetricType::HISTOGRAM,
            vec![histogram_of([], &ledger.reactions)],
        ),
        counter("enforcer_ticks_total", "Looks at the node", [sample([], ledger.ticks as f64)]),
        gauge(
            "enforcer_decision",
            "1 for the reason of the plan in force, 0 for the others",
            reasons().map(|(label, _)| sample([("reason", label)], f64::from(u8::from(label == now)))),
        ),
        counter(
            "enforcer_decision_seconds_total",
            "Time for which plans were in force, by their reason",
            reasons().map(|(label, time)| sample([("reason", label)], time.as_secs_f64())),
        ),
        counter(
            "enforcer_limit_writes_total",
            "Settings written, restorations included",
            [sample([], ledger.writes as f64)],
        ),
        counter(
            "enforcer_limit_write_errors_total",
            "Settings that could not be read or written",
            [sample([], ledger.write_errors as f64)],
        ),
        counter(
            "enforcer_limit_foreign_writes_total",
            "Times that somebody else had changed a setting of enforcer's",
            [sample([], ledger.foreign_writes as f64)],
        ),
        counter(
            "enforcer_lease_revocations_total",
            "Times that the guardian took the limits off because the agent began no tick",
            [sample([], ledger.revocations as f64)],
        ),
        gauge(
            "enforcer_guardian_up",
            "Whether the agent's own guardian runs",
            ledger.guarded.map(|guarded| sample([], f64::from(guarded))),
        ),
        counter(
            "enforcer_probe_drops_total",
            "Events that a probe could not count, by cause",
            Drop::ALL
                .into_iter()
                .zip(ledger.drops)
                .map(|(cause, count)| sample([("cause", cause_label(cause))], count as f64)),
        ),
        gauge("enforcer_slots_used", "Cgroups counted on their own", [sample([], ledger.slots_used as f64)]),
        gauge(
            "enforcer_slots_capacity",
            "Cgroups that can be counted on their own",
            [sample([], f64::from(ledger.slots_capacity))],
        ),
        gauge(
            "enforcer_cgroups_unwatched",
            "Cgroups found by rescans only, for lack of inotify watches",
            [sample([], ledger.unwatched as f64)],
        ),
        gauge(
            "enforcer_probe_memory_bytes",
            "Kernel memory of the probes' tables",
            [sample([], ledger.sizes.memory_bytes() as f64)],
        ),
        gauge(
            "enforcer_steal_ratio",
            "Share of the node's CPU time that the hypervisor gave to others, between the last two looks",
            ledger.steal.map(|steal| sample([], steal)),
        ),
    ]
}

/// How soon cgroups are counted.
pub fn joins(ledger: &Ledger) -> MetricFamily {
    family(
        "enforcer_cgroup_join_seconds",
        "From the making of a cgroup to its being counted for its group, its pod being known",
        MetricType::HISTOGRAM,
        vec![histogram_of([], &ledger.joins)],
    )
}

/// What is known only where there is a cluster.
pub fn cluster(ledger: &Ledger) -> Vec<MetricFamily> {
    let Some(cluster) = &ledger.cluster else { return Vec::new() };
    let lent = cluster.lent.as_ref();
    let amounts = |amounts: Option<Amounts>| {
        amounts.into_iter().flat_map(|amounts| {
            [
                sample([("resource", "cpu")], amounts.cpu_milli as f64 / 1e3),
                sample([("resource", "memory")], amounts.memory_bytes as f64),
            ]
        })
    };
    vec![
        gauge("enforcer_pods", "Pods that are told apart", [sample([], cluster.pods as f64)]),
        gauge(
            "enforcer_batch_offered",
            "What the node's status offers to batch pods: cores and bytes",
            amounts(lent.and_then(|lent| lent.offered)),
        ),
        gauge(
            "enforcer_batch_calculated",
            "What would be offered right now: cores and bytes",
            amounts(lent.and_then(|lent| lent.terms).map(|terms| terms.offered())),
        ),
        counter(
            "enforcer_evictions_asked_total",
            "Batch pods that the API server was asked to evict",
            [sample([], cluster.evictions as f64)],
        ),
    ]
}

/// What agent, guardian and probes cost.
pub fn cost(ledger: &Ledger) -> Vec<MetricFamily> {
    vec![
        counter(
            "enforcer_bpf_run_seconds_total",
            "Time that a probe ran, estimated from one second in thirty",
            ledger
                .probe_times
                .iter()
                .map(|(program, time)| sample([("program", program.as_str())], time.as_secs_f64())),
        ),
        counter(
            "enforcer_guardian_cpu_seconds_total",
            "CPU time that the guardian used",
            ledger.guardian_time.map(|time| sample([], time.as_secs_f64())),
        ),
        gauge(
            "enforcer_overhead_ratio",
            "What agent, guardian and probes cost, of the node's CPU time",
            ledger.overhead.map(|overhead| sample([], overhead)),
        ),
        gauge("enforcer_overhead_budget_ratio", "What they may cost", [sample([], ledger.overhead_budget)]),
        gauge(
            "enforcer_shed_level",
            "What is left out because the agent costs too much: 0 is nothing",
            [sample([], f64::from(ledger.shed as u8))],
        ),
    ]
}

const fn cause_label(cause: Drop) -> &'static str {
    match cause {
        Drop::NoClock => "no_clock",
        Drop::NegativeWait => "negative_wait",
        Drop::RunnableTableFull => "runnable_table_full",
        Drop::NoSocketState => "no_socket_state",
        Drop::Unparsable => "unparsable",
        Drop::UnknownGroup => "unknown_group",
        Drop::OnsetRingFull => "onset_ring_full",
        Drop::StallTableFull => "stall_table_full",
    }
}

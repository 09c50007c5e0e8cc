//! The ledger as Prometheus metrics. docs/metrics.md explains each of them.

use std::time::Duration;

use enforcer_ebpf::{
    histogram::{FIRST_OCTAVE, OCTAVES},
    layout::{Drop, StallCause},
};
use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::ledger::{Durations, GroupLedger, Ledger, MemoryLedger, Stalls, Waiting};
use crate::{
    decision::plan::Reason,
    model::{Lever, Signal},
    places::Places,
    policy::Class,
    signal::{budget::Window, histogram::Counts},
    units::Amounts,
};

/// Media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics in the text exposition format. `process`: `None` if it could not be read.
pub fn render(ledger: &Ledger, process: Option<&Process>) -> String {
    let families = families(ledger, process);
    TextEncoder::new().encode_to_string(&families).expect("BUG: a metric family without samples or name")
}

/// What the agent itself costs, from `/proc/self`.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub open_fds: u64,
    /// Seconds since the epoch.
    pub started_at: u64,
}

impl Process {
    /// This process now; unknown figures are missing rather than zero.
    pub fn read() -> Option<Self> {
        let me = procfs::process::Process::myself().ok()?;
        let stat = me.stat().ok()?;
        let ticks = procfs::ticks_per_second();
        Some(Self {
            cpu: Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks as f64),
            resident_bytes: stat.rss * procfs::page_size(),
            open_fds: me.fd_count().ok()? as u64,
            started_at: procfs::boot_time_secs().ok()? + stat.starttime / ticks,
        })
    }
}

fn families(ledger: &Ledger, process: Option<&Process>) -> Vec<MetricFamily> {
    let mut families = node(ledger);
    families.push(joins(ledger));
    families.extend(cluster(ledger));
    families.extend(cost(ledger));
    families.extend(groups(ledger));
    families.extend(requests(&ledger.groups));
    families.extend(memory(ledger));
    families.extend(promises(ledger));
    families.extend(process.into_iter().flat_map(costs));
    families.retain(|family| !family.get_metric().is_empty());
    families
}

fn costs(process: &Process) -> [MetricFamily; 4] {
    [
        counter(
            "process_cpu_seconds_total",
            "CPU time that the agent used",
            [sample([], process.cpu.as_secs_f64())],
        ),
        gauge(
            "process_resident_memory_bytes",
            "Memory that the agent holds",
            [sample([], process.resident_bytes as f64)],
        ),
        gauge("process_open_fds", "Files that the agent has open", [sample([], process.open_fds as f64)]),
        gauge(
            "process_start_time_seconds",
            "When the agent started, since the epoch",
            [sample([], process.started_at as f64)],
        ),
    ]
}

fn node(ledger: &Ledger) -> Vec<MetricFamily> {
    let wait_source = match ledger.wait_source {
        crate::kernel::support::WaitSource::SchedInfo => "sched_info",
        crate::kernel::support::WaitSource::Wakeups => "wakeups",
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

fn joins(ledger: &Ledger) -> MetricFamily {
    family(
        "enforcer_cgroup_join_seconds",
        "From the making of a cgroup to its being counted for its group, its pod being known",
        MetricType::HISTOGRAM,
        vec![histogram_of([], &ledger.joins)],
    )
}

/// What is known only where there is a cluster.
fn cluster(ledger: &Ledger) -> Vec<MetricFamily> {
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

/// What the agent and its probes cost.
fn cost(ledger: &Ledger) -> Vec<MetricFamily> {
    vec![
        counter(
            "enforcer_bpf_run_seconds_total",
            "Time that a probe ran, estimated from one second in thirty",
            ledger
                .probe_times
                .iter()
                .map(|(program, time)| sample([("program", program.as_str())], time.as_secs_f64())),
        ),
        gauge(
            "enforcer_overhead_ratio",
            "What the agent and its probes cost, of the node's CPU time",
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

fn groups(ledger: &Ledger) -> Vec<MetricFamily> {
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

fn requests(groups: &Places<GroupLedger>) -> Vec<MetricFamily> {
    let each = |value: fn(&Waiting) -> f64| {
        groups
            .values()
            .filter_map(move |group| Some(sample([("group", &group.name)], value(group.waiting.as_ref()?))))
    };
    vec![
        durations(
            "enforcer_request_duration_seconds",
            "From a request's first byte to its response's first byte",
            groups.values().filter_map(|group| Some((group, group.requests.as_ref()?))),
        ),
        counter(
            "enforcer_request_slow_total",
            "Requests slower than the objective, answered or not",
            groups.values().filter_map(|group| {
                group.slo.request_latency_p99?;
                let slow = group.requests.as_ref()?.tally.slow;
                Some(sample([("group", &group.name)], slow as f64))
            }),
        ),
        gauge(
            "enforcer_request_sampling_ratio",
            "Part of a group's requests that is looked at; it stands for the rest",
            groups
                .iter()
                .filter(|(_, group)| group.requests.is_some())
                .map(|(_, group)| sample([("group", &group.name)], 1.0 / f64::from(group.one_in))),
        ),
        gauge(
            "enforcer_requests_in_flight",
            "Requests that wait for an answer",
            each(|waiting| waiting.in_flight.requests as f64),
        ),
        gauge(
            "enforcer_request_oldest_seconds",
            "How long the oldest request in flight has waited at least; 0 where there is none",
            each(|waiting| waiting.in_flight.oldest.unwrap_or_default().as_secs_f64()),
        ),
        counter(
            "enforcer_requests_unanswered_total",
            "Requests whose connection ended before an answer",
            each(|waiting| waiting.unanswered as f64),
        ),
        counter(
            "enforcer_requests_written_off_total",
            "Requests that no longer count as in flight because nobody answered for ten minutes",
            each(|waiting| waiting.written_off as f64),
        ),
    ]
}

/// What was promised, and what is left of it.
fn promises(ledger: &Ledger) -> Vec<MetricFamily> {
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
        let is_known = group.slo.threshold(signal).is_some();
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

fn memory(ledger: &Ledger) -> Vec<MetricFamily> {
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

/// Only pairs that ever occurred: victims times culprits would be too many series.
fn blame(ledger: &Ledger) -> impl Iterator<Item = Metric> {
    ledger.groups.values().flat_map(move |victim| {
        victim.blame.iter().map(move |(&column, time)| {
            let labels = [("victim", victim.name.as_str()), ("culprit", ledger.culprit(column))];
            sample(labels, time.total().as_secs_f64())
        })
    })
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

/// A value with its labels, until its family says whether it is a counter or a gauge.
fn sample<const N: usize>(labels: [(&str, &str); N], value: f64) -> Metric {
    let mut metric = Metric::from_label(labels.map(pair).into());
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn pair((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn gauge(name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, samples.into_iter().collect())
}

fn counter(name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) -> MetricFamily {
    let as_counter = |mut metric: Metric| {
        let mut counter = Counter::default();
        counter.set_value(metric.get_gauge().get_value());
        metric.set_counter(counter);
        metric
    };
    family(name, help, MetricType::COUNTER, samples.into_iter().map(as_counter).collect())
}

/// Histograms with one bucket per octave, which is where the probes' buckets add up exactly. Groups that never counted
/// anything are left out.
fn durations<'a>(
    name: &str,
    help: &str,
    groups: impl Iterator<Item = (&'a GroupLedger, &'a Durations)>,
) -> MetricFamily {
    let heard = groups.filter(|(_, durations)| !durations.counts.is_empty());
    let metrics = heard.map(|(group, durations)| histogram_of([("group", &group.name)], durations));
    family(name, help, MetricType::HISTOGRAM, metrics.collect())
}

fn histogram_of<const N: usize>(labels: [(&str, &str); N], durations: &Durations) -> Metric {
    let mut metric = Metric::from_label(labels.map(pair).into());
    metric.set_histogram(histogram(&durations.counts, durations.sum));
    metric
}

fn histogram(counts: &Counts, sum: Duration) -> Histogram {
    let bucket = |exponent| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound((1u64 << exponent) as f64 / 1e9);
        bucket.set_cumulative_count(counts.below_power_of_two(exponent));
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket((FIRST_OCTAVE..=FIRST_OCTAVE + OCTAVES).map(bucket).collect());
    histogram.set_sample_count(counts.total());
    histogram.set_sample_sum(sum.as_secs_f64());
    histogram
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

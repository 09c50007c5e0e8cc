//! Metrics of requests, answered or not.

use prometheus::proto::MetricFamily;

use super::sample::{counter, durations, gauge, sample};
use crate::{
    places::Places,
    report::ledger::{GroupLedger, Waiting},
};

/// Per group whose requests are measured.
pub fn families(groups: &Places<GroupLedger>) -> Vec<MetricFamily> {
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

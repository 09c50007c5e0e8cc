//! Samples and families of them, as the exposition format has it.

use std::time::Duration;

use enforcer_ebpf::histogram::{FIRST_OCTAVE, OCTAVES};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::{
    report::ledger::{Durations, GroupLedger},
    signal::histogram::Counts,
};

/// A value with its labels, until its family says whether it is a counter or a gauge.
pub fn sample<const N: usize>(labels: [(&str, &str); N], value: f64) -> Metric {
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

/// Values that may rise and fall.
pub fn gauge(name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, samples.into_iter().collect())
}

/// Values that only rise.
pub fn counter(name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) -> MetricFamily {
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
pub fn durations<'a>(
    name: &str,
    help: &str,
    groups: impl Iterator<Item = (&'a GroupLedger, &'a Durations)>,
) -> MetricFamily {
    let heard = groups.filter(|(_, durations)| !durations.counts.is_empty());
    let metrics = heard.map(|(group, durations)| histogram_of([("group", &group.name)], durations));
    family(name, help, MetricType::HISTOGRAM, metrics.collect())
}

/// One of them.
pub fn histogram_of<const N: usize>(labels: [(&str, &str); N], durations: &Durations) -> Metric {
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

/// Samples that are of this kind already.
pub fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

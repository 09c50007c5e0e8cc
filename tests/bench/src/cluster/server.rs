//! The API server's own account of what it was asked.

use std::{collections::BTreeMap, io, time::Duration};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;
use prometheus_parse::{Sample, Scrape, Value as Metric};
use serde_json::{Map, Value, json};

/// Requests that last do not count as requests per second.
const LASTING: [&str; 2] = ["WATCH", "CONNECT"];
/// What agents write at rest, by the metrics' labels: verb, resource, subresource. A Node patch without the subresource is an
/// annotation's.
const METRIC_WRITE: &str = "APPLY nodemetrics/status";
const NODE_WRITE: &str = "APPLY nodes/status";

/// Counts since the server started.
#[derive(Debug, Default)]
pub struct Account {
    requests: BTreeMap<String, Requests>,
    watches: f64,
    cpu_seconds: f64,
    resident_bytes: f64,
}

#[derive(Clone, Debug, Default)]
struct Requests {
    total: f64,
    refused: f64,
    /// Upper end in seconds, and how many took no longer.
    took: Vec<(f64, f64)>,
}

impl Account {
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let text = cluster.ask(&["get", "--raw=/metrics"])?;
        let scrape = Scrape::parse(text.lines().map(|line| io::Result::Ok(line.to_owned())));
        let mut account = Self::default();
        for sample in scrape.context("the API server's metrics cannot be read")?.samples {
            account.count(&sample);
        }
        Ok(account)
    }

    fn count(&mut self, sample: &Sample) {
        match (sample.metric.as_str(), &sample.value) {
            ("process_cpu_seconds_total", value) => self.cpu_seconds = number(value),
            ("process_resident_memory_bytes", value) => self.resident_bytes = number(value),
            ("apiserver_longrunning_requests", value) if sample.labels.get("verb") == Some("WATCH") => {
                self.watches += number(value);
            }
            ("apiserver_request_total", value) => {
                let Some(requests) = self.requests_of(sample) else { return };
                requests.total += number(value);
                if sample.labels.get("code").is_some_and(|code| code.starts_with(['4', '5'])) {
                    requests.refused += number(value);
                }
            }
            ("apiserver_request_duration_seconds", Metric::Histogram(buckets)) => {
                let Some(requests) = self.requests_of(sample) else { return };
                requests.took.resize(buckets.len(), (0.0, 0.0));
                for (sum, bucket) in requests.took.iter_mut().zip(buckets) {
                    *sum = (bucket.less_than, sum.1 + bucket.count);
                }
            }
            _ => {}
        }
    }

    fn requests_of(&mut self, sample: &Sample) -> Option<&mut Requests> {
        let label = |name| sample.labels.get(name).unwrap_or_default();
        let (verb, resource, subresource) = (label("verb"), label("resource"), label("subresource"));
        if LASTING.contains(&verb) || resource.is_empty() {
            return None;
        }
        let slash = if subresource.is_empty() { "" } else { "/" };
        Some(self.requests.entry(format!("{verb} {resource}{slash}{subresource}")).or_default())
    }

    /// What came in between, of so many agents.
    pub fn since(&self, before: &Self, elapsed: Duration, agents: usize) -> Value {
        let seconds = elapsed.as_secs_f64();
        let none = Requests::default();
        let mut kinds = Map::new();
        let mut total = 0.0;
        for (kind, requests) in &self.requests {
            let requests = requests.since(before.requests.get(kind).unwrap_or(&none));
            if requests.total > 0.0 {
                total += requests.total;
                kinds.insert(kind.clone(), requests.figures(seconds));
            }
        }
        let per_node = |kind: &str, each: f64| {
            let count = |account: &Self| account.requests.get(kind).map_or(0.0, |requests| requests.total);
            (agents > 0).then(|| (count(self) - count(before)) / agents as f64 * each / seconds)
        };
        json!({
            "requests_per_second": total / seconds,
            "watches": self.watches,
            "server_cores": (self.cpu_seconds - before.cpu_seconds) / seconds,
            "server_rss_mib": self.resident_bytes / f64::from(1 << 20),
            "metric_writes_per_node_in_60_s": per_node(METRIC_WRITE, 60.0),
            "node_writes_per_node_in_300_s": per_node(NODE_WRITE, 300.0),
            "requests": kinds,
        })
    }
}

impl Requests {
    fn since(&self, before: &Self) -> Self {
        let took = self.took.iter().enumerate().map(|(place, &(end, count))| {
            (end, count - before.took.get(place).map_or(0.0, |&(_, count)| count))
        });
        Self {
            total: self.total - before.total,
            refused: self.refused - before.refused,
            took: took.collect(),
        }
    }

    fn figures(&self, seconds: f64) -> Value {
        json!({
            "per_second": self.total / seconds,
            "refused": self.refused,
            "p50_ms": self.quantile(0.5).map(|seconds| seconds * 1e3),
            "p99_ms": self.quantile(0.99).map(|seconds| seconds * 1e3),
        })
    }

    /// In seconds, evenly spread within a bucket, as Prometheus has it; no more than the last bucket's lower end.
    fn quantile(&self, quantile: f64) -> Option<f64> {
        let all = self.took.last().map(|&(_, count)| count).filter(|&all| all > 0.0)?;
        let rank = quantile * all;
        let (mut lower, mut below) = (0.0, 0.0);
        for &(upper, count) in &self.took {
            if count >= rank {
                let inside = (rank - below) / (count - below).max(f64::MIN_POSITIVE);
                return Some(if upper.is_finite() { lower + (upper - lower) * inside } else { lower });
            }
            (lower, below) = (upper, count);
        }
        None
    }
}

fn number(value: &Metric) -> f64 {
    match value {
        Metric::Counter(value) | Metric::Gauge(value) | Metric::Untyped(value) => *value,
        Metric::Histogram(_) | Metric::Summary(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_prometheus() {
        let took = vec![(0.005, 50.0), (0.025, 90.0), (0.05, 100.0), (f64::INFINITY, 100.0)];
        let requests = Requests { total: 100.0, refused: 0.0, took };
        let close = |quantile, expected: f64| {
            let found = requests.quantile(quantile).unwrap();
            assert!((found - expected).abs() < 1e-9, "{quantile}: {found}");
        };
        close(0.5, 0.005);
        close(0.7, 0.015);
        close(0.99, 0.0475);
        assert_eq!(Requests::default().quantile(0.5), None);
    }

    #[test]
    fn what_was_there_before_does_not_count() {
        let text = |requests: u32, refused: u32| {
            let labels = r#"group="",verb="APPLY",resource="nodes",subresource="status""#;
            let all = requests + refused;
            format!(
                "# TYPE apiserver_request_total counter\n\
                 apiserver_request_total{{{labels},code=\"200\"}} {requests}\n\
                 apiserver_request_total{{{labels},code=\"429\"}} {refused}\n\
                 # TYPE apiserver_request_duration_seconds histogram\n\
                 apiserver_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} {all}\n\
                 apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {all}\n"
            )
        };
        let account = |text: &str| {
            let mut account = Account::default();
            let scrape = Scrape::parse(text.lines().map(|line| io::Result::Ok(line.to_owned()))).unwrap();
            scrape.samples.iter().for_each(|sample| account.count(sample));
            account
        };
        let row = account(&text(30, 12)).since(&account(&text(10, 2)), Duration::from_secs(10), 2);
        assert_eq!(row["requests_per_second"], 3.0);
        assert_eq!(row["requests"][NODE_WRITE]["refused"], 10.0);
        assert_eq!(row["node_writes_per_node_in_300_s"], 450.0);
    }
}

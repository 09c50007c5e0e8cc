//! What the webhook counts. docs/webhook.md explains each of them.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Microseconds as a rule, and what the API server waits for at most.
const SECONDS: [f64; 11] = [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Mutate,
    Validate,
}

impl Operation {
    const fn label(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing to do with it.
    Ignored,
    Unchanged,
    Changed,
    Refused,
    /// Not at all: `failurePolicy` decides.
    Failed,
}

impl Answer {
    const fn label(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Unchanged => "unchanged",
            Self::Changed => "changed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    admissions: IntCounterVec,
    seconds: HistogramVec,
    profiles: IntCounterVec,
    converted: IntCounterVec,
    unconverted: IntGauge,
}

impl Metrics {
    pub fn new() -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("BUG: a name is wrong")
        };
        let seconds = HistogramOpts::new("enforcer_webhook_admission_seconds", "Time to answer one request")
            .buckets(SECONDS.to_vec());
        let metrics = Self {
            registry: Registry::new(),
            admissions: counter(
                "enforcer_webhook_admissions_total",
                "Requests answered",
                &["operation", "answer"],
            ),
            seconds: HistogramVec::new(seconds, &["operation"]).expect("BUG: a name is wrong"),
            profiles: counter(
                "enforcer_webhook_profiles_total",
                "Pods by what became of a profile that selects them or cannot be evaluated",
                &["profile", "verdict"],
            ),
            converted: counter(
                "enforcer_webhook_converted_pods_total",
                "Pods whose resources were converted",
                &["class"],
            ),
            unconverted: IntGauge::new(
                "enforcer_webhook_unconverted_pods",
                "Pods that run with cpu and memory although profiles that select them make them batch or mid",
            )
            .expect("BUG: a name is wrong"),
        };
        let all: [Box<dyn prometheus::core::Collector>; 4] = [
            Box::new(metrics.admissions.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.profiles.clone()),
            Box::new(metrics.converted.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector).expect("BUG: a name is there twice");
        }
        metrics
    }

    pub fn admission(&self, operation: Operation, answer: Answer, seconds: f64) {
        self.admissions.with_label_values(&[operation.label(), answer.label()]).inc();
        self.seconds.with_label_values(&[operation.label()]).observe(seconds);
    }

    pub fn profile(&self, name: &str, verdict: &'static str) {
        self.profiles.with_label_values(&[name, verdict]).inc();
    }

    pub fn converted(&self, class: &'static str) {
        self.converted.with_label_values(&[class]).inc();
    }

    /// From when on it is known how many there are.
    pub fn count_unconverted(&self) {
        self.registry.register(Box::new(self.unconverted.clone())).ok();
    }

    pub fn unconverted(&self, pods: usize) {
        self.unconverted.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("BUG: writing to memory");
        String::from_utf8(text).expect("BUG: metrics are text")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_metric_is_documented_and_every_documented_one_exists() {
        let names = |text: &str, open: char, close: &[char]| -> Vec<String> {
            let parts = text.split(open).skip(1).filter_map(|part| part.split(close).next());
            parts.filter(|name| name.starts_with("enforcer_webhook_")).map(str::to_owned).collect()
        };
        let (code, docs) = (include_str!("metrics.rs"), include_str!("../../../../docs/webhook.md"));
        let (mut made, mut told) = (names(code, '"', &['"']), names(docs, '`', &['`', '{']));
        made.retain(|name| name != "enforcer_webhook_");
        for list in [&mut made, &mut told] {
            list.sort();
            list.dedup();
        }
        assert_eq!(made, told);
    }
}

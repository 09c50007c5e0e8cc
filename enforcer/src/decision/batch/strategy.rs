//! What the operator of the cluster decided about lending: Koordinator's `ColocationStrategy`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which numbers count for pods that go before batch work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CalculatePolicy {
    /// What they use.
    #[default]
    Usage,
    /// What they request. For memory only.
    Request,
    /// The greater of both, pod by pod.
    MaxUsageRequest,
}

/// The strategy for one node, with defaults filled in (koordinator `pkg/util/sloconfig/colocation_config.go`).
#[derive(Clone, Debug, PartialEq)]
pub struct Strategy {
    /// Whether anything is lent.
    pub enable: bool,
    /// Share of the capacity that may be in use by everything, in percent.
    pub cpu_reclaim_threshold_percent: i64,
    pub memory_reclaim_threshold_percent: i64,
    pub cpu_calculate_policy: CalculatePolicy,
    pub memory_calculate_policy: CalculatePolicy,
    /// At most so much of the capacity is lent, in percent; `None`: no such limit.
    pub batch_cpu_threshold_percent: Option<i64>,
    pub batch_memory_threshold_percent: Option<i64>,
    /// Reports that are older than this are no use: nothing is lent any more.
    pub degrade_time: Duration,
    /// What is offered is written at least this often, and when it changed by more than the threshold.
    pub update_time_threshold: Duration,
    pub resource_diff_threshold: f64,
    /// How far means reach back.
    pub metric_aggregate_duration: Duration,
    pub metric_report_interval: Duration,
    /// Windows for percentiles.
    pub metric_aggregate_durations: Vec<Duration>,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            enable: false,
            cpu_reclaim_threshold_percent: 60,
            memory_reclaim_threshold_percent: 65,
            cpu_calculate_policy: CalculatePolicy::Usage,
            memory_calculate_policy: CalculatePolicy::Usage,
            batch_cpu_threshold_percent: None,
            batch_memory_threshold_percent: None,
            degrade_time: Duration::from_mins(15),
            update_time_threshold: Duration::from_mins(5),
            resource_diff_threshold: 0.1,
            metric_aggregate_duration: Duration::from_mins(5),
            metric_report_interval: Duration::from_mins(1),
            metric_aggregate_durations: [5, 10, 30].map(Duration::from_mins).to_vec(),
        }
    }
}

/// What concerns one resource.
pub(super) struct Rule {
    pub reclaim_threshold_percent: i64,
    pub policy: CalculatePolicy,
    pub threshold_percent: Option<i64>,
}

impl Strategy {
    /// `request` is no policy for CPU, and means `usage` there.
    pub(super) fn cpu(&self) -> Rule {
        let policy = match self.cpu_calculate_policy {
            CalculatePolicy::Request => CalculatePolicy::Usage,
            policy => policy,
        };
        Rule {
            reclaim_threshold_percent: self.cpu_reclaim_threshold_percent,
            policy,
            threshold_percent: self.batch_cpu_threshold_percent,
        }
    }

    pub(super) const fn memory(&self) -> Rule {
        Rule {
            reclaim_threshold_percent: self.memory_reclaim_threshold_percent,
            policy: self.memory_calculate_policy,
            threshold_percent: self.batch_memory_threshold_percent,
        }
    }
}

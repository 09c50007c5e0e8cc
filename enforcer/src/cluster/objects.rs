//! Koordinator's objects on the API server: `NodeMetric` and `NodeSLO` (koordinator `apis/slo/v1alpha1`).
//!
//! Fields that enforcer neither reads nor writes are left out; the API server keeps them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use super::{
    class::{Priority, Qos},
    quantity::Resources,
};

/// What a node uses, as its agent reports it and the manager reads it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "slo.koordinator.sh",
    version = "v1alpha1",
    kind = "NodeMetric",
    status = "NodeMetricStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMetricSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_collect_policy: Option<CollectPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CollectPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate_duration_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_interval_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_aggregate_policy: Option<AggregatePolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_memory_collect_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AggregatePolicy {
    /// As Go writes them: `5m0s`.
    pub durations: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMetricStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_metric: Option<NodeMetricInfo>,
    /// Go writes `null` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods_metric: Option<Vec<PodMetric>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_application_metric: Option<Vec<HostApplicationMetric>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prod_reclaimable_metric: Option<ResourceHolder>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prod_peak_metric: Option<ResourceHolder>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMetricInfo {
    pub node_usage: ResourceMap,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_node_usages: Option<Vec<AggregatedUsage>>,
    pub system_usage: ResourceMap,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregated_system_usages: Option<Vec<AggregatedUsage>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceMap {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceHolder {
    pub resource: ResourceMap,
}

/// Percentiles over a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AggregatedUsage {
    /// By `avg`, `p50`, `p90`, `p95`, `p99`.
    pub usage: BTreeMap<String, ResourceMap>,
    pub duration: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMetric {
    pub name: String,
    pub namespace: String,
    pub pod_usage: ResourceMap,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub qos: Option<Qos>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostApplicationMetric {
    pub name: String,
    pub usage: ResourceMap,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub qos: Option<Qos>,
}

/// A class that nobody knows, or the empty one, is none.
fn known<'de, D: serde::Deserializer<'de>, T: serde::de::DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

/// How a node's agent is to treat batch work: the manager writes it, the agent obeys.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "slo.koordinator.sh",
    version = "v1alpha1",
    kind = "NodeSLO",
    plural = "nodeslos",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSLOSpec {
    #[serde(rename = "resourceUsedThresholdWithBE", skip_serializing_if = "Option::is_none")]
    pub resource_used_threshold_with_be: Option<ThresholdStrategy>,
    #[serde(rename = "resourceQOSStrategy", skip_serializing_if = "Option::is_none")]
    pub resource_qos_strategy: Option<QosStrategy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_burst_strategy: Option<BurstStrategy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_applications: Option<Vec<HostApplication>>,
}

/// When BE is held back or evicted by use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ThresholdStrategy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_suppress_threshold_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_suppress_min_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_suppress_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_evict_threshold_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_evict_lower_percent: Option<i64>,
    #[serde(rename = "cpuEvictBESatisfactionUpperPercent", skip_serializing_if = "Option::is_none")]
    pub cpu_evict_be_satisfaction_upper_percent: Option<i64>,
    #[serde(rename = "cpuEvictBESatisfactionLowerPercent", skip_serializing_if = "Option::is_none")]
    pub cpu_evict_be_satisfaction_lower_percent: Option<i64>,
    #[serde(rename = "cpuEvictBEUsageThresholdPercent", skip_serializing_if = "Option::is_none")]
    pub cpu_evict_be_usage_threshold_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_evict_time_window_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_evict_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QosStrategy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsr_class: Option<ResourceQos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ls_class: Option<ResourceQos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub be_class: Option<ResourceQos>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceQos {
    #[serde(rename = "memoryQOS", skip_serializing_if = "Option::is_none")]
    pub memory_qos: Option<MemoryQos>,
}

/// Parts in percent, of a container's memory request or of what it may have beyond.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryQos {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Of the annotation only: `default`, `none` or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_limit_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_limit_percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling_percent: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BurstStrategy {
    /// `none`, `cpuBurstOnly`, `cfsQuotaBurstOnly` or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_burst_percent: Option<i64>,
    #[serde(rename = "cfsQuotaBurstPercent", skip_serializing_if = "Option::is_none")]
    pub cfs_quota_burst_percent: Option<i64>,
    #[serde(rename = "cfsQuotaBurstPeriodSeconds", skip_serializing_if = "Option::is_none")]
    pub cfs_quota_burst_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_pool_threshold_percent: Option<i64>,
}

/// Something on the node that is no pod and has a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostApplication {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub qos: Option<Qos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<CgroupPath>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CgroupPath {
    /// `CgroupRoot`, `Kubepods`, `KubepodsBurstable` or `KubepodsBesteffort`.
    pub base: String,
    pub parent_dir: String,
    pub relative_path: String,
}

/// A duration as Go writes it, such as `5m0s` or `1h`.
///
/// # Errors
/// For a text that is none.
pub fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// As Go writes it.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (seconds, text) in [(30, "30s"), (300, "5m0s"), (5_400, "1h30m0s"), (3_600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
            assert_eq!(duration(text).unwrap(), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn a_node_metric_of_the_reference_is_read() {
        let metric: NodeMetric = serde_saphyr::from_str(
            "apiVersion: slo.koordinator.sh/v1alpha1\nkind: NodeMetric\nmetadata: { name: n1 }\n\
             spec: { metricCollectPolicy: { aggregateDurationSeconds: 300, nodeAggregatePolicy: { durations: [5m0s] } } }\n\
             status:\n  updateTime: '2026-07-24T06:52:45Z'\n  nodeMetric:\n    nodeUsage: { resources: { cpu: 750m, memory: 2Gi } }\n\
             \x20   systemUsage: { resources: { cpu: 100m } }\n  podsMetric:\n\
             \x20 - { name: a, namespace: b, podUsage: { resources: { cpu: 10m } }, priority: koord-prod, qos: LS }\n\
             \x20 - { name: c, namespace: b, priority: '', qos: odd }\n  hostApplicationMetric: null\n",
        )
        .unwrap();
        let status = metric.status.unwrap();
        let pods = status.pods_metric.unwrap();
        assert_eq!((pods[0].priority, pods[0].qos), (Some(Priority::Prod), Some(Qos::Ls)));
        assert_eq!((pods[1].priority, pods[1].qos), (None, None));
        assert!(status.host_application_metric.is_none() && status.update_time.is_some());
    }

    #[test]
    fn names_of_a_node_slo_are_koordinators() {
        let slo: NodeSLO = serde_json::from_str(
            r#"{"apiVersion": "slo.koordinator.sh/v1alpha1", "kind": "NodeSLO", "metadata": {"name": "n1"}, "spec": {
                "resourceUsedThresholdWithBE": {"enable": true, "cpuSuppressPolicy": "cfsQuota", "memoryEvictThresholdPercent": 70,
                  "cpuEvictBESatisfactionLowerPercent": 40, "cpuEvictBEUsageThresholdPercent": 90},
                "resourceQOSStrategy": {"beClass": {"memoryQOS": {"enable": true, "throttlingPercent": 80}}},
                "cpuBurstStrategy": {"policy": "auto", "cfsQuotaBurstPercent": 300},
                "hostApplications": [{"name": "nginx", "qos": "LS", "priority": "koord-prod", "cgroupPath": {"base": "CgroupRoot"}}]}}"#,
        )
        .unwrap();
        let threshold = slo.spec.resource_used_threshold_with_be.unwrap();
        assert_eq!(threshold.cpu_evict_be_satisfaction_lower_percent, Some(40));
        assert_eq!(threshold.cpu_evict_be_usage_threshold_percent, Some(90));
        let be = slo.spec.resource_qos_strategy.unwrap().be_class.unwrap();
        assert_eq!(be.memory_qos.unwrap().throttling_percent, Some(80));
        assert_eq!(slo.spec.cpu_burst_strategy.unwrap().cfs_quota_burst_percent, Some(300));
        assert_eq!(slo.spec.host_applications.unwrap()[0].qos, Some(Qos::Ls));
    }
}

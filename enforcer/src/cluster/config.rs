//! The `ConfigMap` `slo-controller-config`, and what nodes say for themselves. Pure.
//!
//! What cannot be read or lies out of range is an error, which leaves what was in force before: an operator's slip of the
//! pen must not change a thousand nodes.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::core::{Selector, SelectorExt as _};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    objects::duration,
    protocol::{COLOCATION_CONFIG, COLOCATION_STRATEGY, CPU_RECLAIM_RATIO, MEMORY_RECLAIM_RATIO},
};
use crate::decision::batch::{CalculatePolicy, Strategy};

/// Which key or annotation is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Wrong {
    pub place: String,
    pub what: String,
}

/// A part of a strategy: what is missing stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Changes {
    enable: Option<bool>,
    metric_aggregate_duration_seconds: Option<i64>,
    metric_report_interval_seconds: Option<i64>,
    metric_aggregate_policy: Option<AggregatePolicy>,
    #[serde(rename = "cpuReclaimThresholdPercent")]
    cpu_reclaim_threshold_percent: Option<i64>,
    #[serde(rename = "cpuCalculatePolicy")]
    cpu_calculate_policy: Option<CalculatePolicy>,
    memory_reclaim_threshold_percent: Option<i64>,
    memory_calculate_policy: Option<CalculatePolicy>,
    degrade_time_minutes: Option<i64>,
    update_time_threshold_seconds: Option<i64>,
    resource_diff_threshold: Option<f64>,
    #[serde(rename = "batchCPUThresholdPercent")]
    batch_cpu_threshold_percent: Option<i64>,
    batch_memory_threshold_percent: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct AggregatePolicy {
    #[serde(default)]
    durations: Vec<String>,
}

/// `colocation-config`: the cluster's strategy, and what some nodes have instead.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColocationConfig {
    #[serde(flatten)]
    cluster: Changes,
    node_configs: Vec<ForNodes<Changes>>,
}

/// What holds for the nodes that a selector matches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForNodes<T> {
    name: String,
    node_selector: Option<LabelSelector>,
    #[serde(flatten)]
    strategy: T,
}

impl<T> ForNodes<T> {
    /// The first one whose selector matches: an empty one matches every node and a missing one none, as in Kubernetes.
    ///
    /// # Errors
    /// For a selector with an unknown operator or a label that is none.
    pub fn first<'a>(all: &'a [Self], labels: &BTreeMap<String, String>) -> Result<Option<&'a T>, String> {
        for entry in all {
            let Some(selector) = &entry.node_selector else { continue };
            let selector: Selector = selector
                .clone()
                .try_into()
                .map_err(|err| format!("nodeSelector of {:?}: {err}", entry.name))?;
            if selector.matches(labels) {
                return Ok(Some(&entry.strategy));
            }
        }
        Ok(None)
    }
}

/// A key of the `ConfigMap`; the default where it is missing.
///
/// # Errors
/// For JSON that is broken or of another shape.
pub fn key<T: DeserializeOwned + Default>(data: &BTreeMap<String, String>, key: &str) -> Result<T, Wrong> {
    let Some(text) = data.get(key).filter(|text| !text.trim().is_empty()) else { return Ok(T::default()) };
    serde_json::from_str(text).map_err(|err| Wrong { place: key.to_owned(), what: err.to_string() })
}

impl ColocationConfig {
    /// What the `ConfigMap` says under its key.
    ///
    /// # Errors
    /// For JSON that is broken, and for values out of range, in whatever part.
    pub fn of(data: &BTreeMap<String, String>) -> Result<Self, Wrong> {
        let all: Self = key(data, COLOCATION_CONFIG)?;
        let wrong = |what| Wrong { place: COLOCATION_CONFIG.to_owned(), what };
        all.cluster.check().map_err(wrong)?;
        for node in &all.node_configs {
            node.strategy.check().map_err(|what| wrong(format!("{:?}: {what}", node.name)))?;
        }
        Ok(all)
    }

    /// Lending is on, and everything else as it is by default.
    pub fn enabled() -> Self {
        let cluster = Changes { enable: Some(true), ..Changes::default() };
        Self { cluster, node_configs: Vec::new() }
    }

    /// The strategy of a node: the cluster's, over it the first matching node config, over it the node's annotation, over
    /// it the node's labels.
    ///
    /// # Errors
    /// For an annotation, a label or a selector that cannot be read.
    pub fn strategy(&self, node: &Node) -> Result<Strategy, Wrong> {
        let mut strategy = Strategy::default();
        self.cluster.apply(&mut strategy);
        let (unlabelled, meta) = (BTreeMap::new(), &node.metadata);
        let labels = meta.labels.as_ref().unwrap_or(&unlabelled);
        let of_node = ForNodes::first(&self.node_configs, labels)
            .map_err(|what| Wrong { place: COLOCATION_CONFIG.to_owned(), what })?;
        if let Some(changes) = of_node {
            changes.apply(&mut strategy);
        }
        if let Some(text) = meta.annotations.as_ref().and_then(|all| all.get(COLOCATION_STRATEGY)) {
            let wrong = |what| Wrong { place: COLOCATION_STRATEGY.to_owned(), what };
            let changes: Changes = serde_json::from_str(text).map_err(|err| wrong(err.to_string()))?;
            changes.check().map_err(wrong)?;
            changes.apply(&mut strategy);
        }
        if let Some(percent) = ratio(labels, CPU_RECLAIM_RATIO)? {
            strategy.cpu_reclaim_threshold_percent = percent;
        }
        if let Some(percent) = ratio(labels, MEMORY_RECLAIM_RATIO)? {
            strategy.memory_reclaim_threshold_percent = percent;
        }
        Ok(strategy)
    }
}

/// A label such as `0.7`, in percent.
fn ratio(labels: &BTreeMap<String, String>, label: &str) -> Result<Option<i64>, Wrong> {
    let Some(text) = labels.get(label) else { return Ok(None) };
    let ratio: Option<f64> = text.parse().ok().filter(|ratio| (0.0..=10.0).contains(ratio));
    let wrong = || Wrong { place: label.to_owned(), what: format!("{text:?} is no ratio: write 0.6") };
    ratio.map(|ratio| Some(percent(ratio))).ok_or_else(wrong)
}

#[expect(clippy::cast_possible_truncation, reason = "between 0 and 1,000")]
const fn percent(ratio: f64) -> i64 {
    (ratio * 100.0) as i64
}

impl Changes {
    fn check(&self) -> Result<(), String> {
        let at_least = |name: &str, value: Option<i64>, least: i64| match value {
            Some(value) if value < least => Err(format!("{name} is {value}, and must be {least} or more")),
            _ => Ok(()),
        };
        at_least("metricAggregateDurationSeconds", self.metric_aggregate_duration_seconds, 1)?;
        at_least("metricReportIntervalSeconds", self.metric_report_interval_seconds, 1)?;
        at_least("cpuReclaimThresholdPercent", self.cpu_reclaim_threshold_percent, 0)?;
        at_least("memoryReclaimThresholdPercent", self.memory_reclaim_threshold_percent, 0)?;
        at_least("degradeTimeMinutes", self.degrade_time_minutes, 1)?;
        at_least("updateTimeThresholdSeconds", self.update_time_threshold_seconds, 1)?;
        at_least("batchCPUThresholdPercent", self.batch_cpu_threshold_percent, 0)?;
        at_least("batchMemoryThresholdPercent", self.batch_memory_threshold_percent, 0)?;
        if let Some(threshold) = self.resource_diff_threshold.filter(|value| !(*value > 0.0 && *value <= 1.0))
        {
            return Err(format!(
                "resourceDiffThreshold is {threshold}, and must lie above 0 and be 1 at most"
            ));
        }
        for text in self.metric_aggregate_policy.iter().flat_map(|policy| &policy.durations) {
            duration(text).map_err(|err| format!("metricAggregatePolicy: {err}"))?;
        }
        Ok(())
    }

    fn apply(&self, to: &mut Strategy) {
        fn set<T: Clone>(to: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                to.clone_from(value);
            }
        }
        let seconds = |value: Option<i64>| value.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
        let minutes = |value: Option<i64>| value.map(|minutes| Duration::from_mins(minutes.unsigned_abs()));
        set(&mut to.enable, self.enable.as_ref());
        set(&mut to.metric_aggregate_duration, seconds(self.metric_aggregate_duration_seconds).as_ref());
        set(&mut to.metric_report_interval, seconds(self.metric_report_interval_seconds).as_ref());
        set(&mut to.cpu_reclaim_threshold_percent, self.cpu_reclaim_threshold_percent.as_ref());
        set(&mut to.memory_reclaim_threshold_percent, self.memory_reclaim_threshold_percent.as_ref());
        set(&mut to.cpu_calculate_policy, self.cpu_calculate_policy.as_ref());
        set(&mut to.memory_calculate_policy, self.memory_calculate_policy.as_ref());
        set(&mut to.degrade_time, minutes(self.degrade_time_minutes).as_ref());
        set(&mut to.update_time_threshold, seconds(self.update_time_threshold_seconds).as_ref());
        set(&mut to.resource_diff_threshold, self.resource_diff_threshold.as_ref());
        to.batch_cpu_threshold_percent = self.batch_cpu_threshold_percent.or(to.batch_cpu_threshold_percent);
        to.batch_memory_threshold_percent =
            self.batch_memory_threshold_percent.or(to.batch_memory_threshold_percent);
        if let Some(policy) = &self.metric_aggregate_policy {
            to.metric_aggregate_durations =
                policy.durations.iter().filter_map(|text| duration(text).ok()).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &[(&str, &str)], annotation: Option<&str>) -> Node {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut node = Node::default();
        node.metadata.labels = Some(labels.iter().map(own).collect());
        node.metadata.annotations =
            annotation.map(|text| [(COLOCATION_STRATEGY.to_owned(), text.to_owned())].into());
        node
    }

    fn config(text: &str) -> Result<ColocationConfig, Wrong> {
        ColocationConfig::of(&[(COLOCATION_CONFIG.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn labels_win_over_annotations_over_node_configs_over_the_cluster() {
        let config = config(
            r#"{"enable": true, "cpuReclaimThresholdPercent": 50, "memoryReclaimThresholdPercent": 55, "degradeTimeMinutes": 7,
                "unknown": 1,
                "nodeConfigs": [
                  {"name": "none", "degradeTimeMinutes": 1},
                  {"name": "gpu", "nodeSelector": {"matchLabels": {"pool": "gpu"}}, "cpuReclaimThresholdPercent": 40,
                   "batchCPUThresholdPercent": 30, "memoryCalculatePolicy": "maxUsageRequest"},
                  {"name": "later", "nodeSelector": {"matchLabels": {"pool": "gpu"}}, "cpuReclaimThresholdPercent": 1}
                ]}"#,
        )
        .unwrap();
        let plain = config.strategy(&node(&[], None)).unwrap();
        assert!(plain.enable);
        assert_eq!((plain.cpu_reclaim_threshold_percent, plain.memory_reclaim_threshold_percent), (50, 55));
        assert_eq!((plain.degrade_time, plain.resource_diff_threshold), (Duration::from_mins(7), 0.1));
        let gpu = config.strategy(&node(&[("pool", "gpu")], None)).unwrap();
        assert_eq!((gpu.cpu_reclaim_threshold_percent, gpu.batch_cpu_threshold_percent), (40, Some(30)));
        assert_eq!(gpu.memory_calculate_policy, CalculatePolicy::MaxUsageRequest);
        let annotation = r#"{"cpuReclaimThresholdPercent": 35, "memoryReclaimThresholdPercent": 36}"#;
        let labels = [("pool", "gpu"), (CPU_RECLAIM_RATIO, "0.7")];
        let special = config.strategy(&node(&labels, Some(annotation))).unwrap();
        assert_eq!(
            (special.cpu_reclaim_threshold_percent, special.memory_reclaim_threshold_percent),
            (70, 36)
        );
    }

    #[test]
    fn without_a_config_map_nothing_is_lent() {
        let config = ColocationConfig::of(&BTreeMap::new()).unwrap();
        assert_eq!(config.strategy(&node(&[], None)), Ok(Strategy::default()));
        assert!(!Strategy::default().enable);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (text, part) in [
            ("{", "EOF while parsing"),
            (r#"{"enable": "yes"}"#, "invalid type"),
            (r#"{"cpuReclaimThresholdPercent": -1}"#, "is -1, and must be 0 or more"),
            (r#"{"resourceDiffThreshold": 0}"#, "must lie above 0"),
            (r#"{"resourceDiffThreshold": 1.5}"#, "1 at most"),
            (r#"{"degradeTimeMinutes": 0}"#, "must be 1 or more"),
            (r#"{"cpuCalculatePolicy": "guess"}"#, "unknown variant"),
            (r#"{"metricAggregatePolicy": {"durations": ["soon"]}}"#, "metricAggregatePolicy"),
            (r#"{"nodeConfigs": [{"name": "x", "batchCPUThresholdPercent": -5}]}"#, "\"x\": batchCPU"),
        ] {
            let wrong = config(text).expect_err(text);
            assert_eq!(wrong.place, COLOCATION_CONFIG);
            assert!(wrong.what.contains(part), "{text}: {wrong}");
        }
        let config = config("{}").unwrap();
        for labels in
            [[(CPU_RECLAIM_RATIO, "much")], [(MEMORY_RECLAIM_RATIO, "-1")], [(CPU_RECLAIM_RATIO, "NaN")]]
        {
            assert!(config.strategy(&node(&labels, None)).is_err(), "{labels:?}");
        }
        assert!(config.strategy(&node(&[], Some("no JSON"))).is_err());
    }
}

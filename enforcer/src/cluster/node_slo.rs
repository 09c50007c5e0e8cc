//! What a node's agent is to do, from a `NodeSLO` or from the `ConfigMap` that koord-manager makes one of. Pure.
//!
//! Defaults are Koordinator's (`pkg/util/sloconfig/nodeslo_config.go`). What lies out of range is an error, which leaves what
//! was in force before.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    config::{ForNodes, Wrong, key},
    objects::{BurstStrategy, HostApplication, MemoryQos, NodeSLOSpec, QosStrategy, ThresholdStrategy},
    protocol::{CPU_BURST_CONFIG, HOST_APPLICATION_CONFIG, RESOURCE_QOS_CONFIG, RESOURCE_THRESHOLD_CONFIG},
};
use crate::decision::thresholds::{Satisfaction, Thresholds};

/// With defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub thresholds: Thresholds,
    /// By memory `QoS`, of LS and BE pods; LSR counts as LS.
    pub memory_ls: MemoryProtection,
    pub memory_be: MemoryProtection,
    /// Of LS pods.
    pub burst: Burst,
    pub hosts: Vec<HostApplication>,
}

/// Parts of a container's memory request, or of what it may have beyond, in percent. Zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryProtection {
    pub min_percent: i64,
    pub low_percent: i64,
    pub throttling_percent: i64,
}

/// What a container saves of its quota for bursts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// Of its limit, for one period, in percent. Zero: none.
    pub cpu_burst_percent: i64,
}

/// Koordinator's default for `cpuBurstPercent`.
const BURST_PERCENT: i64 = 1_000;
const SATISFACTION_WINDOW: Duration = Duration::from_secs(1);

impl Settings {
    /// # Errors
    /// For values out of range.
    pub fn of(spec: &NodeSLOSpec) -> Result<Self, Wrong> {
        let (none, no_burst) = (QosStrategy::default(), BurstStrategy::default());
        let qos = spec.resource_qos_strategy.as_ref().unwrap_or(&none);
        let memory = |class: &Option<super::objects::ResourceQos>| {
            let memory = class.as_ref().and_then(|class| class.memory_qos.as_ref());
            MemoryProtection::of(memory, MemoryProtection::default())
        };
        Ok(Self {
            thresholds: spec
                .resource_used_threshold_with_be
                .as_ref()
                .map_or(Ok(Thresholds::default()), thresholds)?,
            memory_ls: memory(&qos.ls_class)?,
            memory_be: memory(&qos.be_class)?,
            burst: Burst::of(spec.cpu_burst_strategy.as_ref().unwrap_or(&no_burst), Burst::default())?,
            hosts: spec.host_applications.clone().unwrap_or_default(),
        })
    }

    /// What koord-manager would write into the `NodeSLO` of a node with these labels.
    ///
    /// # Errors
    /// For JSON that is broken, and for values out of range.
    pub fn of_config(
        data: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, Wrong> {
        Self::of(&NodeSLOSpec {
            resource_used_threshold_with_be: Some(merged(data, RESOURCE_THRESHOLD_CONFIG, labels)?),
            resource_qos_strategy: Some(merged(data, RESOURCE_QOS_CONFIG, labels)?),
            cpu_burst_strategy: Some(merged(data, CPU_BURST_CONFIG, labels)?),
            host_applications: Some(host_applications(data, labels)?),
        })
    }
}

fn thresholds(strategy: &ThresholdStrategy) -> Result<Thresholds, Wrong> {
    let place = "resourceUsedThresholdWithBE";
    let percent = |name: &str, value: Option<i64>, most: i64| percent(place, name, value, most);
    let defaults = Thresholds::default();
    let evict = percent("memoryEvictThresholdPercent", strategy.memory_evict_threshold_percent, 100)?
        .unwrap_or(defaults.memory_evict_percent);
    let lower = percent("memoryEvictLowerPercent", strategy.memory_evict_lower_percent, 100)?
        .unwrap_or_else(|| (evict - 2).max(0));
    if lower >= evict && evict > 0 {
        let what = format!("memoryEvictLowerPercent is {lower}, and must lie below the threshold of {evict}");
        return Err(Wrong { place: place.to_owned(), what });
    }
    let lower_satisfaction =
        percent("cpuEvictBESatisfactionLowerPercent", strategy.cpu_evict_be_satisfaction_lower_percent, 60)?;
    let upper_satisfaction =
        percent("cpuEvictBESatisfactionUpperPercent", strategy.cpu_evict_be_satisfaction_upper_percent, 100)?;
    let usage =
        percent("cpuEvictBEUsageThresholdPercent", strategy.cpu_evict_be_usage_threshold_percent, 100)?;
    let satisfaction = match (lower_satisfaction, upper_satisfaction) {
        (Some(lower_percent), Some(upper_percent)) if lower_percent > 0 => Some(Satisfaction {
            lower_percent,
            upper_percent: upper_percent.max(lower_percent),
            usage_percent: usage.unwrap_or(90),
            window: strategy
                .cpu_evict_time_window_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(SATISFACTION_WINDOW, Duration::from_secs)
                .max(SATISFACTION_WINDOW),
            by_allocatable: strategy.cpu_evict_policy.as_deref() == Some("evictByAllocatable"),
        }),
        _ => None,
    };
    Ok(Thresholds {
        enable: strategy.enable.unwrap_or(false),
        cpu_suppress_percent: percent(
            "cpuSuppressThresholdPercent",
            strategy.cpu_suppress_threshold_percent,
            100,
        )?
        .unwrap_or(defaults.cpu_suppress_percent),
        cpu_suppress_min_percent: percent("cpuSuppressMinPercent", strategy.cpu_suppress_min_percent, 100)?,
        memory_evict_percent: evict,
        memory_evict_lower_percent: lower,
        satisfaction,
    })
}

impl MemoryProtection {
    /// Over `defaults`, which a pod's own annotation changes in parts.
    ///
    /// # Errors
    /// For values out of range.
    pub fn of(qos: Option<&MemoryQos>, defaults: Self) -> Result<Self, Wrong> {
        let Some(qos) = qos else { return Ok(defaults) };
        // A section that is switched off gives everything back.
        if qos.enable == Some(false) || qos.policy.as_deref() == Some("none") {
            return Ok(Self::default());
        }
        if qos.enable.is_none() && qos.policy.as_deref() != Some("auto") && defaults == Self::default() {
            return Ok(defaults);
        }
        let percent = |name: &str, value: Option<i64>| percent("memoryQOS", name, value, 100);
        Ok(Self {
            min_percent: percent("minLimitPercent", qos.min_limit_percent)?.unwrap_or(defaults.min_percent),
            low_percent: percent("lowLimitPercent", qos.low_limit_percent)?.unwrap_or(defaults.low_percent),
            throttling_percent: percent("throttlingPercent", qos.throttling_percent)?
                .unwrap_or(defaults.throttling_percent),
        })
    }
}

impl Burst {
    /// # Errors
    /// For a policy that is none, and for values out of range.
    pub fn of(strategy: &BurstStrategy, defaults: Self) -> Result<Self, Wrong> {
        let bursts = match strategy.policy.as_deref() {
            None => defaults.cpu_burst_percent > 0,
            Some("auto" | "cpuBurstOnly") => true,
            Some("none" | "cfsQuotaBurstOnly" | "") => false,
            Some(other) => {
                let what = format!("policy {other:?}: write none, cpuBurstOnly, cfsQuotaBurstOnly or auto");
                return Err(Wrong { place: "cpuBurst".to_owned(), what });
            }
        };
        if !bursts {
            return Ok(Self::default());
        }
        let percent = percent("cpuBurst", "cpuBurstPercent", strategy.cpu_burst_percent, 10_000)?;
        let of_default =
            if defaults.cpu_burst_percent > 0 { defaults.cpu_burst_percent } else { BURST_PERCENT };
        Ok(Self { cpu_burst_percent: percent.unwrap_or(of_default) })
    }
}

fn percent(place: &str, name: &str, value: Option<i64>, most: i64) -> Result<Option<i64>, Wrong> {
    if let Some(value) = value
        && !(0..=most).contains(&value)
    {
        let what = format!("{name} is {value}, and must lie between 0 and {most}");
        return Err(Wrong { place: place.to_owned(), what });
    }
    Ok(value)
}

/// A key of the `ConfigMap`: the cluster's strategy, and over it that of the first entry whose selector matches.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Strategies {
    cluster_strategy: Value,
    node_strategies: Vec<ForNodes<Value>>,
}

fn merged<T: DeserializeOwned + Default>(
    data: &BTreeMap<String, String>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<T, Wrong> {
    let wrong = |what| Wrong { place: name.to_owned(), what };
    let Strategies { mut cluster_strategy, node_strategies } = key(data, name)?;
    if let Some(over) = ForNodes::first(&node_strategies, labels).map_err(wrong)? {
        merge(&mut cluster_strategy, over);
    }
    if cluster_strategy.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(cluster_strategy).map_err(|err| wrong(err.to_string()))
}

/// Objects are merged field by field; anything else is replaced.
fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (name, value) in over {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, over) => into.clone_from(over),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Applications {
    applications: Vec<HostApplication>,
    node_configs: Vec<ForNodes<NodeApplications>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeApplications {
    applications: Vec<HostApplication>,
}

fn host_applications(
    data: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<HostApplication>, Wrong> {
    let all: Applications = key(data, HOST_APPLICATION_CONFIG)?;
    let of_node = ForNodes::first(&all.node_configs, labels)
        .map_err(|what| Wrong { place: HOST_APPLICATION_CONFIG.to_owned(), what })?;
    Ok(of_node.map_or(all.applications.clone(), |of_node| of_node.applications.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_matching_node_strategy_is_merged_over_the_clusters() {
        let data = data(&[
            (
                RESOURCE_THRESHOLD_CONFIG,
                r#"{"clusterStrategy": {"enable": true, "memoryEvictThresholdPercent": 80},
                    "nodeStrategies": [
                      {"name": "a", "nodeSelector": {"matchLabels": {"pool": "a"}}, "memoryEvictLowerPercent": 60},
                      {"name": "all", "nodeSelector": {}, "memoryEvictThresholdPercent": 90}]}"#,
            ),
            (
                RESOURCE_QOS_CONFIG,
                r#"{"clusterStrategy": {"lsClass": {"memoryQOS": {"enable": true, "minLimitPercent": 20}},
                    "beClass": {"memoryQOS": {"enable": false, "throttlingPercent": 80}}}}"#,
            ),
            (CPU_BURST_CONFIG, r#"{"clusterStrategy": {"policy": "auto"}}"#),
            (HOST_APPLICATION_CONFIG, r#"{"applications": [{"name": "nginx", "qos": "LS"}]}"#),
        ]);
        let of =
            |pool: &str| Settings::of_config(&data, &[("pool".to_owned(), pool.to_owned())].into()).unwrap();
        let (a, b) = (of("a"), of("b"));
        assert!(a.thresholds.enable && b.thresholds.enable);
        assert_eq!((a.thresholds.memory_evict_percent, a.thresholds.memory_evict_lower_percent), (80, 60));
        assert_eq!((b.thresholds.memory_evict_percent, b.thresholds.memory_evict_lower_percent), (90, 88));
        assert_eq!(a.memory_ls, MemoryProtection { min_percent: 20, ..MemoryProtection::default() });
        assert_eq!(a.memory_be, MemoryProtection::default(), "switched off");
        assert_eq!(a.burst.cpu_burst_percent, 1_000);
        assert_eq!(a.hosts.len(), 1);
        assert_eq!(Settings::of_config(&BTreeMap::new(), &BTreeMap::new()), Ok(Settings::default()));
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (key, text, part) in [
            (RESOURCE_THRESHOLD_CONFIG, "{", "EOF"),
            (RESOURCE_THRESHOLD_CONFIG, r#"{"clusterStrategy": {"enable": "yes"}}"#, "invalid type"),
            (
                RESOURCE_THRESHOLD_CONFIG,
                r#"{"clusterStrategy": {"cpuSuppressThresholdPercent": 165}}"#,
                "between 0 and 100",
            ),
            (
                RESOURCE_THRESHOLD_CONFIG,
                r#"{"clusterStrategy": {"memoryEvictLowerPercent": 75}}"#,
                "below the threshold",
            ),
            (CPU_BURST_CONFIG, r#"{"clusterStrategy": {"policy": "much"}}"#, "write none, cpuBurstOnly"),
            (
                RESOURCE_QOS_CONFIG,
                r#"{"clusterStrategy": {"lsClass": {"memoryQOS": {"enable": true, "lowLimitPercent": -1}}}}"#,
                "lowLimitPercent",
            ),
        ] {
            let wrong = Settings::of_config(&data(&[(key, text)]), &BTreeMap::new()).expect_err(text);
            assert!(wrong.to_string().contains(part), "{text}: {wrong}");
        }
    }
}

//! From Kubernetes' and Koordinator's objects to the inputs of the formula. Pure.

use std::{collections::BTreeMap, fmt::Display};

use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    class::{Priority, Qos},
    config::Wrong,
    objects::{NodeMetricStatus, ResourceMap},
    pod::Pod,
    protocol::{
        BATCH_CPU, BATCH_MEMORY, NORMALIZATION_RATIO, ORIGIN_ALLOCATABLE, RESERVATION,
        THIRD_PARTY_ALLOCATIONS,
    },
    quantity::{self, NoQuantity, Resources},
};
use crate::{
    cgroup::cpu_list::CpuList,
    decision::batch::{Inputs, Offer, Pod as Counted, Strategy},
    units::Amounts,
};

/// Why nothing can be said.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{place}: {source}")]
    Quantity { place: &'static str, source: NoQuantity },
    #[error(transparent)]
    Wrong(#[from] Wrong),
}

/// Why nothing is lent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nothing {
    #[error("colocation is switched off (enable: false)")]
    SwitchedOff,
    #[error("no NodeMetric was ever reported")]
    NeverReported,
    #[error("the NodeMetric is {age_seconds} s old, more than degradeTimeMinutes allows ({limit_seconds} s)")]
    TooOld { age_seconds: i64, limit_seconds: u64 },
}

/// Whether anything may be lent at `now`, by how old the report is.
///
/// # Errors
/// Why not.
pub fn may_lend(strategy: &Strategy, reported_at: Option<&Time>, now: &Time) -> Result<(), Nothing> {
    if !strategy.enable {
        return Err(Nothing::SwitchedOff);
    }
    let Some(at) = reported_at else { return Err(Nothing::NeverReported) };
    let age_seconds = now.0.as_second() - at.0.as_second();
    let limit = strategy.degrade_time;
    if age_seconds > i64::try_from(limit.as_secs()).unwrap_or(i64::MAX) {
        return Err(Nothing::TooOld { age_seconds, limit_seconds: limit.as_secs() });
    }
    Ok(())
}

/// What the formula is fed with, by a report and the pods that are listed.
///
/// # Errors
/// For numbers that are none.
pub fn inputs(node: &Node, pods: &[Pod], reported: &NodeMetricStatus) -> Result<Inputs, Error> {
    let mut metrics: BTreeMap<(&str, &str), (Amounts, Option<Priority>)> = BTreeMap::new();
    for metric in reported.pods_metric.iter().flatten() {
        let used = used(&metric.pod_usage, "podsMetric")?;
        metrics.insert((&metric.namespace, &metric.name), (used, metric.priority));
    }
    let mut counted = Vec::new();
    for pod in pods.iter().filter(|pod| pod.is_active) {
        let metric = metrics.remove(&(pod.namespace.as_str(), pod.name.as_str()));
        if pod.is_high_priority() {
            counted.push(Counted {
                request: pod.request,
                used: metric.map(|(used, _)| used),
                owns_cpus: pod.qos_with_default() == Qos::Lse,
            });
        }
    }
    let goes_before_batch =
        |priority: Option<Priority>| priority.is_none_or(|priority| priority > Priority::Batch);
    let dangling = metrics.into_values().filter(|(_, priority)| goes_before_batch(*priority));
    let mut hosts = Amounts::default();
    for host in reported.host_application_metric.iter().flatten() {
        // No class is worth nothing here, unlike with pods (koordinator `GetHostAppHPUsed`).
        if host.priority.is_some_and(|priority| priority > Priority::Batch) {
            hosts = hosts + used(&host.usage, "hostApplicationMetric")?;
        }
    }
    let system =
        reported.node_metric.as_ref().map(|info| used(&info.system_usage, "systemUsage")).transpose()?;
    Ok(Inputs {
        system_used: system.unwrap_or_default(),
        host_applications_used: hosts,
        dangling_used: dangling.map(|(used, _)| used).sum(),
        pods: counted,
        ..of_node(node)?
    })
}

/// What the node itself says: capacity, reservations, the speed of its CPUs, and what others have given out.
///
/// # Errors
/// For numbers and annotations that cannot be read.
pub fn of_node(node: &Node) -> Result<Inputs, Error> {
    let status = node.status.as_ref();
    let amounts = |list: Option<&Resources>, place| {
        quantity::cpu_and_memory(list).map_err(|source| Error::Quantity { place, source })
    };
    let capacity = amounts(status.and_then(|status| status.capacity.as_ref()), "status.capacity")?;
    let allocatable = status.and_then(|status| status.allocatable.as_ref());
    Ok(Inputs {
        capacity,
        // A node that says nothing reserves nothing.
        allocatable: if allocatable.is_some() {
            amounts(allocatable, "status.allocatable")?
        } else {
            capacity
        },
        reserved_by_annotation: reservation(node)?,
        cpu_normalization_ratio: normalization(node)?,
        third_party: third_party(node)?,
        ..Inputs::default()
    })
}

/// What the node's status offers now.
///
/// # Errors
/// For numbers that are none.
pub fn offered(node: &Node) -> Result<Offer, Error> {
    let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let has = |name: &str| list.is_some_and(|list| list.contains_key(name));
    if !has(BATCH_CPU) && !has(BATCH_MEMORY) {
        return Ok(None);
    }
    let amounts = quantity::extended(list, BATCH_CPU, BATCH_MEMORY);
    Ok(Some(amounts.map_err(|source| Error::Quantity { place: "status.allocatable", source })?))
}

/// The annotation that keeps what is offered before other systems' part is taken off.
pub fn origin_annotation(origin: Amounts) -> (String, String) {
    let value = serde_json::json!({ "resources": {
        BATCH_CPU: origin.cpu_milli.to_string(),
        BATCH_MEMORY: origin.memory_bytes.to_string(),
    }});
    (ORIGIN_ALLOCATABLE.to_owned(), value.to_string())
}

fn used(usage: &ResourceMap, place: &'static str) -> Result<Amounts, Error> {
    quantity::cpu_and_memory(usage.resources.as_ref()).map_err(|source| Error::Quantity { place, source })
}

fn annotation<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn wrong(place: &str, what: impl Display) -> Error {
    Error::Wrong(Wrong { place: place.to_owned(), what: what.to_string() })
}

/// An annotation that holds a JSON object. serde alone would take a list for one.
fn object<T: DeserializeOwned>(node: &Node, name: &str) -> Result<Option<T>, Error> {
    let Some(text) = annotation(node, name) else { return Ok(None) };
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|err| wrong(name, err))?;
    serde_json::from_value(fields.into()).map(Some).map_err(|err| wrong(name, err))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reservation {
    resources: Resources,
    #[serde(rename = "reservedCPUs")]
    reserved_cpus: String,
}

/// Named CPUs take the place of a number of them.
fn reservation(node: &Node) -> Result<Amounts, Error> {
    let Reservation { resources, reserved_cpus } = object(node, RESERVATION)?.unwrap_or_default();
    let mut amounts = quantity::cpu_and_memory(Some(&resources)).map_err(|err| wrong(RESERVATION, err))?;
    if !reserved_cpus.is_empty() {
        let cpus: CpuList = reserved_cpus.parse().map_err(|err| wrong(RESERVATION, err))?;
        amounts.cpu_milli = i64::try_from(cpus.len()).unwrap_or(i64::MAX).saturating_mul(1_000);
    }
    Ok(amounts)
}

fn normalization(node: &Node) -> Result<Option<f64>, Error> {
    let Some(text) = annotation(node, NORMALIZATION_RATIO) else { return Ok(None) };
    let ratio = text.parse().ok().filter(|ratio: &f64| ratio.is_finite());
    ratio.map(Some).ok_or_else(|| wrong(NORMALIZATION_RATIO, format!("{text:?} is no ratio: write 1.20")))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ThirdParty {
    allocations: Vec<Allocation>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Allocation {
    priority: String,
    resources: Resources,
}

fn third_party(node: &Node) -> Result<Amounts, Error> {
    let given: ThirdParty = object(node, THIRD_PARTY_ALLOCATIONS)?.unwrap_or_default();
    let of_batch =
        given.allocations.iter().filter(|given| Priority::parse(&given.priority) == Some(Priority::Batch));
    of_batch
        .map(|given| quantity::extended(Some(&given.resources), BATCH_CPU, BATCH_MEMORY))
        .try_fold(Amounts::default(), |sum, amounts| Ok(sum + amounts?))
        .map_err(|err: NoQuantity| wrong(THIRD_PARTY_ALLOCATIONS, err))
}

/// As a quantity: milli-cores for `cpu`, bytes for `memory`.
pub fn resources(used: Amounts) -> ResourceMap {
    ResourceMap {
        resources: Some(
            [
                ("cpu".to_owned(), Quantity(format!("{}m", used.cpu_milli))),
                ("memory".to_owned(), Quantity(used.memory_bytes.to_string())),
            ]
            .into(),
        ),
    }
}

#[cfg(test)]
mod tests;

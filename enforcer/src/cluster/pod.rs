//! What enforcer needs to know of a pod, by the API server's account. Pure.

pub mod told;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use super::{
    class::{Priority, Qos, SYSTEM_CRITICAL},
    objects::{BurstStrategy, MemoryQos},
    protocol::{
        BATCH_CPU, BATCH_MEMORY, CONFIG_HASH, CONFIG_MIRROR, CPU_BURST, EVICTION_ENABLED, EVICTION_POLICY,
        EVICTION_PRIORITY, EXTENDED_RESOURCE_SPEC, MEMORY_QOS, SLO,
    },
    quantity::{self, NoQuantity, Resources},
};
use crate::{cgroup::kubepods::PodQos, units::Amounts};

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub uid: String,
    /// By what its cgroup directory is named: its UID, or a static pod's config hash.
    pub cgroup_uid: String,
    pub namespace: String,
    pub name: String,
    /// By label; `None`: no label, or one that nobody knows.
    pub qos: Option<Qos>,
    pub kubernetes_qos: PodQos,
    /// By label or band; `None`: none.
    pub priority: Option<Priority>,
    /// `spec.priority`.
    pub priority_value: i32,
    /// `koordinator.sh/priority`, within its class.
    pub sub_priority: i32,
    /// Running or pending.
    pub is_active: bool,
    /// Asked to end.
    pub is_ending: bool,
    /// Native CPU and memory, as the scheduler counts them.
    pub request: Amounts,
    /// Batch resources, of all containers together, as the scheduler counts them.
    pub batch_request: Amounts,
    pub containers: Vec<Container>,
    /// The annotation's text, not checked.
    pub slo: Option<String>,
    pub eviction: Eviction,
    /// What pods of the same kind share: their owner, or a Spark application.
    pub workload: String,
    /// Kubelet's own: the API server has a mirror of it only, which cannot be evicted.
    pub is_static: bool,
    /// By annotation, over what holds for its class. What cannot be read is none.
    #[serde(default)]
    pub memory_qos: Option<MemoryQos>,
    #[serde(default)]
    pub cpu_burst: Option<BurstStrategy>,
}

/// A regular container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub name: String,
    /// The runtime's, without its prefix; `None`: not started yet.
    pub id: Option<String>,
    pub batch: BatchResources,
    /// Native, for memory protection and CPU burst.
    pub request: Amounts,
    pub limit: OptionalAmounts,
}

/// What a container asks of lent resources. `None`: not asked, or not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchResources {
    pub request: OptionalAmounts,
    pub limit: OptionalAmounts,
}

/// CPU in thousandths, memory in bytes; either may be unknown or unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionalAmounts {
    pub cpu_milli: Option<i64>,
    pub memory_bytes: Option<i64>,
}

/// Who may evict it, and when its turn comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// `koordinator.sh/eviction-enabled`.
    pub is_enabled: bool,
    /// Names of the features that may; `None`: all.
    pub policy: Option<Vec<String>>,
    /// Lower ones go first.
    pub priority: i32,
}

/// What a pod is to enforcer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    LatencySensitive,
    BestEffort,
    /// Keeps the node going: never squeezed, and nothing is promised to it.
    System,
}

/// A pod that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("pod {pod} has no {what}")]
    Missing { pod: String, what: &'static str },
    #[error("pod {pod}: {source}")]
    Quantity { pod: String, source: NoQuantity },
}

impl Pod {
    /// Quality of service, by label or else by Kubernetes' class.
    pub fn qos_with_default(&self) -> Qos {
        self.qos.unwrap_or_else(|| Qos::of_kubernetes(self.kubernetes_qos))
    }

    /// Class of priority, by label or band or else by quality of service.
    pub fn priority_with_default(&self) -> Priority {
        self.priority.unwrap_or_else(|| Priority::implied_by(self.qos_with_default()))
    }

    /// Whether it goes before batch work in the formula of what may be lent.
    pub fn is_high_priority(&self) -> bool {
        self.priority_with_default() > Priority::Batch
    }

    /// A pod without a label is best-effort if Kubernetes says so, unless it keeps the node going: network and log agents
    /// often run without requests.
    pub fn role(&self) -> Role {
        match self.qos {
            Some(Qos::Be) => Role::BestEffort,
            Some(Qos::System) => Role::System,
            None if self.priority_value >= SYSTEM_CRITICAL => Role::System,
            None if self.kubernetes_qos == PodQos::BestEffort => Role::BestEffort,
            Some(Qos::Lse | Qos::Lsr | Qos::Ls) | None => Role::LatencySensitive,
        }
    }

    /// `namespace/name`, as in commands.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// # Errors
    /// For what a real API server never sends, and for resources that are no quantities.
    pub fn of(pod: &core::Pod) -> Result<Self, Error> {
        let meta = &pod.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let key = || format!("{}/{name}", meta.namespace.as_deref().unwrap_or_default());
        let missing = |what| Error::Missing { pod: key(), what };
        let uid = meta.uid.clone().ok_or_else(|| missing("uid"))?;
        let spec = pod.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let (none, labels) = (BTreeMap::new(), meta.labels.as_ref());
        let labels = labels.unwrap_or(&none);
        let annotations = meta.annotations.as_ref().unwrap_or(&none);
        let status = pod.status.as_ref();
        let bad = |source| Error::Quantity { pod: key(), source };
        let request = scheduled(spec, &|resources| quantity::cpu_and_memory(resources)).map_err(bad)?;
        let batch_of = |resources: Option<&Resources>| quantity::extended(resources, BATCH_CPU, BATCH_MEMORY);
        let batch_request = scheduled(spec, &batch_of).map_err(bad)?;
        let containers = containers(spec, annotations, status).map_err(bad)?;
        let number =
            |of: &BTreeMap<String, String>, key: &str| of.get(key).and_then(|text| text.trim().parse().ok());
        let phase = status.and_then(|status| status.phase.as_deref());
        let config_hash = annotations.get(CONFIG_MIRROR).or_else(|| annotations.get(CONFIG_HASH));
        Ok(Self {
            cgroup_uid: config_hash.unwrap_or(&uid).clone(),
            is_static: config_hash.is_some(),
            memory_qos: annotations.get(MEMORY_QOS).and_then(|text| serde_json::from_str(text).ok()),
            cpu_burst: annotations.get(CPU_BURST).and_then(|text| serde_json::from_str(text).ok()),
            qos: Qos::of_labels(labels),
            kubernetes_qos: status
                .and_then(|status| PodQos::parse(status.qos_class.as_deref()?))
                .unwrap_or_else(|| kubernetes_qos(spec)),
            priority: Priority::of(labels, spec.priority),
            priority_value: spec.priority.unwrap_or_default(),
            sub_priority: number(labels, super::protocol::PRIORITY).unwrap_or_default(),
            is_active: matches!(phase, None | Some("Running" | "Pending")),
            is_ending: meta.deletion_timestamp.is_some(),
            request,
            batch_request,
            containers,
            slo: annotations.get(SLO).cloned(),
            eviction: Eviction {
                is_enabled: labels.get(EVICTION_ENABLED).is_some_and(|value| value == "true"),
                // What cannot be read allows nothing, as in Koordinator.
                policy: annotations
                    .get(EVICTION_POLICY)
                    .map(|text| serde_json::from_str(text).unwrap_or_default()),
                priority: number(annotations, EVICTION_PRIORITY).unwrap_or_default(),
            },
            workload: workload(meta, labels, &uid),
            namespace: meta.namespace.clone().unwrap_or_default(),
            uid,
            name,
        })
    }
}

/// Executors of one Spark application, replicas of one owner.
fn workload(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    labels: &BTreeMap<String, String>,
    uid: &str,
) -> String {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if let Some(application) = labels.get("spark-app-selector") {
        return format!("{namespace}/spark/{application}");
    }
    let owners = meta.owner_references.iter().flatten();
    let owner = owners.filter(|owner| owner.controller == Some(true)).map(|owner| &owner.uid).next();
    format!("{namespace}/{}", owner.map_or(uid, String::as_str))
}

/// What the scheduler counts (`k8s.io/component-helpers/resource`): containers and sidecars together, or what an init
/// container needs beside the sidecars before it, if that is more; and the overhead. What the pod as a whole requests
/// takes the place of the sum.
fn scheduled(
    spec: &core::PodSpec,
    amounts: &dyn Fn(Option<&Resources>) -> Result<Amounts, NoQuantity>,
) -> Result<Amounts, NoQuantity> {
    let requests = |container: &core::Container| {
        amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    };
    let mut running = Amounts::default();
    for container in &spec.containers {
        running = running + requests(container)?;
    }
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let needs = requests(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars + needs;
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars + needs);
        }
    }
    let mut all = (running + sidecars).max(starting);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let whole = amounts(Some(whole))?;
        all = Amounts {
            cpu_milli: if whole.cpu_milli > 0 { whole.cpu_milli } else { all.cpu_milli },
            memory_bytes: if whole.memory_bytes > 0 { whole.memory_bytes } else { all.memory_bytes },
        };
    }
    Ok(all + amounts(spec.overhead.as_ref())?)
}

/// The class that the API server will give it, for one that has no status yet.
fn kubernetes_qos(spec: &core::PodSpec) -> PodQos {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of = |container: &core::Container, limits: bool, name: &str| {
        let resources = container.resources.as_ref()?;
        let list = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() };
        list?.get(name).and_then(|quantity| quantity::milli(quantity).ok()).filter(|value| *value > 0)
    };
    let natives = ["cpu", "memory"];
    let asks_nothing = |container: &core::Container| {
        natives.iter().all(|name| of(container, true, name).or(of(container, false, name)).is_none())
    };
    let is_equal = |container: &core::Container| {
        natives.iter().all(|name| {
            let limit = of(container, true, name);
            limit.is_some() && of(container, false, name).is_none_or(|request| Some(request) == limit)
        })
    };
    if all().all(asks_nothing) {
        PodQos::BestEffort
    } else if all().all(is_equal) {
        PodQos::Guaranteed
    } else {
        PodQos::Burstable
    }
}

/// The annotation that the webhook writes, for runtimes that do not see extended resources.
#[derive(Debug, Default, Deserialize)]
struct ExtendedResourceSpec {
    #[serde(default)]
    containers: BTreeMap<String, ExtendedResources>,
}

#[derive(Debug, Default, Deserialize)]
struct ExtendedResources {
    #[serde(default)]
    requests: Resources,
    #[serde(default)]
    limits: Resources,
}

/// Batch resources are the spec's; where it has none, the annotation's.
fn containers(
    spec: &core::PodSpec,
    annotations: &BTreeMap<String, String>,
    status: Option<&core::PodStatus>,
) -> Result<Vec<Container>, NoQuantity> {
    let annotated: ExtendedResourceSpec = annotations
        .get(EXTENDED_RESOURCE_SPEC)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let ids = || status.into_iter().flat_map(|status| status.container_statuses.iter().flatten());
    let container = |container: &core::Container| -> Result<Container, NoQuantity> {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let mut batch = BatchResources { request: optional_batch(requests)?, limit: optional_batch(limits)? };
        if let (true, Some(noted)) =
            (batch == BatchResources::default(), annotated.containers.get(&container.name))
        {
            batch = BatchResources {
                request: optional_batch(Some(&noted.requests))?,
                limit: optional_batch(Some(&noted.limits))?,
            };
        }
        let id = ids()
            .find(|status| status.name == container.name)
            .and_then(|status| status.container_id.as_deref());
        Ok(Container {
            name: container.name.clone(),
            id: id.map(|id| id.rsplit('/').next().unwrap_or(id).to_owned()),
            batch,
            request: quantity::cpu_and_memory(requests)?,
            limit: OptionalAmounts {
                cpu_milli: get(limits, "cpu", quantity::milli)?,
                memory_bytes: get(limits, "memory", quantity::whole)?,
            },
        })
    };
    spec.containers.iter().map(container).collect()
}

fn optional_batch(resources: Option<&Resources>) -> Result<OptionalAmounts, NoQuantity> {
    Ok(OptionalAmounts {
        cpu_milli: get(resources, BATCH_CPU, quantity::whole)?,
        memory_bytes: get(resources, BATCH_MEMORY, quantity::whole)?,
    })
}

fn get(
    resources: Option<&Resources>,
    name: &str,
    value: fn(&k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<i64, NoQuantity>,
) -> Result<Option<i64>, NoQuantity> {
    resources.and_then(|resources| resources.get(name)).map(value).transpose()
}

#[cfg(test)]
mod tests;

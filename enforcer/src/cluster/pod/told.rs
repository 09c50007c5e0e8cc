//! A pod as the API server tells of it, without what nobody here asks for: volumes, tolerations and above all the managed
//! fields, which are most of it, are passed over and not taken in.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1 as core,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{Resource, core::NamespaceResourceScope};
use serde::Deserialize;

use super::Resources;

/// The parts of a pod that [`super::Pod::of`] looks at, and what a watch needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Told")]
pub struct ToldPod(pub core::Pod);

impl Resource for ToldPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        core::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        core::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        core::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        core::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[derive(Deserialize)]
struct Told {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    priority: Option<i32>,
    #[serde(default)]
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
    resources: Option<core::ResourceRequirements>,
    overhead: Option<Resources>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    resources: Option<core::ResourceRequirements>,
    restart_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    qos_class: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

impl From<Told> for ToldPod {
    fn from(Told { metadata, spec, status }: Told) -> Self {
        Self(core::Pod {
            metadata: metadata.into(),
            spec: spec.map(Into::into),
            status: status.map(Into::into),
        })
    }
}

impl From<Metadata> for ObjectMeta {
    fn from(of: Metadata) -> Self {
        Self {
            name: of.name,
            namespace: of.namespace,
            uid: of.uid,
            resource_version: of.resource_version,
            labels: of.labels,
            annotations: of.annotations,
            deletion_timestamp: of.deletion_timestamp,
            owner_references: of.owner_references,
            ..Self::default()
        }
    }
}

impl From<Spec> for core::PodSpec {
    fn from(of: Spec) -> Self {
        Self {
            priority: of.priority,
            containers: of.containers.into_iter().map(Into::into).collect(),
            init_containers: of.init_containers.map(|all| all.into_iter().map(Into::into).collect()),
            resources: of.resources,
            overhead: of.overhead,
            ..Self::default()
        }
    }
}

impl From<Container> for core::Container {
    fn from(of: Container) -> Self {
        Self { name: of.name, resources: of.resources, restart_policy: of.restart_policy, ..Self::default() }
    }
}

impl From<Status> for core::PodStatus {
    fn from(of: Status) -> Self {
        let statuses = of.container_statuses;
        Self {
            phase: of.phase,
            qos_class: of.qos_class,
            container_statuses: statuses.map(|all| all.into_iter().map(Into::into).collect()),
            ..Self::default()
        }
    }
}

impl From<ContainerStatus> for core::ContainerStatus {
    fn from(of: ContainerStatus) -> Self {
        Self { name: of.name, container_id: of.container_id, ..Self::default() }
    }
}

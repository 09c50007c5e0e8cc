//! What is known of the cluster while a pod is looked at.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use k8s_openapi::api::scheduling::v1::PriorityClass as ApiPriorityClass;

use super::{json::Strings, profile::ClusterColocationProfile};

/// What the API server takes for a class that says nothing.
const PREEMPT: &str = "PreemptLowerPriority";
/// Every namespace has it.
const NAME: &str = "kubernetes.io/metadata.name";

/// What a pod gets from a `PriorityClass`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityClass {
    pub value: i32,
    pub preemption_policy: String,
}

impl From<&ApiPriorityClass> for PriorityClass {
    fn from(class: &ApiPriorityClass) -> Self {
        Self {
            value: class.value,
            preemption_policy: class.preemption_policy.clone().unwrap_or_else(|| PREEMPT.to_owned()),
        }
    }
}

/// A namespace, and its labels where it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    /// `None`: nobody knows of it.
    pub labels: Option<Strings>,
}

impl Namespace {
    /// With the label that the API server adds by itself.
    pub fn known(name: &str, labels: &Strings) -> Self {
        let mut labels = labels.clone();
        labels.insert(NAME.to_owned(), name.to_owned());
        Self { name: name.to_owned(), labels: Some(labels) }
    }

    pub fn unknown(name: &str) -> Self {
        Self { name: name.to_owned(), labels: None }
    }
}

/// All that a decision about a pod rests on, besides the pod.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// In any order.
    pub profiles: Vec<&'a ClusterColocationProfile>,
    /// The pod's.
    pub namespace: Namespace,
    /// By name; at least those that profiles name.
    pub priority_classes: BTreeMap<String, PriorityClass>,
    /// Every pod keeps its cpu and memory (Koordinator's gate `ColocationProfileSkipMutatingResources`).
    pub skip_resources: bool,
}

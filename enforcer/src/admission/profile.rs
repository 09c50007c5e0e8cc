//! `ClusterColocationProfile`: what is to be done to which pods (koordinator
//! `apis/config/v1alpha1/cluster_colocation_profile_types.go`).
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use kube::{CustomResource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Annotation of a profile, of any value: the pods that it selects keep their cpu and memory.
pub const SKIP_UPDATE_RESOURCES: &str = "config.koordinator.sh/skip-update-resources";

/// The fields of a profile's spec, in the order in which they are applied where it matters.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "config.koordinator.sh",
    version = "v1alpha1",
    kind = "ClusterColocationProfile",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterColocationProfileSpec {
    /// By the labels of the pod's namespace; none or an empty one selects all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// By the labels of the pod; none or an empty one selects all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The share of pods that it is applied to, in percent: 30 or "30%". None is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The label named by the value becomes a copy of the one named by the key; empty where that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_keys_mapping: Option<BTreeMap<String, String>>,
    /// As for labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation_keys_mapping: Option<BTreeMap<String, String>>,
    /// Appended to the labels named, where they exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_suffixes: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// LSE, LSR, LS, BE or SYSTEM; becomes the label `koordinator.sh/qosClass`.
    #[serde(rename = "qosClass", skip_serializing_if = "Option::is_none")]
    pub qos_class: Option<String>,
    /// With its value and its policy of preemption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Becomes the label `koordinator.sh/priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub koordinator_priority: Option<i32>,
    /// A strategic merge patch of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<Value>,
}

/// As they are written in YAML, to find misspelt ones.
pub const FIELDS: [&str; 13] = [
    "annotationKeysMapping",
    "annotations",
    "koordinatorPriority",
    "labelKeysMapping",
    "labelSuffixes",
    "labels",
    "namespaceSelector",
    "patch",
    "priorityClassName",
    "probability",
    "qosClass",
    "schedulerName",
    "selector",
];

/// A probability that is neither a number nor a percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.probability: {0:?} is no percentage: write 30 or \"30%\"")]
pub struct BadProbability(String);

impl ClusterColocationProfileSpec {
    /// Of 100 pods so many, from 0 to 100. A bare number is a percentage, too; what is beyond the bounds means the bound.
    ///
    /// # Errors
    /// For a text without a percent sign or a number before it.
    pub fn percent(&self) -> Result<u8, BadProbability> {
        let percent: i32 = match &self.probability {
            None => 100,
            Some(IntOrString::Int(percent)) => *percent,
            Some(IntOrString::String(text)) => text
                .strip_suffix('%')
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| BadProbability(text.clone()))?,
        };
        Ok(u8::try_from(percent.clamp(0, 100)).expect("BUG: at most 100"))
    }
}

impl ClusterColocationProfile {
    /// Whether the pods that it selects keep their cpu and memory.
    pub fn skips_resources(&self) -> bool {
        self.annotations().contains_key(SKIP_UPDATE_RESOURCES)
    }

    /// In whose order profiles are applied.
    pub fn sort_key(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probability_is_a_percentage_however_it_is_written() {
        let percent =
            |probability| ClusterColocationProfileSpec { probability, ..Default::default() }.percent();
        let text = |text: &str| Some(IntOrString::String(text.to_owned()));
        for (probability, expected) in [
            (None, 100),
            (Some(IntOrString::Int(0)), 0),
            (Some(IntOrString::Int(30)), 30),
            (Some(IntOrString::Int(-5)), 0),
            (Some(IntOrString::Int(250)), 100),
            (text("0%"), 0),
            (text("50%"), 50),
            (text("100%"), 100),
            (text("120%"), 100),
        ] {
            assert_eq!(percent(probability.clone()), Ok(expected), "{probability:?}");
        }
        for bad in ["50", "", "%", "half", "50 %", "5.5%"] {
            assert_eq!(percent(text(bad)), Err(BadProbability(bad.to_owned())));
        }
    }

    #[test]
    fn every_field_is_read_and_named() {
        let spec: ClusterColocationProfileSpec = serde_json::from_value(serde_json::json!({
            "namespaceSelector": { "matchLabels": { "a": "b" } },
            "selector": { "matchExpressions": [{ "key": "a", "operator": "Exists" }] },
            "probability": "30%", "labels": { "a": "b" }, "annotations": { "a": "b" },
            "labelKeysMapping": { "a": "b" }, "annotationKeysMapping": { "a": "b" }, "labelSuffixes": { "a": "b" },
            "schedulerName": "s", "qosClass": "BE", "priorityClassName": "koord-batch", "koordinatorPriority": 7,
            "patch": { "spec": {} },
        }))
        .unwrap();
        let written = serde_json::to_value(&spec).unwrap();
        let names: Vec<&String> = written.as_object().unwrap().keys().collect();
        assert_eq!(names, FIELDS);
    }
}

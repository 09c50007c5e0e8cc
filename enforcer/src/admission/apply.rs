//! One profile, applied to one pod, in Koordinator's order of fields.
#![deny(clippy::disallowed_methods)]

use serde_json::{Value, json};

use super::{
    json::{Malformed, Strings, map_in, object, set_strings, strings},
    known::Known,
    merge::{BadPatch, merge},
    pod::{ANNOTATIONS, LABELS},
    profile::ClusterColocationProfile,
};
use crate::cluster::protocol::{PRIORITY, QOS_CLASS};

/// What a profile wants and cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("spec.priorityClassName: there is no PriorityClass {0}")]
    NoPriorityClass(String),
    #[error(transparent)]
    Patch(#[from] BadPatch),
    /// The pod's fault, or what a patch made of it.
    #[error("the pod's {0}")]
    Malformed(#[from] Malformed),
}

/// Maps are gone through by their keys, so that the same profile always does the same.
///
/// # Errors
/// [`Failed`]; the pod may be half done then.
pub fn apply(pod: &mut Value, profile: &ClusterColocationProfile, known: &Known<'_>) -> Result<(), Failed> {
    let spec = &profile.spec;
    let mut labels = strings(pod, LABELS)?;
    let mut annotations = strings(pod, ANNOTATIONS)?;
    labels.extend(spec.labels.clone().unwrap_or_default());
    annotations.extend(spec.annotations.clone().unwrap_or_default());
    copy(&mut labels, spec.label_keys_mapping.as_ref());
    copy(&mut annotations, spec.annotation_keys_mapping.as_ref());
    for (key, suffix) in spec.label_suffixes.iter().flatten() {
        if let Some(label) = labels.get_mut(key) {
            label.push_str(suffix);
        }
    }
    if let Some(scheduler) = named(spec.scheduler_name.as_ref()) {
        set(pod, "schedulerName", json!(scheduler))?;
    }
    if let Some(qos) = named(spec.qos_class.as_ref()) {
        labels.insert(QOS_CLASS.to_owned(), qos.clone());
    }
    if let Some(name) = named(spec.priority_class_name.as_ref()) {
        let Some(class) = known.priority_classes.get(name) else {
            return Err(Failed::NoPriorityClass(name.clone()));
        };
        set(pod, "priorityClassName", json!(name))?;
        set(pod, "priority", json!(class.value))?;
        set(pod, "preemptionPolicy", json!(class.preemption_policy))?;
    }
    if let Some(priority) = spec.koordinator_priority {
        labels.insert(PRIORITY.to_owned(), priority.to_string());
    }
    set_strings(pod, LABELS, &labels)?;
    set_strings(pod, ANNOTATIONS, &annotations)?;
    if let Some(patch) = spec.patch.as_ref().filter(|patch| !patch.is_null()) {
        merge(pod, patch)?;
    }
    Ok(())
}

/// Go takes an empty text for none.
fn named(text: Option<&String>) -> Option<&String> {
    text.filter(|text| !text.is_empty())
}

fn copy(strings: &mut Strings, keys: Option<&Strings>) {
    for (from, to) in keys.into_iter().flatten() {
        let value = strings.get(from).cloned().unwrap_or_default();
        strings.insert(to.clone(), value);
    }
}

fn set(pod: &mut Value, key: &str, value: Value) -> Result<(), Malformed> {
    map_in(object(pod)?, "spec", "spec")?.insert(key.to_owned(), value);
    Ok(())
}

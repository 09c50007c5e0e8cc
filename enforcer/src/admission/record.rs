//! What a pod remembers of how it was, so that mutating it again gives the same.
//!
//! The API server may ask again after other webhooks (`reinvocationPolicy: IfNeeded`), with a new request id and before the
//! pod has a name. Suffixes would be appended twice, copies made of what was copied over, dice thrown again, and profiles selected
//! by the labels that others set. The record says what was there before; what somebody else has changed since stays changed.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    json::{Malformed, get, set_strings, strings},
    pod::{ANNOTATIONS, CONTAINERS, LABELS, containers, in_milli},
};

/// Annotation of a pod.
pub const RECORD: &str = "enforcer.dev/colocation-record";

/// One value, before and after. `None`: there was none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Change<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is: Option<T>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// What was drawn for a profile, 0 to 99.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub draws: BTreeMap<String, u8>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, Change<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, Change<String>>,
    /// Of containers, by list and name (`containers/driver`), and the overhead.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    resources: BTreeMap<String, Change<Value>>,
}

impl Record {
    /// Takes the record off a pod. One that cannot be read is none.
    ///
    /// # Errors
    /// Where the pod is malformed.
    pub fn take(pod: &mut Value) -> Result<Option<Self>, Malformed> {
        let mut annotations = strings(pod, ANNOTATIONS)?;
        let Some(text) = annotations.remove(RECORD) else { return Ok(None) };
        set_strings(pod, ANNOTATIONS, &annotations)?;
        Ok(serde_json::from_str(&text).ok())
    }

    /// What happened between two states of a pod.
    ///
    /// # Errors
    /// Where a pod is malformed.
    pub fn between(before: &Value, after: &Value, draws: BTreeMap<String, u8>) -> Result<Self, Malformed> {
        Ok(Self {
            draws,
            labels: changes(&strings(before, LABELS)?, &strings(after, LABELS)?),
            annotations: changes(&strings(before, ANNOTATIONS)?, &strings(after, ANNOTATIONS)?),
            resources: changed_resources(&resources(before)?, &resources(after)?),
        })
    }

    /// # Errors
    /// Where the pod is malformed.
    pub fn write(&self, pod: &mut Value) -> Result<(), Malformed> {
        let mut annotations = strings(pod, ANNOTATIONS)?;
        let text = serde_json::to_string(self).expect("BUG: plain data");
        annotations.insert(RECORD.to_owned(), text);
        set_strings(pod, ANNOTATIONS, &annotations)
    }

    /// Makes everything what it was, unless somebody else has changed it since.
    ///
    /// # Errors
    /// Where the pod is malformed.
    pub fn undo(&self, pod: &mut Value) -> Result<(), Malformed> {
        for (key, changes) in [(LABELS, &self.labels), (ANNOTATIONS, &self.annotations)] {
            let mut now = strings(pod, key)?;
            revert(&mut now, changes);
            set_strings(pod, key, &now)?;
        }
        let mut now = resources(pod)?;
        for (key, change) in &self.resources {
            let is = change.is.as_ref().map(in_milli);
            if let Some(now) = now.get_mut(key).filter(|now| now.as_ref().map(in_milli) == is) {
                now.clone_from(&change.was);
            }
        }
        set_resources(pod, &now);
        Ok(())
    }
}

fn changes<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) -> BTreeMap<String, Change<T>> {
    let keys = before.keys().chain(after.keys());
    let changed = keys.filter(|key| before.get(*key) != after.get(*key));
    changed
        .map(|key| (key.clone(), Change { was: before.get(key).cloned(), is: after.get(key).cloned() }))
        .collect()
}

/// Of what is there afterwards. A container that comes with a patch had no resources before; one that goes needs none.
fn changed_resources(before: &Resources, after: &Resources) -> BTreeMap<String, Change<Value>> {
    let changes = after.iter().map(|(key, is)| {
        let was = before.get(key).cloned().flatten();
        (key.clone(), Change { was, is: is.clone() })
    });
    changes.filter(|(_, change)| change.was != change.is).collect()
}

fn revert<T: Clone + PartialEq>(now: &mut BTreeMap<String, T>, changes: &BTreeMap<String, Change<T>>) {
    for (key, change) in changes {
        if now.get(key) == change.is.as_ref() {
            match &change.was {
                Some(was) => now.insert(key.clone(), was.clone()),
                None => now.remove(key),
            };
        }
    }
}

/// By list and name of container. `None`: there is something that has none.
type Resources = BTreeMap<String, Option<Value>>;

const OVERHEAD: &str = "overhead";

/// Of all containers that have a name of their own, and the overhead.
fn resources(pod: &Value) -> Result<Resources, Malformed> {
    let mut found = Resources::new();
    let mut twice = Vec::new();
    for list in CONTAINERS {
        for (_, container) in containers(pod, list)? {
            let key = key(list, container);
            if found.insert(key.clone(), get(container, "resources").cloned()).is_some() {
                twice.push(key);
            }
        }
    }
    for key in twice {
        found.remove(&key);
    }
    if let Some(spec) = pod.get("spec") {
        found.insert(OVERHEAD.to_owned(), get(spec, OVERHEAD).cloned());
    }
    Ok(found)
}

fn set_resources(pod: &mut Value, wanted: &Resources) {
    let Some(spec) = pod.get_mut("spec") else { return };
    for list in CONTAINERS {
        let found = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in found.into_iter().flatten() {
            if let Some(wanted) = wanted.get(&key(list, container)) {
                set(container, "resources", wanted.as_ref());
            }
        }
    }
    if let Some(wanted) = wanted.get(OVERHEAD) {
        set(spec, OVERHEAD, wanted.as_ref());
    }
}

/// Leaves alone what is so already: `null` is nothing, too.
fn set(owner: &mut Value, key: &str, wanted: Option<&Value>) {
    if get(owner, key) == wanted {
        return;
    }
    let Value::Object(owner) = owner else { return };
    match wanted {
        Some(wanted) => drop(owner.insert(key.to_owned(), wanted.clone())),
        None => drop(owner.remove(key)),
    }
}

fn key(list: &str, container: &Value) -> String {
    format!("{list}/{}", container.get("name").and_then(Value::as_str).unwrap_or_default())
}

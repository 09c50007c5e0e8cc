//! Pods that slipped through: created while no webhook answered, or before their profile was there.
//!
//! Each is mutated once more, in thought. If that would convert its resources, it runs as what it should not be. Profiles for a
//! part of their pods count only where they matter by the pod's own class, since nobody knows what would have been drawn.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    super::{
        known::Known,
        mutate::{DRAWS, Resources, mutate},
        pod::has_cpu_or_memory,
    },
    metrics::Metrics,
    stores::Stores,
};
use crate::cluster::{protocol::CONFIG_MIRROR, retry::Retry};

/// Pods that ended need no conversion any more.
const ALIVE: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How often profiles are looked at; if they changed, all pods are looked at again.
const LOOK: Duration = Duration::from_mins(1);
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// By UID: `namespace/name`.
#[derive(Clone, Debug, Default)]
pub struct Found(Arc<Mutex<BTreeMap<String, String>>>);

impl Found {
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().values().cloned().collect();
        names.sort();
        names
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        // Whatever panicked, the map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches until the process ends. Of pods only the names of those that slipped through are kept.
pub async fn watch(client: Client, watch: Watch) {
    let stores = &watch.stores;
    while !stores.is_ready() {
        tokio::time::sleep(FIRST_LOOK).await;
    }
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let seen = stores.fingerprint();
        let api: Api<Pod> = Api::all(client.clone());
        let mut stream =
            pin!(watcher(api, watcher::Config::default().fields(ALIVE)).backoff(Retry::default()));
        let mut next = BTreeMap::new();
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    Some(event) => watch.take(event, &mut next),
                    None => return,
                },
                _ = clock.tick() => if stores.fingerprint() != seen { break },
            }
        }
    }
}

/// What a watch of pods needs.
pub struct Watch {
    pub stores: Stores,
    pub found: Found,
    pub metrics: Metrics,
    /// No pod is to be converted, so none slips through.
    pub skip_resources: bool,
}

impl Watch {
    fn take(&self, event: watcher::Result<Event<Pod>>, next: &mut BTreeMap<String, String>) {
        match event {
            Ok(Event::Init) => next.clear(),
            Ok(Event::InitApply(pod)) => {
                if let (Some(uid), Some(name)) = (pod.uid(), self.slipped(&pod)) {
                    next.insert(uid, name);
                }
            }
            Ok(Event::InitDone) => {
                *self.found.lock() = std::mem::take(next);
                self.metrics.count_unconverted();
            }
            Ok(Event::Apply(pod)) => self.applied(&pod),
            Ok(Event::Delete(pod)) => {
                if let Some(uid) = pod.uid() {
                    self.found.lock().remove(&uid);
                }
            }
            Err(err) => tracing::debug!(%err, "pods cannot be watched"),
        }
        self.metrics.unconverted(self.found.lock().len());
    }

    fn applied(&self, pod: &Pod) {
        let Some(uid) = pod.uid() else { return };
        let name = self.slipped(pod);
        let mut found = self.found.lock();
        match name {
            Some(name) => {
                found.entry(uid).or_insert_with(|| {
                    tracing::warn!(
                        pod = name,
                        "slipped through: a profile selects it, and its resources are not converted"
                    );
                    name
                });
            }
            None => drop(found.remove(&uid)),
        }
    }

    /// Its name, if it did.
    fn slipped(&self, pod: &Pod) -> Option<String> {
        let namespace = pod.namespace()?;
        let snapshot = self.stores.snapshot(&namespace);
        let value = serde_json::to_value(pod).ok()?;
        let is_unconverted = is_unconverted(&value, &snapshot.known(self.skip_resources));
        is_unconverted.then(|| format!("{namespace}/{}", pod.name_any()))
    }
}

fn is_unconverted(pod: &Value, known: &Known<'_>) -> bool {
    let is_mirror = pod
        .pointer("/metadata/annotations")
        .is_some_and(|annotations| annotations.get(CONFIG_MIRROR).is_some());
    // Kubernetes has classed it by what it asks for now.
    let mut pod = pod.clone();
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("qosClass");
    }
    // One that remembers how it was is converted again in thought, and is not the worse for it.
    if is_mirror || !has_cpu_or_memory(&pod).is_ok_and(|has| has) {
        return false;
    }
    let outcome = mutate(&pod, known, &mut || DRAWS - 1);
    outcome.is_ok_and(|outcome| matches!(outcome.resources, Resources::Converted(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::{
        known::{Namespace, PriorityClass},
        profile::ClusterColocationProfile,
    };

    #[test]
    fn what_would_be_converted_if_it_came_now_slipped_through() {
        let spark = |probability: Value| -> ClusterColocationProfile {
            serde_json::from_value(json!({
                "apiVersion": "config.koordinator.sh/v1alpha1", "kind": "ClusterColocationProfile", "metadata": { "name": "p" },
                "spec": { "selector": { "matchLabels": { "app": "spark" } }, "priorityClassName": "koord-batch",
                    "probability": probability },
            }))
            .unwrap()
        };
        let pod = |app: &str, priority: i32, resource: &str| {
            json!({
                "metadata": { "labels": { "app": app } }, "status": { "qosClass": "Burstable" },
                "spec": { "priority": priority, "containers": [{ "name": "c", "resources": { "requests": { (resource): "1000" } } }] },
            })
        };
        let batch = "kubernetes.io/batch-cpu";
        for (probability, pod, slipped) in [
            (json!(null), pod("spark", 0, "cpu"), true),
            (json!(null), pod("spark", 5_000, "cpu"), true),
            (json!(null), pod("spark", 5_000, batch), false),
            (json!(null), pod("web", 5_000, "cpu"), false),
            (json!(50), pod("spark", 0, "cpu"), false),
            (json!(50), pod("spark", 5_000, "cpu"), true),
        ] {
            let profile = spark(probability.clone());
            let class = PriorityClass { value: 5_000, preemption_policy: "Never".to_owned() };
            let known = Known {
                profiles: vec![&profile],
                namespace: Namespace::unknown("jobs"),
                priority_classes: [("koord-batch".to_owned(), class)].into(),
                skip_resources: false,
            };
            assert_eq!(is_unconverted(&pod, &known), slipped, "{probability} {pod}");
            let converted = mutate(&pod, &known, &mut || 0).unwrap().pod;
            assert!(
                !is_unconverted(&converted, &known),
                "what is converted is, whatever it remembers: {converted}"
            );
        }
    }
}

//! Classes and resources of a pod that is plain JSON.
#![deny(clippy::disallowed_methods)]

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Map, Value};

use super::json::{Malformed, get, list, map, strings};
use crate::cluster::{
    class::{Priority, Qos},
    quantity,
};

pub const LABELS: &str = "labels";
pub const ANNOTATIONS: &str = "annotations";
/// Lists of a pod's containers that have resources, in the order in which they are looked at.
pub const CONTAINERS: [&str; 2] = ["initContainers", "containers"];
/// Requests or limits, and where they are.
pub type ResourceList<'a> = (String, &'a Map<String, Value>);

const REQUESTS_AND_LIMITS: [&str; 2] = ["requests", "limits"];

/// Quality of service by the label alone.
///
/// # Errors
/// Where labels are none.
pub fn qos(pod: &Value) -> Result<Option<Qos>, Malformed> {
    Ok(Qos::of_labels(&strings(pod, LABELS)?))
}

/// Class of priority by the label, else by the band that `spec.priority` lies in.
///
/// # Errors
/// Where the pod is malformed.
pub fn priority(pod: &Value) -> Result<Option<Priority>, Malformed> {
    let value = match spec(pod)?.and_then(|spec| spec.get("priority")) {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .as_i64()
                .and_then(|value| i32::try_from(value).ok())
                .ok_or_else(|| Malformed::new("spec.priority", "must be an integer of 32 bits"))?,
        ),
    };
    Ok(Priority::of(&strings(pod, LABELS)?, value))
}

/// Class of priority, else the one that its quality of service implies (koordinator `GetPodPriorityClassWithDefault`).
///
/// # Errors
/// Where the pod is malformed.
pub fn priority_or_implied(pod: &Value) -> Result<Priority, Malformed> {
    if let Some(class) = priority(pod)? {
        return Ok(class);
    }
    let implied = match qos(pod)? {
        Some(qos) => qos,
        None if is_best_effort(pod)? => Qos::Be,
        // Guaranteed or burstable, which imply the same.
        None => Qos::Ls,
    };
    Ok(Priority::implied_by(implied))
}

/// Kubernetes' own class: no container asks for cpu or memory, nor does the pod as a whole.
fn is_best_effort(pod: &Value) -> Result<bool, Malformed> {
    let said = pod.get("status").and_then(|status| status.get("qosClass")).and_then(Value::as_str);
    if let Some(said) = said.filter(|said| !said.is_empty()) {
        return Ok(said == "BestEffort");
    }
    for name in ["cpu", "memory"] {
        for (field, resources) in resource_lists(pod)? {
            if amount(resources, name, &field)? > 0 {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// `spec`.
///
/// # Errors
/// Where that is no map.
pub fn spec(pod: &Value) -> Result<Option<&Map<String, Value>>, Malformed> {
    map(pod.get("spec"), "spec")
}

/// The containers of one list, each with where it is.
///
/// # Errors
/// Where there is something else.
pub fn containers<'a>(pod: &'a Value, key: &str) -> Result<Vec<(String, &'a Value)>, Malformed> {
    let list = list(spec(pod)?.and_then(|spec| spec.get(key)), &format!("spec.{key}"))?;
    let numbered = list.iter().enumerate().map(|(at, container)| (format!("spec.{key}[{at}]"), container));
    numbered
        .map(|(field, container)| {
            map(Some(container), &field)?;
            Ok((field, container))
        })
        .collect()
}

/// A container's requests or limits, each with where they are.
///
/// # Errors
/// Where there is something else.
pub fn resources<'a>(owner: &'a Value, field: &str) -> Result<Vec<ResourceList<'a>>, Malformed> {
    let field = format!("{field}.resources");
    let Some(resources) = map(get(owner, "resources"), &field)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for key in REQUESTS_AND_LIMITS {
        let field = format!("{field}.{key}");
        if let Some(list) = map(resources.get(key), &field)? {
            found.push((field, list));
        }
    }
    Ok(found)
}

/// All lists of resources of a pod but its overhead.
fn resource_lists(pod: &Value) -> Result<Vec<ResourceList<'_>>, Malformed> {
    let mut found = Vec::new();
    for key in CONTAINERS {
        for (field, container) in containers(pod, key)? {
            found.extend(resources(container, &field)?);
        }
    }
    if let Some(spec) = pod.get("spec") {
        found.extend(resources(spec, "spec")?);
    }
    Ok(found)
}

/// Whether a container has cpu or memory by these names.
///
/// # Errors
/// Where the pod is malformed.
pub fn has_cpu_or_memory(pod: &Value) -> Result<bool, Malformed> {
    let lists = resource_lists(pod)?;
    Ok(lists.iter().any(|(_, list)| list.contains_key("cpu") || list.contains_key("memory")))
}

/// In thousandths, of one entry of a list; zero if it is missing.
///
/// # Errors
/// For something that is no quantity.
pub fn amount(resources: &Map<String, Value>, name: &str, field: &str) -> Result<i64, Malformed> {
    let Some(value) = resources.get(name).filter(|value| !value.is_null()) else { return Ok(0) };
    let field = format!("{field}[{name}]");
    quantity::milli(&quantity_of(value, &field)?).map_err(|err| Malformed::new(field, err.to_string()))
}

/// A quantity, which may be written as a number.
///
/// # Errors
/// For anything else; not for a text that is none.
pub fn quantity_of(value: &Value, field: &str) -> Result<Quantity, Malformed> {
    match value {
        Value::String(text) => Ok(Quantity(text.trim().to_owned())),
        Value::Number(number) => Ok(Quantity(number.to_string())),
        other => Err(Malformed::new(
            field,
            format!("must be a quantity such as 500m or 3Gi, and is {}", super::json::kind(other)),
        )),
    }
}

/// With every quantity in thousandths, so that `1000` and `1k`, which the API server makes of it, are the same.
pub fn in_milli(resources: &Value) -> Value {
    match resources {
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), in_milli(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(in_milli).collect()),
        other => {
            let milli = quantity_of(other, "").ok().and_then(|quantity| quantity::milli(&quantity).ok());
            milli.map_or_else(|| other.clone(), Value::from)
        }
    }
}

/// What a pod asks for in all, in thousandths, as the scheduler counts it (`k8s.io/component-helpers/resource`): containers and
/// sidecars together, or an init container with the sidecars started before it if that is more; and the overhead.
///
/// # Errors
/// Where the pod is malformed.
pub fn requested_milli(pod: &Value, name: &str) -> Result<i64, Malformed> {
    let of = |owner: &Value, field: &str| -> Result<Option<i64>, Malformed> {
        let lists = resources(owner, field)?;
        let Some((field, requests)) = lists.iter().find(|(field, _)| field.ends_with("requests")) else {
            return Ok(None);
        };
        if !requests.contains_key(name) {
            return Ok(None);
        }
        amount(requests, name, field).map(Some)
    };
    let (mut together, mut sidecars, mut starting) = (0_i64, 0_i64, 0_i64);
    for (field, container) in containers(pod, "containers")? {
        together = together.saturating_add(of(container, &field)?.unwrap_or_default());
    }
    for (field, container) in containers(pod, "initContainers")? {
        let asks = of(container, &field)?.unwrap_or_default();
        let is_sidecar = container.get("restartPolicy").and_then(Value::as_str) == Some("Always");
        if is_sidecar {
            sidecars = sidecars.saturating_add(asks);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars.saturating_add(asks));
        }
    }
    let mut asks = together.saturating_add(sidecars).max(starting);
    let Some(spec) = pod.get("spec") else { return Ok(0) };
    if let Some(of_pod) = of(spec, "spec")? {
        asks = of_pod;
    }
    if let Some(overhead) = map(get(spec, "overhead"), "spec.overhead")? {
        asks = asks.saturating_add(amount(overhead, name, "spec.overhead")?);
    }
    Ok(asks)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_follows_from_label_priority_service_and_resources_in_that_order() {
        let cpu = json!([{ "resources": { "requests": { "cpu": 1 } } }]);
        for (pod, expected) in [
            (
                json!({ "metadata": { "labels": { "koordinator.sh/priority-class": "koord-mid" } }, "spec": { "priority": 5500 } }),
                Priority::Mid,
            ),
            (json!({ "spec": { "priority": 5000, "containers": cpu } }), Priority::Batch),
            (json!({ "spec": { "priority": 7999, "containers": cpu } }), Priority::Mid),
            (json!({ "spec": { "priority": 3000 } }), Priority::Free),
            (
                json!({ "metadata": { "labels": { "koordinator.sh/qosClass": "BE" } }, "spec": { "containers": cpu } }),
                Priority::Batch,
            ),
            (
                json!({ "metadata": { "labels": { "koordinator.sh/qosClass": "LS" } }, "spec": {} }),
                Priority::Prod,
            ),
            (json!({ "spec": { "priority": 0, "containers": cpu } }), Priority::Prod),
            (
                json!({ "spec": { "containers": [{ "resources": { "limits": { "memory": "1Gi" } } }] } }),
                Priority::Prod,
            ),
            (json!({ "spec": { "initContainers": cpu } }), Priority::Prod),
            (
                json!({ "spec": { "resources": { "requests": { "cpu": "1" } }, "containers": [{}] } }),
                Priority::Prod,
            ),
            (
                json!({ "spec": { "containers": [{ "resources": { "requests": { "cpu": "0" } } }] } }),
                Priority::Batch,
            ),
            (json!({ "spec": { "containers": [{}] } }), Priority::Batch),
            (
                json!({ "spec": { "containers": [{}] }, "status": { "qosClass": "Burstable" } }),
                Priority::Prod,
            ),
            (json!({}), Priority::Batch),
        ] {
            assert_eq!(priority_or_implied(&pod), Ok(expected), "{pod}");
        }
    }

    #[test]
    fn requests_add_up_as_for_the_scheduler() {
        let asks = |cpu: &str| json!({ "resources": { "requests": { "cpu": cpu } } });
        let sidecar =
            |cpu: &str| json!({ "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } });
        for (spec, milli) in [
            (json!({ "containers": [asks("1"), asks("500m")] }), 1_500),
            (json!({ "containers": [asks("1")], "initContainers": [asks("3")] }), 3_000),
            (json!({ "containers": [asks("1")], "initContainers": [sidecar("1"), asks("3")] }), 4_000),
            (json!({ "containers": [asks("4")], "initContainers": [sidecar("1"), asks("3")] }), 5_000),
            (json!({ "containers": [asks("1")], "overhead": { "cpu": "250m" } }), 1_250),
            (json!({ "containers": [asks("1")], "resources": { "requests": { "cpu": "2" } } }), 2_000),
            (json!({ "containers": [{ "resources": { "limits": { "cpu": "2" } } }] }), 0),
            (json!({}), 0),
        ] {
            assert_eq!(requested_milli(&json!({ "spec": spec }), "cpu"), Ok(milli), "{spec}");
        }
    }

    #[test]
    fn what_is_no_pod_is_told_where() {
        for (pod, field) in [
            (json!({ "metadata": 1 }), "metadata"),
            (json!({ "metadata": { "labels": [] } }), "metadata.labels"),
            (json!({ "metadata": { "labels": { "a": true } } }), "metadata.labels[a]"),
            (json!({ "spec": "x" }), "spec"),
            (json!({ "spec": { "priority": "high" } }), "spec.priority"),
            (json!({ "spec": { "containers": {} } }), "spec.containers"),
            (json!({ "spec": { "containers": [1] } }), "spec.containers[0]"),
            (json!({ "spec": { "containers": [{ "resources": [] }] } }), "spec.containers[0].resources"),
            (
                json!({ "spec": { "containers": [{ "resources": { "limits": 1 } }] } }),
                "spec.containers[0].resources.limits",
            ),
            (
                json!({ "spec": { "containers": [{ "resources": { "limits": { "cpu": "many" } } }] } }),
                "spec.containers[0].resources.limits[cpu]",
            ),
            (
                json!({ "spec": { "containers": [{ "resources": { "limits": { "cpu": [] } } }] } }),
                "spec.containers[0].resources.limits[cpu]",
            ),
        ] {
            assert_eq!(priority_or_implied(&pod).unwrap_err().field, field, "{pod}");
        }
    }
}

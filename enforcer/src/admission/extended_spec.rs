//! The annotation that tells node agents what containers ask for, since container runtimes do not (koordinator
//! `pkg/webhook/pod/mutating/extended_resource_spec.go`).
#![deny(clippy::disallowed_methods)]

use serde_json::{Map, Value, json};

use super::{
    json::{Malformed, set_strings, strings},
    pod::{ANNOTATIONS, containers, in_milli, quantity_of, resources},
};
use crate::cluster::protocol::{BATCH_CPU, BATCH_MEMORY, EXTENDED_RESOURCE_SPEC};

/// Makes the annotation say what the containers ask for, and leaves it alone where it says so already. Init containers, the
/// overhead and mid resources are not part of it. Whether it was changed.
///
/// # Errors
/// Where the pod is malformed.
pub fn annotate(pod: &mut Value) -> Result<bool, Malformed> {
    let wanted = wanted(pod)?;
    let mut annotations = strings(pod, ANNOTATIONS)?;
    let found = annotations.get(EXTENDED_RESOURCE_SPEC);
    let says = |text: &String| serde_json::from_str::<Value>(text).ok();
    if found.map_or(Some(json!({})), says).is_some_and(|found| in_milli(&found) == in_milli(&wanted)) {
        return Ok(false);
    }
    annotations.insert(EXTENDED_RESOURCE_SPEC.to_owned(), wanted.to_string());
    set_strings(pod, ANNOTATIONS, &annotations)?;
    Ok(true)
}

/// Whether a container asks for batch resources.
///
/// # Errors
/// Where the pod is malformed.
pub fn is_wanted(pod: &Value) -> Result<bool, Malformed> {
    Ok(wanted(pod)?.as_object().is_some_and(|wanted| !wanted.is_empty()))
}

fn wanted(pod: &Value) -> Result<Value, Malformed> {
    let mut by_name = Map::new();
    for (field, container) in containers(pod, "containers")? {
        let mut lists = Map::new();
        for (field, list) in resources(container, &field)? {
            let mut batch = Map::new();
            for name in [BATCH_CPU, BATCH_MEMORY] {
                if let Some(value) = list.get(name).filter(|value| !value.is_null()) {
                    let quantity = quantity_of(value, &format!("{field}[{name}]"))?;
                    batch.insert(name.to_owned(), Value::String(quantity.0));
                }
            }
            if !batch.is_empty() {
                let key = if field.ends_with("limits") { "limits" } else { "requests" };
                lists.insert(key.to_owned(), Value::Object(batch));
            }
        }
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        if !lists.is_empty() {
            by_name.insert(name.to_owned(), Value::Object(lists));
        }
    }
    Ok(if by_name.is_empty() { json!({}) } else { json!({ "containers": by_name }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pod: &Value) -> (bool, Option<String>) {
        let mut pod = pod.clone();
        let changed = annotate(&mut pod).unwrap();
        assert!(!annotate(&mut pod).unwrap(), "once is enough");
        (changed, strings(&pod, ANNOTATIONS).unwrap().remove(EXTENDED_RESOURCE_SPEC))
    }

    #[test]
    fn it_says_what_regular_containers_ask_for_as_koordinator_writes_it() {
        let batch = json!({
            "requests": { (BATCH_CPU): "1000", "kubernetes.io/mid-cpu": "5", "x": "1" },
            "limits": { (BATCH_MEMORY): "3456Mi", (BATCH_CPU): 1000 },
        });
        let pod = json!({ "spec": {
            "initContainers": [{ "name": "i", "resources": batch }],
            "containers": [{ "name": "b", "resources": batch }, { "name": "a", "resources": { "requests": { "cpu": "1" } } }],
            "overhead": { (BATCH_CPU): "1" },
        } });
        let expected = r#"{"containers":{"b":{"limits":{"kubernetes.io/batch-cpu":"1000","kubernetes.io/batch-memory":"3456Mi"},"requests":{"kubernetes.io/batch-cpu":"1000"}}}}"#;
        assert_eq!(annotated(&pod), (true, Some(expected.to_owned())));
    }

    #[test]
    fn what_users_wrote_is_replaced_where_it_is_wrong() {
        let batch = json!([{ "name": "b", "resources": { "limits": { (BATCH_CPU): "1" } } }]);
        let with = |text: &str, containers: &Value| {
            annotated(
                &json!({ "metadata": { "annotations": { (EXTENDED_RESOURCE_SPEC): text } }, "spec": { "containers": containers } }),
            )
        };
        let right = r#"{"containers":{"b":{"limits":{"kubernetes.io/batch-cpu":"1"}}}}"#;
        for same in [right.replace(':', ": "), right.replace(r#""1""#, r#""1000m""#)] {
            assert!(!with(&same, &batch).0, "the same in other words: {same}");
        }
        for wrong in ["{}", "nonsense", r#"{"containers":{"a":{}}}"#] {
            assert_eq!(with(wrong, &batch), (true, Some(right.to_owned())));
        }
        assert_eq!(with(right, &json!([])), (true, Some("{}".to_owned())));
        assert_eq!(annotated(&json!({ "spec": {} })), (false, None));
    }
}

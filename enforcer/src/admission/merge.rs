//! Strategic merge patches of pods (`k8s.io/apimachinery/pkg/util/strategicpatch`).
//!
//! Maps are merged, `null` deletes, lists are replaced but for those that Kubernetes merges ([`strategy`]). The directives
//! `$patch` (`merge` only where it is the default), `$retainKeys` and `$deleteFromPrimitiveList` work as they do for `kubectl patch`.
//! `$setElementOrder`, which only clients compute, is refused. One difference is meant: `$patch: replace` where there is nothing yet
//! sets the map; `kubectl` drops it, and sets it the second time.
#![deny(clippy::disallowed_methods)]

use serde_json::{Map, Value};

use super::{json::kind, pod::in_milli};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// A patch that has no meaning, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct BadPatch {
    pub field: String,
    pub what: String,
}

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// Maps, told apart by this key.
    By(&'static str),
    /// Plain values, each once.
    Values,
}

/// The lists of a pod that are merged (`patchStrategy` and `patchMergeKey` in `k8s.io/api/core/v1/types.go`); all others are
/// replaced.
fn strategy(path: &[&str]) -> Option<Strategy> {
    Some(match path {
        [.., "metadata", "finalizers"] => Strategy::Values,
        [.., "metadata", "ownerReferences"] => Strategy::By("uid"),
        [
            "spec",
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "schedulingGates"
            | "resourceClaims"
            | "evictionResponders",
        ]
        | ["status", "resourceClaimStatuses"] => Strategy::By("name"),
        ["spec", "hostAliases"] | ["status", "hostIPs" | "podIPs"] => Strategy::By("ip"),
        ["spec", "topologySpreadConstraints"] => Strategy::By("topologyKey"),
        ["spec", "containers" | "initContainers" | "ephemeralContainers", list] => match *list {
            "ports" => Strategy::By("containerPort"),
            "env" => Strategy::By("name"),
            "volumeMounts" => Strategy::By("mountPath"),
            "volumeDevices" => Strategy::By("devicePath"),
            _ => return None,
        },
        ["status", "conditions"] => Strategy::By("type"),
        _ => return None,
    })
}

/// Merges a patch into a pod.
///
/// # Errors
/// For a patch that has no meaning, whatever the pod; it is as it was then.
pub fn merge(pod: &mut Value, patch: &Value) -> Result<(), BadPatch> {
    let mut at = At::default();
    let Value::Object(patch) = patch else {
        return Err(at.bad(format!("must be a map, and is {}", kind(patch))));
    };
    at.check(patch)?;
    if let Value::Object(original) = pod {
        at.map(original, patch);
    }
    Ok(())
}

/// Whether two pods differ only in the order of lists that are merged, and in how quantities are written. Patches that take away
/// and put back what others add may turn the former over each time, and the API server writes the latter in its own way.
pub fn are_same_but_for_order(one: &Value, other: &Value) -> bool {
    in_one_order(one, &mut Vec::new()) == in_one_order(other, &mut Vec::new())
}

fn in_one_order<'a>(value: &'a Value, path: &mut Vec<&'a str>) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, value)| {
                    path.push(key);
                    let ordered = in_one_order(value, path);
                    path.pop();
                    (key.clone(), ordered)
                })
                .collect(),
        ),
        Value::Array(list) => {
            let mut ordered: Vec<Value> = list.iter().map(|item| in_one_order(item, path)).collect();
            if strategy(path).is_some() {
                ordered.sort_by_cached_key(ToString::to_string);
            }
            Value::Array(ordered)
        }
        other
            if path
                .iter()
                .rev()
                .nth(1)
                .is_some_and(|list| matches!(*list, "requests" | "limits" | "overhead")) =>
        {
            in_milli(other)
        }
        other => other.clone(),
    }
}

/// Where in the pod it is being merged.
#[derive(Default)]
struct At<'a> {
    /// Without places in lists.
    path: Vec<&'a str>,
}

impl<'a> At<'a> {
    fn bad(&self, what: impl Into<String>) -> BadPatch {
        let field =
            std::iter::once("spec.patch").chain(self.path.iter().copied()).collect::<Vec<_>>().join(".");
        BadPatch { field, what: what.into() }
    }

    /// Whether a map of a patch has a meaning.
    fn check(&mut self, patch: &'a Map<String, Value>) -> Result<(), BadPatch> {
        if patch.get(PATCH).is_some_and(|directive| !is_one_of(directive, &["replace", "delete"])) {
            return Err(self.bad(format!("{PATCH} must be replace or delete")));
        }
        if let Some(keys) = patch.get(RETAIN) {
            let Value::Array(keys) = keys else {
                return Err(self.bad(format!("{RETAIN} must be a list of keys")));
            };
            let mut set = patch.iter().filter(|(key, value)| !value.is_null() && !is_directive(key));
            if let Some((stray, _)) = set.find(|(key, _)| !keys.iter().any(|kept| kept.as_str() == Some(key)))
            {
                return Err(self.bad(format!("{stray} is set, and not in {RETAIN}")));
            }
        }
        for (key, value) in patch {
            if key.starts_with(ORDER) {
                return Err(
                    self.bad(format!("{ORDER}… is not supported: write the list in the order wanted"))
                );
            }
            if key.starts_with(DELETE) && !value.is_array() {
                return Err(self.bad(format!("{key} must be a list, and is {}", kind(value))));
            }
            self.path.push(key);
            match value {
                Value::Object(map) if !is_directive(key) => self.check(map)?,
                Value::Array(list) if !is_directive(key) => self.check_list(list)?,
                _ => {}
            }
            self.path.pop();
        }
        Ok(())
    }

    fn check_list(&mut self, list: &'a [Value]) -> Result<(), BadPatch> {
        let strategy = strategy(&self.path);
        for item in list {
            match (strategy, item) {
                (Some(Strategy::Values), Value::Object(_) | Value::Array(_)) => {
                    return Err(self.bad(format!("holds {}, and plain values are merged here", kind(item))));
                }
                (Some(Strategy::By(name)), _) => {
                    let replaces =
                        item.get(PATCH).is_some_and(|directive| is_one_of(directive, &["replace"]));
                    if !replaces && item.get(name).is_none_or(Value::is_null) {
                        return Err(self.bad(format!("each of the list must be a map with its {name}")));
                    }
                }
                _ => {}
            }
            if let Value::Object(map) = item {
                self.check(map)?;
            }
        }
        Ok(())
    }

    fn map(&mut self, original: &mut Map<String, Value>, patch: &'a Map<String, Value>) {
        match patch.get(PATCH).and_then(Value::as_str) {
            None => {}
            Some("replace") => {
                *original = without_directives(patch);
                return;
            }
            Some(_) => {
                original.clear();
                return;
            }
        }
        if let Some(Value::Array(keys)) = patch.get(RETAIN) {
            original.retain(|key, _| keys.iter().any(|kept| kept.as_str() == Some(key)));
        }
        // Before what is added.
        for (key, values) in patch {
            let list = key.strip_prefix(DELETE).and_then(|list| original.get_mut(list));
            if let (Some(Value::Array(list)), Value::Array(values)) = (list, values) {
                list.retain(|value| !values.contains(value));
            }
        }
        for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key)) {
            self.path.push(key);
            let merged = self.field(original.remove(key), value);
            if let Some(merged) = merged {
                original.insert(key.clone(), merged);
            }
            self.path.pop();
        }
    }

    fn field(&mut self, original: Option<Value>, patch: &'a Value) -> Option<Value> {
        match (original, patch) {
            (_, Value::Null) => None,
            (Some(Value::Object(mut original)), Value::Object(patch)) => {
                self.map(&mut original, patch);
                Some(Value::Object(original))
            }
            (Some(Value::Array(original)), Value::Array(patch)) => {
                Some(Value::Array(match strategy(&self.path) {
                    None => patch.iter().filter_map(new_value).collect(),
                    Some(Strategy::Values) => values(original, patch),
                    Some(Strategy::By(name)) => self.list(original, patch, name),
                }))
            }
            (_, patch) => new_value(patch),
        }
    }

    fn list(&mut self, mut original: Vec<Value>, patch: &'a [Value], name: &'static str) -> Vec<Value> {
        let mut items: Vec<&'a Value> = Vec::new();
        let mut replaces = false;
        for item in patch {
            match item.get(PATCH).and_then(Value::as_str) {
                None => items.push(item),
                Some("replace") => replaces = true,
                Some(_) => original.retain(|other| other.get(name) != item.get(name)),
            }
        }
        if replaces {
            return items.into_iter().filter_map(new_value).collect();
        }
        let order: Vec<Option<Value>> = original.iter().map(|item| item.get(name).cloned()).collect();
        let mut merged = original;
        for &item in &items {
            let found = merged.iter_mut().find(|other| other.get(name) == item.get(name));
            match (found, item) {
                (Some(Value::Object(found)), Value::Object(item)) => self.map(found, item),
                _ => merged.extend(new_value(item)),
            }
        }
        let is_patched = |item: &Value| items.iter().any(|other| other.get(name) == item.get(name));
        let (patched, kept): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(is_patched);
        let patched =
            in_order(patched, |item| items.iter().position(|other| other.get(name) == item.get(name)));
        interleave(kept, patched, |item| order.iter().position(|key| key.as_ref() == item.get(name)))
    }
}

fn is_one_of(directive: &Value, known: &[&str]) -> bool {
    directive.as_str().is_some_and(|directive| known.contains(&directive))
}

fn values(original: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    let order = original.clone();
    let mut unique: Vec<Value> = Vec::new();
    for value in original.into_iter().chain(patch.iter().cloned()) {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    let (patched, kept): (Vec<Value>, Vec<Value>) =
        unique.into_iter().partition(|value| patch.contains(value));
    let patched = in_order(patched, |value| patch.iter().position(|other| other == value));
    interleave(kept, patched, |value| order.iter().position(|other| other == value))
}

/// By the patch's order.
fn in_order<T>(mut items: Vec<T>, place: impl Fn(&T) -> Option<usize>) -> Vec<T> {
    items.sort_by_key(|item| place(item));
    items
}

/// Puts what was `kept` between what was `patched`, as far as `place` in the original list tells where (`mergeSortedSlice`):
/// what is new comes before all that it has no place against.
fn interleave<T>(kept: Vec<T>, patched: Vec<T>, place: impl Fn(&T) -> Option<usize>) -> Vec<T> {
    let mut kept = kept.into_iter().peekable();
    let mut merged = Vec::new();
    for next in patched {
        if let Some(at) = place(&next) {
            while let Some(before) = kept.next_if(|item| place(item).is_some_and(|item| item < at)) {
                merged.push(before);
            }
        }
        merged.push(next);
    }
    merged.extend(kept);
    merged
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN || key.starts_with(DELETE) || key.starts_with(ORDER)
}

/// What is put where nothing was. `None`: it was only there to delete something.
fn new_value(patch: &Value) -> Option<Value> {
    match patch {
        Value::Object(map) if map.get(PATCH).is_some_and(|directive| directive == "delete") => None,
        Value::Object(map) => Some(Value::Object(without_directives(map))),
        Value::Array(list) => {
            let plain = list.iter().filter(|item| item.get(PATCH).is_none());
            Some(Value::Array(plain.filter_map(new_value).collect()))
        }
        other => Some(other.clone()),
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let plain = map.iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
    plain.filter_map(|(key, value)| Some((key.clone(), new_value(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod: &Value, patch: &Value, expected: &Value) {
        let mut merged = pod.clone();
        merge(&mut merged, patch).unwrap();
        assert_eq!(merged, *expected, "{pod} + {patch}");
        merge(&mut merged, patch).unwrap();
        assert_eq!(merged, *expected, "twice: {pod} + {patch}");
    }

    #[test]
    fn maps_are_merged_and_null_deletes() {
        check(
            &json!({ "a": { "b": 1, "c": 2 } }),
            &json!({ "a": { "b": 3, "d": 4 } }),
            &json!({ "a": { "b": 3, "c": 2, "d": 4 } }),
        );
        check(&json!({ "a": { "b": 1 } }), &json!({ "a": { "b": null, "c": null } }), &json!({ "a": {} }));
        check(&json!({}), &json!({ "a": { "b": null, "c": 1 } }), &json!({ "a": { "c": 1 } }));
        check(&json!({ "a": "x" }), &json!({ "a": { "b": 1 } }), &json!({ "a": { "b": 1 } }));
        check(&json!({ "a": null }), &json!({ "a": [1] }), &json!({ "a": [1] }));
        check(&json!({ "a": [1, 2] }), &json!({ "a": [3] }), &json!({ "a": [3] }));
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let pod = json!({ "a": { "b": 1, "c": 2 } });
        check(&pod, &json!({ "a": { "$patch": "replace", "d": 1 } }), &json!({ "a": { "d": 1 } }));
        check(&pod, &json!({ "a": { "$patch": "delete" } }), &json!({ "a": {} }));
        check(&json!({}), &json!({ "a": { "$patch": "delete" } }), &json!({}));
        check(&json!({}), &json!({ "a": { "$patch": "replace", "d": 1 } }), &json!({ "a": { "d": 1 } }));
        check(&pod, &json!({ "a": { "$retainKeys": ["b"], "b": 5 } }), &json!({ "a": { "b": 5 } }));
        let pod = json!({ "metadata": { "finalizers": ["a", "b"] } });
        check(
            &pod,
            &json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"] } }),
            &json!({ "metadata": { "finalizers": ["b"] } }),
        );
        check(
            &pod,
            &json!({ "metadata": { "finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"] } }),
            &json!({ "metadata": { "finalizers": ["c", "b"] } }),
        );
    }

    #[test]
    fn lists_with_a_key_are_merged_by_it_and_new_ones_come_first() {
        let pod = json!({ "spec": { "containers": [
            { "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }] },
            { "name": "b", "image": "2" },
        ] } });
        check(
            &pod,
            &json!({ "spec": { "containers": [{ "name": "a", "env": [{ "name": "Y", "value": "2" }, { "name": "X", "value": "3" }] }] } }),
            &json!({ "spec": { "containers": [
                { "name": "a", "image": "1", "env": [{ "name": "Y", "value": "2" }, { "name": "X", "value": "3" }] },
                { "name": "b", "image": "2" },
            ] } }),
        );
        check(
            &pod,
            &json!({ "spec": { "containers": [{ "name": "s", "image": "3" }, { "name": "b", "image": "4" }] } }),
            &json!({ "spec": { "containers": [
                { "name": "s", "image": "3" },
                { "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }] },
                { "name": "b", "image": "4" },
            ] } }),
        );
        check(
            &pod,
            &json!({ "spec": { "containers": [{ "name": "a", "$patch": "delete" }] } }),
            &json!({ "spec": { "containers": [{ "name": "b", "image": "2" }] } }),
        );
        check(
            &pod,
            &json!({ "spec": { "containers": [{ "$patch": "replace" }, { "name": "c" }] } }),
            &json!({ "spec": { "containers": [{ "name": "c" }] } }),
        );
    }

    #[test]
    fn every_merged_list_of_a_pod_has_its_key() {
        for (list, key) in [
            (&["spec", "volumes"][..], "name"),
            (&["spec", "imagePullSecrets"], "name"),
            (&["spec", "hostAliases"], "ip"),
            (&["spec", "topologySpreadConstraints"], "topologyKey"),
            (&["spec", "schedulingGates"], "name"),
            (&["metadata", "ownerReferences"], "uid"),
        ] {
            let place = |value: Value| list.iter().rev().fold(value, |value, key| json!({ (*key): value }));
            check(
                &place(json!([{ (key): "old", "a": 1 }])),
                &place(json!([{ (key): "old", "b": 2 }])),
                &place(json!([{ (key): "old", "a": 1, "b": 2 }])),
            );
        }
        for (list, key) in
            [("ports", "containerPort"), ("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")]
        {
            let place =
                |value: Value| json!({ "spec": { "initContainers": [{ "name": "c", (list): value }] } });
            check(
                &place(json!([{ (key): 80, "a": 1 }])),
                &place(json!([{ (key): 80, "b": 2 }])),
                &place(json!([{ (key): 80, "a": 1, "b": 2 }])),
            );
        }
        // Replaced as a whole.
        let tolerations = |key: &str| json!({ "spec": { "tolerations": [{ "key": key }] } });
        check(&tolerations("a"), &tolerations("b"), &tolerations("b"));
    }

    #[test]
    fn what_has_no_meaning_is_told_where() {
        let pod = json!({ "spec": { "containers": [{ "name": "a" }], "x": { "y": 1 } }, "metadata": { "finalizers": ["a"] } });
        for (patch, field) in [
            (json!("text"), "spec.patch"),
            (json!({ "$patch": "merge" }), "spec.patch"),
            (json!({ "spec": { "containers": [{ "image": "x" }] } }), "spec.patch.spec.containers"),
            (json!({ "spec": { "containers": ["x"] } }), "spec.patch.spec.containers"),
            (json!({ "spec": { "containers": [{ "$patch": "delete" }] } }), "spec.patch.spec.containers"),
            (json!({ "spec": { "$setElementOrder/containers": [] } }), "spec.patch.spec"),
            (json!({ "spec": { "x": { "$retainKeys": ["y"], "z": 1 } } }), "spec.patch.spec.x"),
            (json!({ "metadata": { "finalizers": [{}] } }), "spec.patch.metadata.finalizers"),
            (json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": 1 } }), "spec.patch.metadata"),
        ] {
            let mut merged = pod.clone();
            assert_eq!(merge(&mut merged, &patch).unwrap_err().field, field, "{patch}");
            assert_eq!(merged, pod);
        }
    }
}

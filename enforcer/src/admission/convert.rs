//! From cpu and memory to what batch and mid pods are given instead (koordinator
//! `pkg/webhook/pod/mutating/cluster_colocation_profile.go`).
#![deny(clippy::disallowed_methods)]

use serde_json::{Map, Value};

use super::{
    json::{Malformed, map_in, object},
    pod::{CONTAINERS, containers, quantity_of, spec},
};
use crate::cluster::{
    class::Priority,
    protocol::{BATCH_CPU, BATCH_MEMORY, MID_CPU, MID_MEMORY},
    quantity,
};

/// What a class calls its cpu and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Thousandths of a CPU, as a plain integer.
    pub cpu: &'static str,
    pub memory: &'static str,
}

impl Names {
    /// `None`: pods of this class keep cpu and memory.
    pub const fn of(class: Priority) -> Option<Self> {
        match class {
            Priority::Batch => Some(Self { cpu: BATCH_CPU, memory: BATCH_MEMORY }),
            Priority::Mid => Some(Self { cpu: MID_CPU, memory: MID_MEMORY }),
            Priority::Free | Priority::Prod => None,
        }
    }
}

/// Replaces cpu and memory in containers, init containers and the overhead. A limit without a request becomes one, because
/// Kubernetes does so for cpu and memory alone. Whether anything was replaced.
///
/// # Errors
/// Where the pod is malformed.
pub fn convert(pod: &mut Value, names: Names) -> Result<bool, Malformed> {
    // Looked over first, so that no pod is left half converted.
    for key in CONTAINERS {
        containers(pod, key)?;
    }
    if spec(pod)?.is_none() {
        return Ok(false);
    }
    let mut changed = false;
    let spec = map_in(object(pod)?, "spec", "spec")?;
    for key in CONTAINERS {
        let Some(Value::Array(list)) = spec.get_mut(key) else { continue };
        for (at, container) in list.iter_mut().enumerate() {
            let field = format!("spec.{key}[{at}].resources");
            let Some(resources) = container.get_mut("resources").filter(|resources| !resources.is_null())
            else {
                continue;
            };
            changed |= convert_container(resources, names, &field)?;
        }
    }
    if let Some(Value::Object(overhead)) = spec.get_mut("overhead") {
        changed |= replace(overhead, names, "spec.overhead")?;
    }
    Ok(changed)
}

fn convert_container(resources: &mut Value, names: Names, field: &str) -> Result<bool, Malformed> {
    let Value::Object(resources) = resources else { return Err(Malformed::new(field, "must be a map")) };
    let mut changed = false;
    for key in ["requests", "limits"] {
        let field = format!("{field}.{key}");
        match resources.get_mut(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(list)) => changed |= replace(list, names, &field)?,
            Some(_) => return Err(Malformed::new(field, "must be a map")),
        }
    }
    for name in [names.cpu, names.memory] {
        let limit = resources.get("limits").and_then(|limits| limits.get(name)).cloned();
        let Some(limit) = limit.filter(|limit| !limit.is_null()) else { continue };
        let requests = map_in(resources, "requests", &format!("{field}.requests"))?;
        if requests.get(name).is_none_or(Value::is_null) {
            requests.insert(name.to_owned(), limit);
            changed = true;
        }
    }
    Ok(changed)
}

fn replace(list: &mut Map<String, Value>, names: Names, field: &str) -> Result<bool, Malformed> {
    let mut changed = false;
    if let Some(cpu) = list.get("cpu").filter(|cpu| !cpu.is_null()) {
        let field = format!("{field}[cpu]");
        let milli = quantity::milli(&quantity_of(cpu, &field)?)
            .map_err(|err| Malformed::new(field, err.to_string()))?;
        list.remove("cpu");
        list.insert(names.cpu.to_owned(), Value::String(milli.to_string()));
        changed = true;
    }
    if let Some(memory) = list.get("memory").filter(|memory| !memory.is_null()) {
        let field = format!("{field}[memory]");
        let quantity = quantity_of(memory, &field)?;
        quantity::whole(&quantity).map_err(|err| Malformed::new(field, err.to_string()))?;
        list.remove("memory");
        list.insert(names.memory.to_owned(), Value::String(quantity.0));
        changed = true;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BATCH: Names = Names { cpu: BATCH_CPU, memory: BATCH_MEMORY };

    fn converted(resources: &Value, names: Names) -> Value {
        let mut pod = json!({ "spec": { "containers": [{ "name": "a", "resources": resources }] } });
        convert(&mut pod, names).unwrap();
        pod["spec"]["containers"][0]["resources"].take()
    }

    #[test]
    fn cpu_becomes_thousandths_and_memory_stays_as_it_is() {
        for (cpu, milli) in [
            (json!("1"), "1000"),
            (json!(2), "2000"),
            (json!(0.5), "500"),
            (json!("250m"), "250"),
            (json!("1.5"), "1500"),
            (json!("100.5m"), "101"),
            (json!("100u"), "1"),
            (json!("0"), "0"),
            (json!("2k"), "2000000"),
        ] {
            let found = converted(&json!({ "requests": { "cpu": cpu } }), BATCH);
            assert_eq!(found, json!({ "requests": { (BATCH_CPU): milli } }), "{cpu}");
        }
        for memory in ["3456Mi", "3Gi", "1073741824", "1.5G"] {
            let found = converted(&json!({ "requests": { "memory": memory } }), BATCH);
            assert_eq!(found, json!({ "requests": { (BATCH_MEMORY): memory } }));
        }
    }

    #[test]
    fn every_list_of_a_container_is_converted_and_other_resources_stay() {
        for (before, after) in [
            (json!({}), json!({})),
            (json!(null), json!(null)),
            (json!({ "requests": null, "limits": {} }), json!({ "requests": null, "limits": {} })),
            (
                json!({ "requests": { "cpu": "1", "nvidia.com/gpu": "1" }, "limits": { "cpu": "2", "nvidia.com/gpu": "1" } }),
                json!({ "requests": { (BATCH_CPU): "1000", "nvidia.com/gpu": "1" },
                    "limits": { (BATCH_CPU): "2000", "nvidia.com/gpu": "1" } }),
            ),
            // A limit alone is a request, too.
            (
                json!({ "limits": { "cpu": "2", "memory": "1Gi" } }),
                json!({ "limits": { (BATCH_CPU): "2000", (BATCH_MEMORY): "1Gi" },
                    "requests": { (BATCH_CPU): "2000", (BATCH_MEMORY): "1Gi" } }),
            ),
            // A request alone has no limit.
            (json!({ "requests": { "cpu": "1" } }), json!({ "requests": { (BATCH_CPU): "1000" } })),
            // Written for batch already; the limit's request is still missing.
            (
                json!({ "limits": { (BATCH_CPU): "700" }, "requests": {} }),
                json!({ "limits": { (BATCH_CPU): "700" }, "requests": { (BATCH_CPU): "700" } }),
            ),
            // Both: cpu wins.
            (
                json!({ "requests": { "cpu": "1", (BATCH_CPU): "700" } }),
                json!({ "requests": { (BATCH_CPU): "1000" } }),
            ),
        ] {
            assert_eq!(converted(&before, BATCH), after, "{before}");
        }
    }

    #[test]
    fn init_containers_and_overhead_are_converted_and_the_pods_own_resources_are_not() {
        let mut pod = json!({ "spec": {
            "initContainers": [{ "name": "i", "resources": { "requests": { "cpu": "2" } } }],
            "containers": [{ "name": "c" }],
            "ephemeralContainers": [{ "name": "e", "resources": { "requests": { "cpu": "2" } } }],
            "overhead": { "cpu": "250m", "memory": "64Mi" },
            "resources": { "requests": { "cpu": "1" } },
        } });
        let mid = Names::of(Priority::Mid).unwrap();
        assert_eq!(convert(&mut pod, mid), Ok(true));
        assert_eq!(
            pod["spec"],
            json!({
                "initContainers": [{ "name": "i", "resources": { "requests": { (MID_CPU): "2000" } } }],
                "containers": [{ "name": "c" }],
                "ephemeralContainers": [{ "name": "e", "resources": { "requests": { "cpu": "2" } } }],
                "overhead": { (MID_CPU): "250", (MID_MEMORY): "64Mi" },
                "resources": { "requests": { "cpu": "1" } },
            })
        );
        assert_eq!(convert(&mut pod, mid), Ok(false), "nothing is left");
    }

    #[test]
    fn only_batch_and_mid_have_names() {
        assert_eq!(Priority::ALL.map(|class| Names::of(class).is_some()), [false, true, true, false]);
    }
}

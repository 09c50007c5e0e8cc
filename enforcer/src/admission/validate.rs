//! Which pods are refused (koordinator `pkg/webhook/pod/validating/cluster_colocation_profile.go`), and what is worth a warning.
//!
//! On an update, what the pod broke already is a warning only: neither its labels nor its resources could be mended, and who takes
//! a finalizer off it must not be stopped.
#![deny(clippy::disallowed_methods)]

use std::fmt;

use serde_json::Value;

use super::{
    json::{Malformed, get, strings},
    pod::{CONTAINERS, LABELS, amount, containers, priority, qos, requested_milli, resources},
};
use crate::cluster::{
    class::{Priority, Qos},
    protocol::{BATCH_CPU, BATCH_MEMORY, MID_CPU, PRIORITY, QOS_CLASS},
};

/// Who asks for less than this many thousandths of a CPU means CPUs.
const MILLI_MIN: i64 = 10;

/// What is allowed beyond Koordinator's defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The label `koordinator.sh/priority` of a pod may change (Koordinator's gate `ColocationProfileSkipValidatingPriority`).
    pub priority_may_change: bool,
}

/// A rule that a pod breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

/// What is to be said of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Any of them refuses the pod.
    pub violations: Vec<Violation>,
    /// Whole sentences.
    pub warnings: Vec<String>,
}

/// Looks a pod over: one to be created, or one that is to become of `old`.
///
/// # Errors
/// Where a pod is malformed.
pub fn validate(new: &Value, old: Option<&Value>, options: Options) -> Result<Findings, Malformed> {
    let mut findings = Findings { violations: broken(new)?, warnings: warnings(new)? };
    let Some(old) = old else { return Ok(findings) };
    let before = broken(old)?;
    let is_going = get(new, "metadata").and_then(|metadata| get(metadata, "deletionTimestamp")).is_some();
    let (known, news): (Vec<_>, Vec<_>) =
        findings.violations.into_iter().partition(|violation| is_going || before.contains(violation));
    findings.violations = news;
    findings.warnings.extend(known.iter().map(ToString::to_string));
    findings.violations.extend(changed(new, old, options)?);
    Ok(findings)
}

/// What may not change in a pod's life.
fn changed(new: &Value, old: &Value, options: Options) -> Result<Vec<Violation>, Malformed> {
    let mut found = Vec::new();
    let mut immutable = |field: &str, before: &str, after: &str| {
        if before != after {
            let what = format!("cannot change from {before:?} to {after:?} while the pod lives");
            found.push(Violation { field: field.to_owned(), what });
        }
    };
    let label = |class: Option<Qos>| class.map_or("", Qos::label);
    immutable(&field_of_label(QOS_CLASS), label(qos(old)?), label(qos(new)?));
    let label = |class: Option<Priority>| class.map_or("", Priority::label);
    immutable("spec.priority", label(priority(old)?), label(priority(new)?));
    if !options.priority_may_change {
        let text = |pod: &Value| Ok(strings(pod, LABELS)?.remove(PRIORITY).unwrap_or_default());
        immutable(&field_of_label(PRIORITY), &text(old)?, &text(new)?);
    }
    Ok(found)
}

fn field_of_label(key: &str) -> String {
    format!("metadata.labels[{key}]")
}

fn broken(pod: &Value) -> Result<Vec<Violation>, Malformed> {
    let (qos, priority) = (qos(pod)?, priority(pod)?);
    let mut found = Vec::new();
    let mut violation = |field: String, what: String| found.push(Violation { field, what });
    let asks_for_batch = requested_milli(pod, BATCH_CPU)? != 0 || requested_milli(pod, BATCH_MEMORY)? != 0;
    if asks_for_batch && qos != Some(Qos::Be) {
        violation(
            field_of_label(QOS_CLASS),
            format!("must be BE, because the pod requests {BATCH_CPU} or {BATCH_MEMORY}"),
        );
    }
    let is_forbidden = match qos {
        Some(Qos::Be) => matches!(priority, None | Some(Priority::Prod)),
        Some(Qos::Lsr) => !matches!(priority, Some(Priority::Prod)),
        Some(Qos::Lse | Qos::Ls | Qos::System) | None => false,
    };
    if let (true, Some(qos)) = (is_forbidden, qos) {
        let class = priority.map_or("no class of priority", Priority::label);
        let needs = if qos == Qos::Be { "koord-batch, koord-mid or koord-free" } else { "koord-prod" };
        violation(
            "spec.priorityClassName".to_owned(),
            format!("{QOS_CLASS}={} cannot go with {class}: it needs {needs}", qos.label()),
        );
    }
    if let Some(qos) = qos.filter(|qos| matches!(qos, Qos::Lsr | Qos::Lse)) {
        let milli = requested_milli(pod, "cpu")?;
        let what = match milli {
            0 => Some(format!("a pod with {QOS_CLASS}={} must request cpu", qos.label())),
            _ if milli % 1_000 != 0 => {
                Some(format!("a pod with {QOS_CLASS}={} must request whole CPUs, not {milli}m", qos.label()))
            }
            _ => None,
        };
        if let Some(what) = what {
            violation("spec.containers[*].resources.requests[cpu]".to_owned(), what);
        }
    }
    Ok(found)
}

fn warnings(pod: &Value) -> Result<Vec<String>, Malformed> {
    let mut found = Vec::new();
    let mut asks_for_cpu = None;
    for list in CONTAINERS {
        for (field, container) in containers(pod, list)? {
            for (field, resources) in resources(container, &field)? {
                for name in [BATCH_CPU, MID_CPU] {
                    let whole = amount(resources, name, &field)? / 1_000;
                    let is_there = amount(resources, name, &field)? > 0;
                    if is_there && whole < MILLI_MIN {
                        found.push(format!(
                            "{field}[{name}] is {}: it counts thousandths of a CPU; for CPUs write 1000 times as much",
                            resources[name].as_str().map_or_else(|| resources[name].to_string(), str::to_owned),
                        ));
                    }
                }
                if amount(resources, "cpu", &field)? > 0 || amount(resources, "memory", &field)? > 0 {
                    asks_for_cpu.get_or_insert(field);
                }
            }
        }
    }
    if let Some(field) = asks_for_cpu.filter(|_| qos(pod).is_ok_and(|qos| qos == Some(Qos::Be))) {
        found.push(format!(
            "{field} has cpu or memory in a pod with {QOS_CLASS}=BE: it stays outside the best-effort cgroup and is not \
             held back; was it converted?"
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod by its class, its priority and the requests of its only container.
    fn pod(qos: &str, priority: i64, requests: &Value) -> Value {
        let labels = if qos.is_empty() { json!({}) } else { json!({ (QOS_CLASS): qos }) };
        json!({
            "metadata": { "labels": labels },
            "spec": { "priority": priority, "containers": [{ "name": "c", "resources": { "requests": requests } }] },
        })
    }

    fn refused(new: &Value, old: Option<&Value>) -> Vec<String> {
        let findings = validate(new, old, Options::default()).unwrap();
        findings.violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn pairs_of_service_and_priority_are_forbidden_as_in_koordinator() {
        let cpu = json!({ "cpu": "1" });
        for (qos, allowed) in [
            ("BE", &[3_500, 5_500, 7_500][..]),
            ("LSR", &[9_500]),
            ("LSE", &[0, 3_500, 5_500, 7_500, 9_500]),
            ("LS", &[0, 3_500, 5_500, 7_500, 9_500]),
            ("SYSTEM", &[0, 3_500, 5_500, 7_500, 9_500]),
            ("", &[0, 3_500, 5_500, 7_500, 9_500]),
        ] {
            for priority in [0, 3_500, 5_500, 7_500, 9_500] {
                let found = refused(&pod(qos, priority, &cpu), None);
                assert_eq!(found.is_empty(), allowed.contains(&priority), "{qos} {priority}: {found:?}");
            }
        }
    }

    #[test]
    fn batch_resources_need_the_label() {
        for (qos, priority, requests, is_refused) in [
            ("BE", 5_500, json!({ (BATCH_CPU): "1000" }), false),
            ("", 5_500, json!({ (BATCH_CPU): "1000" }), true),
            ("LS", 5_500, json!({ (BATCH_MEMORY): "1Gi" }), true),
            ("", 5_500, json!({ (BATCH_CPU): "0" }), false),
            ("", 5_500, json!({ (MID_CPU): "1000" }), false),
        ] {
            let found = refused(&pod(qos, priority, &requests), None);
            assert_eq!(!found.is_empty(), is_refused, "{qos} {requests} {found:?}");
        }
    }

    #[test]
    fn reserved_cpus_are_whole() {
        for qos in ["LSR", "LSE"] {
            for (cpu, is_refused) in [
                (json!("2"), false),
                (json!(1), false),
                (json!("1500m"), true),
                (json!("0"), true),
                (json!("0.5"), true),
            ] {
                let found = refused(&pod(qos, 9_500, &json!({ "cpu": cpu })), None);
                assert_eq!(!found.is_empty(), is_refused, "{qos} {cpu} {found:?}");
            }
            assert_eq!(refused(&pod(qos, 9_500, &json!({})), None).len(), 1);
        }
    }

    #[test]
    fn classes_are_for_life() {
        let batch = json!({ (BATCH_CPU): "1000" });
        let old = pod("BE", 5_500, &batch);
        assert_eq!(refused(&old, Some(&old)), [""; 0]);
        assert_eq!(refused(&pod("BE", 5_600, &batch), Some(&old)), [""; 0], "the same band");
        assert_eq!(refused(&pod("BE", 7_500, &batch), Some(&old)), ["spec.priority"]);
        let ls = refused(&pod("LS", 5_500, &batch), Some(&old));
        assert!(ls.contains(&field_of_label(QOS_CLASS)), "{ls:?}");
        let mut new = old.clone();
        new["metadata"]["labels"][PRIORITY] = json!("7");
        assert_eq!(refused(&new, Some(&old)), [field_of_label(PRIORITY)]);
        let options = Options { priority_may_change: true };
        assert_eq!(validate(&new, Some(&old), options).unwrap().violations, []);
    }

    #[test]
    fn what_was_broken_before_or_is_going_is_let_pass_with_a_warning() {
        let broken = pod("", 5_500, &json!({ (BATCH_CPU): "1000" }));
        assert_eq!(refused(&broken, None).len(), 1);
        let findings = validate(&broken, Some(&broken), Options::default()).unwrap();
        assert_eq!((findings.violations.len(), findings.warnings.len()), (0, 1));
        let whole = pod("LSR", 9_500, &json!({ "cpu": "1" }));
        let mut going = pod("LSR", 9_500, &json!({ "cpu": "500m" }));
        assert_eq!(refused(&going, Some(&whole)).len(), 1);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(refused(&going, Some(&whole)).len(), 0);
    }

    #[test]
    fn batch_cpu_in_cpus_by_mistake_is_warned_of() {
        for (value, warns) in [
            (json!("1"), true),
            (json!(8), true),
            (json!("9"), true),
            (json!("500m"), true),
            (json!("10"), false),
            (json!("1000"), false),
            (json!("1k"), false),
            (json!("0"), false),
        ] {
            let findings =
                validate(&pod("BE", 5_500, &json!({ (BATCH_CPU): value })), None, Options::default())
                    .unwrap();
            assert_eq!(!findings.warnings.is_empty(), warns, "{value} {findings:?}");
            assert!(findings.violations.is_empty());
        }
    }

    #[test]
    fn a_best_effort_pod_with_cpu_is_warned_of() {
        let findings = validate(&pod("BE", 5_500, &json!({ "cpu": "1" })), None, Options::default()).unwrap();
        assert_eq!(findings.warnings.len(), 1);
    }
}

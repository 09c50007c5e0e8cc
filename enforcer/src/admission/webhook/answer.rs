//! From an `AdmissionReview` to the one that answers it. No IO.

use bytes::Bytes;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use serde_json::Value;

use super::{
    super::{
        known::Known,
        mutate::{DRAWS, Resources, Verdict, mutate},
        validate::{self, validate},
    },
    metrics::{Answer, Metrics},
};

/// Longer ones may be cut off by the API server.
const WARNING_MAX: usize = 250;

/// A request about a pod, as it came.
pub struct Asked {
    request: AdmissionRequest<DynamicObject>,
    /// Untouched, so that a patch says nothing about what it does not change.
    pod: Option<Value>,
    old: Option<Value>,
}

/// A request that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("an AdmissionReview without a request")]
    Empty,
}

impl Asked {
    /// # Errors
    /// [`Unreadable`].
    pub fn read(body: &Bytes) -> Result<Self, Unreadable> {
        let mut value: Value = serde_json::from_slice(body)?;
        let taken =
            |key: &str| value.pointer(&format!("/request/{key}")).filter(|pod| !pod.is_null()).cloned();
        let (pod, old) = (taken("object"), taken("oldObject"));
        if let Some(request) = value.get_mut("request").and_then(Value::as_object_mut) {
            request.insert("object".to_owned(), Value::Null);
            request.insert("oldObject".to_owned(), Value::Null);
        }
        let review: AdmissionReview<DynamicObject> = serde_json::from_value(value)?;
        let request = review.try_into().map_err(|_| Unreadable::Empty)?;
        Ok(Self { request, pod, old })
    }

    /// The pod's namespace: the one of the request, for pods that do not name theirs.
    pub fn namespace(&self) -> &str {
        self.request.namespace.as_deref().unwrap_or_default()
    }

    /// A pod that is to be created, or changed where `with_updates`; no part of one, such as its status.
    fn pod(&self, with_updates: bool) -> Option<&Value> {
        let request = &self.request;
        let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
        let is_whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
        let is_asked = match request.operation {
            Operation::Create => true,
            Operation::Update => with_updates,
            Operation::Delete | Operation::Connect => false,
        };
        self.pod.as_ref().filter(|_| is_pod && is_whole && is_asked)
    }

    /// Whether anything has to be known of the cluster to answer.
    pub fn needs_knowledge(&self) -> bool {
        self.pod(false).is_some()
    }

    pub fn let_pass(&self) -> AdmissionResponse {
        AdmissionResponse::from(&self.request)
    }

    /// What profiles make of the pod.
    pub fn mutate(&self, known: &Known<'_>, metrics: &Metrics) -> (AdmissionResponse, Answer) {
        let response = self.let_pass();
        let Some(pod) = self.pod(false) else { return (response, Answer::Ignored) };
        let outcome = match mutate(pod, known, &mut || fastrand::u8(0..DRAWS)) {
            Ok(outcome) => outcome,
            Err(refusal) => {
                tracing::warn!(
                    namespace = self.namespace(),
                    name = self.request.name,
                    "a pod is refused: {refusal}"
                );
                return (response.deny(refusal), Answer::Refused);
            }
        };
        for (name, verdict) in &outcome.verdicts {
            match verdict {
                Verdict::Applied(_) => metrics.profile(name, "applied"),
                Verdict::Skipped(_) => metrics.profile(name, "skipped"),
                Verdict::Unusable(..) | Verdict::NamespaceUnknown(_) => metrics.profile(name, "unusable"),
                Verdict::NamespaceUnmet(_) | Verdict::PodUnmet(_) => {}
            }
        }
        if let Resources::Converted(class) = outcome.resources {
            metrics.converted(class.label());
        }
        let mut response = with_warnings(response, outcome.warnings.clone());
        let patch = outcome.patch(pod);
        if patch.0.is_empty() {
            return (response, Answer::Unchanged);
        }
        response = response.with_patch(patch).expect("BUG: a patch is plain data");
        (response, Answer::Changed)
    }

    /// Whether the pod keeps to the rules.
    pub fn validate(&self, options: validate::Options) -> (AdmissionResponse, Answer) {
        let response = self.let_pass();
        let Some(pod) = self.pod(true) else { return (response, Answer::Ignored) };
        let findings = match validate(pod, self.old.as_ref(), options) {
            Ok(findings) => findings,
            Err(malformed) => return (response.deny(malformed), Answer::Refused),
        };
        let response = with_warnings(response, findings.warnings);
        if findings.violations.is_empty() {
            return (response, Answer::Unchanged);
        }
        let texts: Vec<String> = findings.violations.iter().map(ToString::to_string).collect();
        (response.deny(texts.join("; ")), Answer::Refused)
    }
}

fn with_warnings(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    let shortened = |text: String| {
        if text.len() <= WARNING_MAX {
            text
        } else {
            text.chars().take(WARNING_MAX - 3).collect::<String>() + "..."
        }
    };
    if !warnings.is_empty() {
        response.warnings = Some(warnings.into_iter().map(shortened).collect());
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::admission::{
        known::{Namespace, PriorityClass},
        profile::ClusterColocationProfile,
        tests::properties::any_json,
    };

    fn profile() -> ClusterColocationProfile {
        serde_json::from_value(json!({
            "apiVersion": "config.koordinator.sh/v1alpha1", "kind": "ClusterColocationProfile",
            "metadata": { "name": "p" },
            "spec": { "selector": { "matchLabels": { "app": "spark" } }, "priorityClassName": "koord-batch", "qosClass": "BE" },
        }))
        .unwrap()
    }

    fn known(profile: &ClusterColocationProfile) -> Known<'_> {
        let class = PriorityClass { value: 5_000, preemption_policy: "Never".to_owned() };
        Known {
            profiles: vec![profile],
            namespace: Namespace::unknown("jobs"),
            priority_classes: BTreeMap::from([("koord-batch".to_owned(), class)]),
            skip_resources: false,
        }
    }

    fn review(operation: &str, resource: &str, sub_resource: &str, pod: &Value, old: &Value) -> Value {
        json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "7", "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": resource }, "subResource": sub_resource,
                "namespace": "jobs", "operation": operation, "userInfo": {}, "object": pod, "oldObject": old,
                "dryRun": false, "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
            },
        })
    }

    fn asked(operation: &str, resource: &str, sub_resource: &str, pod: &Value, old: &Value) -> Asked {
        let review = review(operation, resource, sub_resource, pod, old);
        Asked::read(&Bytes::from(review.to_string())).unwrap()
    }

    fn pod(app: &str) -> Value {
        json!({
            "metadata": { "generateName": "a-", "creationTimestamp": null, "labels": { "app": app } },
            "spec": { "priority": 0, "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
        })
    }

    #[test]
    fn a_patch_makes_of_the_pod_what_mutation_made() {
        let (profile, metrics) = (profile(), Metrics::new());
        let mut pod = pod("spark");
        let (response, answer) =
            asked("CREATE", "pods", "", &pod, &json!(null)).mutate(&known(&profile), &metrics);
        assert_eq!((answer, response.allowed, response.uid.as_str()), (Answer::Changed, true, "7"));
        let patch: json_patch::Patch = serde_json::from_slice(&response.patch.clone().unwrap()).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({ "requests": { "kubernetes.io/batch-cpu": "1000" } })
        );
        assert_eq!(pod["metadata"]["creationTimestamp"], json!(null), "not said anything of");
        let text = serde_json::to_value(response.into_review()).unwrap();
        assert_eq!(
            (&text["apiVersion"], &text["response"]["patchType"]),
            (&json!("admission.k8s.io/v1"), &json!("JSONPatch"))
        );
        let rendered = metrics.render();
        assert!(
            rendered.contains(r#"enforcer_webhook_profiles_total{profile="p",verdict="applied"} 1"#),
            "{rendered}"
        );
        assert!(
            rendered.contains(r#"enforcer_webhook_converted_pods_total{class="koord-batch"} 1"#),
            "{rendered}"
        );
    }

    #[test]
    fn what_is_no_new_pod_passes_untouched() {
        let (profile, metrics) = (profile(), Metrics::new());
        for (operation, resource, sub_resource, app, expected) in [
            ("CREATE", "pods", "", "web", Answer::Unchanged),
            ("UPDATE", "pods", "", "spark", Answer::Ignored),
            ("DELETE", "pods", "", "spark", Answer::Ignored),
            ("CREATE", "pods", "binding", "spark", Answer::Ignored),
            ("CREATE", "deployments", "", "spark", Answer::Ignored),
        ] {
            let asked = asked(operation, resource, sub_resource, &pod(app), &json!(null));
            let (response, answer) = asked.mutate(&known(&profile), &metrics);
            assert_eq!(
                (answer, response.allowed, response.patch),
                (expected, true, None),
                "{operation} {resource}"
            );
        }
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let (mut profile, metrics) = (profile(), Metrics::new());
        profile.spec.priority_class_name = Some("gold".to_owned());
        let (response, answer) =
            asked("CREATE", "pods", "", &pod("spark"), &json!(null)).mutate(&known(&profile), &metrics);
        assert_eq!((answer, response.allowed), (Answer::Refused, false));
        assert!(response.result.message.contains("PriorityClass gold"), "{}", response.result.message);
        let mut be = pod("spark");
        be["metadata"]["labels"]["koordinator.sh/qosClass"] = json!("BE");
        let (response, answer) =
            asked("CREATE", "pods", "", &be, &json!(null)).validate(validate::Options::default());
        assert_eq!((answer, response.allowed), (Answer::Refused, false));
        assert!(
            response.result.message.contains("koordinator.sh/qosClass=BE"),
            "{}",
            response.result.message
        );
        let (response, answer) = asked("UPDATE", "pods", "", &be, &be).validate(validate::Options::default());
        assert_eq!((answer, response.allowed), (Answer::Unchanged, true), "it was so before");
        assert!(response.warnings.is_some());
    }

    #[test]
    fn what_is_no_review_is_told_so() {
        for body in ["", "{}", "[]", r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#] {
            assert!(Asked::read(&Bytes::from(body)).is_err(), "{body}");
        }
    }

    /// A review, of which something is replaced by anything.
    fn any_review() -> impl Strategy<Value = Vec<u8>> {
        let places = [
            "",
            "/request",
            "/request/object",
            "/request/oldObject",
            "/request/resource",
            "/request/operation",
        ];
        let places =
            places.into_iter().chain(["/request/options", "/request/userInfo", "/request/namespace"]);
        (proptest::sample::select(places.collect::<Vec<_>>()), any_json()).prop_map(|(place, json)| {
            let mut review = review("CREATE", "pods", "", &pod("spark"), &json!(null));
            *review.pointer_mut(place).unwrap() = json;
            review.to_string().into_bytes()
        })
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(
            mut body in prop_oneof![any_review(), proptest::collection::vec(any::<u8>(), 0..64)],
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3),
        ) {
            for (at, byte) in flips {
                let length = body.len().max(1);
                if let Some(flipped) = body.get_mut(at % length) {
                    *flipped = byte;
                }
            }
            if let Ok(asked) = Asked::read(&Bytes::from(body)) {
                asked.mutate(&known(&profile()), &Metrics::new());
                asked.validate(validate::Options::default());
            }
        }
    }
}

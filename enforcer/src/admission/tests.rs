//! What profiles make of pods, field by field and as a whole.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    json::Strings,
    known::{Known, Namespace, PriorityClass},
    mutate::{Draw, Outcome, Refusal, Resources, Verdict, mutate},
    profile::ClusterColocationProfile,
    record::RECORD,
    validate::{Findings, Options, validate},
};
use crate::cluster::{
    class::Priority,
    protocol::{BATCH_CPU, BATCH_MEMORY, EXTENDED_RESOURCE_SPEC, MID_CPU, MID_MEMORY},
};

fn profile(name: &str, spec: &Value) -> ClusterColocationProfile {
    serde_json::from_value(json!({
        "apiVersion": "config.koordinator.sh/v1alpha1", "kind": "ClusterColocationProfile",
        "metadata": { "name": name }, "spec": spec,
    }))
    .unwrap()
}

fn classes() -> BTreeMap<String, PriorityClass> {
    [("koord-prod", 9_000), ("koord-mid", 7_000), ("koord-batch", 5_000), ("koord-free", 3_000)]
        .map(|(name, value)| {
            let preemption_policy = "PreemptLowerPriority".to_owned();
            (name.to_owned(), PriorityClass { value, preemption_policy })
        })
        .into()
}

/// In namespace `jobs`, with its label `team=data`.
fn known(profiles: &[ClusterColocationProfile]) -> Known<'_> {
    Known {
        profiles: profiles.iter().collect(),
        namespace: Namespace::known("jobs", &[("team".to_owned(), "data".to_owned())].into()),
        priority_classes: classes(),
        skip_resources: false,
    }
}

fn never() -> u8 {
    panic!("nothing is to be drawn");
}

/// Mutates, and checks that doing it again changes nothing, whatever is drawn then.
fn outcome(pod: &Value, known: &Known<'_>, draw: u8) -> Outcome {
    let outcome = mutate(pod, known, &mut || draw).unwrap();
    for other in [0, 50, 99] {
        let again = mutate(&outcome.pod, known, &mut || other).unwrap();
        assert_eq!(again.pod, outcome.pod, "a second time, after {pod}");
        assert!(again.patch(&outcome.pod).0.is_empty());
    }
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &outcome.patch(pod)).unwrap();
    assert_eq!(patched, outcome.pod);
    outcome
}

fn mutated(pod: &Value, specs: &[Value]) -> Value {
    let profiles: Vec<_> =
        specs.iter().enumerate().map(|(at, spec)| profile(&format!("p{at}"), spec)).collect();
    outcome(pod, &known(&profiles), 0).pod
}

/// One that is neither batch nor mid, so that its resources stay.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "a", "namespace": "jobs", "labels": { "app": "x" }, "annotations": { "note": "y" } },
        "spec": {
            "schedulerName": "default-scheduler", "priority": 0, "fieldOfTomorrow": { "kept": [1, 2] },
            "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "1" } } }],
        },
        "status": {},
    })
}

#[test]
fn each_field_does_what_it_says() {
    for (spec, place, expected) in [
        (
            json!({ "labels": { "app": "z", "new": "1" } }),
            "/metadata/labels",
            json!({ "app": "z", "new": "1" }),
        ),
        (
            json!({ "annotations": { "note": "z", "new": "1" } }),
            "/metadata/annotations",
            json!({ "note": "z", "new": "1" }),
        ),
        (
            json!({ "labelKeysMapping": { "app": "copy" } }),
            "/metadata/labels",
            json!({ "app": "x", "copy": "x" }),
        ),
        (
            json!({ "labelKeysMapping": { "none": "copy" } }),
            "/metadata/labels",
            json!({ "app": "x", "copy": "" }),
        ),
        (
            json!({ "annotationKeysMapping": { "note": "copy" } }),
            "/metadata/annotations",
            json!({ "note": "y", "copy": "y" }),
        ),
        (
            json!({ "annotationKeysMapping": { "none": "copy" } }),
            "/metadata/annotations",
            json!({ "note": "y", "copy": "" }),
        ),
        (
            json!({ "labelSuffixes": { "app": "-s", "none": "-t" } }),
            "/metadata/labels",
            json!({ "app": "x-s" }),
        ),
        (json!({ "schedulerName": "koord-scheduler" }), "/spec/schedulerName", json!("koord-scheduler")),
        (json!({ "schedulerName": "" }), "/spec/schedulerName", json!("default-scheduler")),
        (
            json!({ "qosClass": "LS" }),
            "/metadata/labels",
            json!({ "app": "x", "koordinator.sh/qosClass": "LS" }),
        ),
        (json!({ "qosClass": "" }), "/metadata/labels", json!({ "app": "x" })),
        (json!({ "priorityClassName": "koord-prod" }), "/spec/priorityClassName", json!("koord-prod")),
        (json!({ "priorityClassName": "koord-prod" }), "/spec/priority", json!(9_000)),
        (
            json!({ "priorityClassName": "koord-prod" }),
            "/spec/preemptionPolicy",
            json!("PreemptLowerPriority"),
        ),
        (
            json!({ "koordinatorPriority": 1000 }),
            "/metadata/labels",
            json!({ "app": "x", "koordinator.sh/priority": "1000" }),
        ),
        (
            json!({ "koordinatorPriority": 0 }),
            "/metadata/labels",
            json!({ "app": "x", "koordinator.sh/priority": "0" }),
        ),
        (json!({ "patch": { "spec": { "hostNetwork": true } } }), "/spec/hostNetwork", json!(true)),
        (
            json!({ "patch": { "spec": { "containers": [{ "name": "c", "env": [{ "name": "E", "value": "1" }] }] } } }),
            "/spec/containers/0",
            json!({ "name": "c", "image": "i", "env": [{ "name": "E", "value": "1" }],
                "resources": { "requests": { "cpu": "1" } } }),
        ),
        (json!({}), "/spec/fieldOfTomorrow", json!({ "kept": [1, 2] })),
    ] {
        let mutated = mutated(&pod(), std::slice::from_ref(&spec));
        let mut found = mutated.pointer(place).cloned().unwrap_or_default();
        if let Value::Object(map) = &mut found {
            map.remove(RECORD);
        }
        assert_eq!(found, expected, "{spec}");
        assert_eq!(mutated["spec"]["fieldOfTomorrow"], json!({ "kept": [1, 2] }), "{spec}");
    }
}

#[test]
fn fields_of_a_profile_are_applied_in_koordinators_order() {
    let spec = json!({
        "labels": { "app": "first" },
        "labelKeysMapping": { "app": "copy" },
        "labelSuffixes": { "app": "-s", "copy": "-t" },
        "qosClass": "LS",
        "patch": { "metadata": { "labels": { "koordinator.sh/qosClass": "LSE" } } },
    });
    let labels = &mutated(&pod(), &[spec])["metadata"]["labels"];
    assert_eq!(*labels, json!({ "app": "first-s", "copy": "first-t", "koordinator.sh/qosClass": "LSE" }));
}

#[test]
fn profiles_are_applied_by_name_and_the_last_one_has_its_way() {
    let profiles = [
        profile("b", &json!({ "labels": { "app": "b", "b": "1" }, "koordinatorPriority": 2 })),
        profile("a", &json!({ "labels": { "app": "a", "a": "1" }, "koordinatorPriority": 1 })),
        profile("B", &json!({ "labels": { "app": "B" } })),
    ];
    let outcome = outcome(&pod(), &known(&profiles), 0);
    assert_eq!(outcome.verdicts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["B", "a", "b"]);
    let labels = &outcome.pod["metadata"]["labels"];
    assert_eq!(*labels, json!({ "app": "b", "a": "1", "b": "1", "koordinator.sh/priority": "2" }));
}

#[test]
fn selectors_decide_on_the_pod_as_it_came() {
    let selecting = |key: &str, value: &str| json!({ "matchLabels": { (key): value } });
    for (spec, is_selected) in [
        (json!({}), true),
        (json!({ "selector": {}, "namespaceSelector": {} }), true),
        (json!({ "selector": selecting("app", "x") }), true),
        (json!({ "selector": selecting("app", "y") }), false),
        (json!({ "namespaceSelector": selecting("team", "data") }), true),
        (json!({ "namespaceSelector": selecting("kubernetes.io/metadata.name", "jobs") }), true),
        (json!({ "namespaceSelector": selecting("team", "web") }), false),
        (json!({ "namespaceSelector": selecting("team", "data"), "selector": selecting("app", "y") }), false),
        (json!({ "namespaceSelector": selecting("team", "web"), "selector": selecting("app", "x") }), false),
        (
            json!({ "selector": { "matchExpressions": [{ "key": "app", "operator": "Is", "values": ["x"] }] } }),
            false,
        ),
        (
            json!({ "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "In" }] } }),
            false,
        ),
    ] {
        let mut spec = spec;
        spec["labels"] = json!({ "touched": "1" });
        let profiles = [profile("p", &spec)];
        let outcome = outcome(&pod(), &known(&profiles), 0);
        assert_eq!(outcome.verdicts[0].1.is_selected(), is_selected, "{spec}");
        assert_eq!(outcome.pod != pod(), is_selected, "{spec}");
    }
    // A label that one profile sets selects for no other.
    let chained = [
        json!({ "labels": { "set": "1" } }),
        json!({ "selector": selecting("set", "1"), "labels": { "late": "1" } }),
    ];
    let labels = mutated(&pod(), &chained)["metadata"]["labels"].clone();
    assert_eq!(labels, json!({ "app": "x", "set": "1" }));
}

#[test]
fn a_selector_without_meaning_selects_nothing_and_warns() {
    let bad = json!({ "matchExpressions": [{ "key": "app", "operator": "Exists", "values": ["x"] }] });
    for key in ["selector", "namespaceSelector"] {
        let profiles = [profile("p", &json!({ (key): bad, "labels": { "touched": "1" } }))];
        let outcome = outcome(&pod(), &known(&profiles), 0);
        assert_eq!(outcome.pod, pod());
        assert!(matches!(outcome.verdicts[0].1, Verdict::Unusable(field, _) if field == key));
        assert_eq!(outcome.warnings.len(), 1);
        assert!(outcome.warnings[0].contains("matchExpressions[0]"), "{:?}", outcome.warnings);
    }
}

#[test]
fn without_its_namespace_a_pod_is_selected_by_no_namespace_selector() {
    let wants = json!({ "matchLabels": { "team": "data" } });
    let not_in = json!({ "matchExpressions": [{ "key": "team", "operator": "NotIn", "values": ["web"] }] });
    for (selector, is_selected) in [(wants, false), (not_in, false), (json!({}), true)] {
        let profiles =
            [profile("p", &json!({ "namespaceSelector": selector, "labels": { "touched": "1" } }))];
        let known = Known { namespace: Namespace::unknown("jobs"), ..known(&profiles) };
        let outcome = outcome(&pod(), &known, 0);
        assert_eq!(outcome.verdicts[0].1.is_selected(), is_selected);
        assert_eq!(outcome.warnings.is_empty(), is_selected, "{:?}", outcome.warnings);
    }
}

#[test]
fn of_a_hundred_draws_exactly_so_many_apply_a_profile_as_its_probability_says() {
    for (probability, percent) in [
        (json!(0), 0),
        (json!(1), 1),
        (json!("1%"), 1),
        (json!("50%"), 50),
        (json!(99), 99),
        (json!("100%"), 100),
    ] {
        let profiles = [profile("p", &json!({ "probability": probability, "labels": { "touched": "1" } }))];
        let applied = (0..100).filter(|&draw| {
            outcome(&pod(), &known(&profiles), draw).pod["metadata"]["labels"]["touched"] == "1"
        });
        assert_eq!(applied.count(), percent, "{probability}");
    }
    let profiles = [profile("p", &json!({ "probability": "30%" }))];
    let verdict = |draw| outcome(&pod(), &known(&profiles), draw).verdicts[0].1.clone();
    assert_eq!(verdict(29), Verdict::Applied(Some(Draw { drawn: 29, below: 30 })));
    assert_eq!(verdict(30), Verdict::Skipped(Some(Draw { drawn: 30, below: 30 })));
    let bad = [profile("p", &json!({ "probability": "often" }))];
    let refusal = mutate(&pod(), &known(&bad), &mut never).unwrap_err();
    assert!(
        matches!(refusal, Refusal::Probability { .. }) && refusal.to_string().contains("often"),
        "{refusal}"
    );
}

#[test]
fn nothing_is_drawn_where_nothing_is_left_to_chance() {
    for probability in [json!(null), json!(0), json!(100), json!("0%"), json!("100%")] {
        let profiles = [profile("p", &json!({ "probability": probability }))];
        mutate(&pod(), &known(&profiles), &mut never).unwrap();
    }
}

#[test]
fn what_a_profile_cannot_have_refuses_the_pod_with_its_name() {
    for (spec, part) in [
        (json!({ "priorityClassName": "gold" }), "PriorityClass gold"),
        (json!({ "patch": { "spec": { "containers": [{ "image": "x" }] } } }), "spec.patch.spec.containers"),
    ] {
        let profiles = [profile("wrong", &spec)];
        let text = mutate(&pod(), &known(&profiles), &mut never).unwrap_err().to_string();
        assert!(text.contains("ClusterColocationProfile wrong") && text.contains(part), "{text}");
        let elsewhere = [profile(
            "wrong",
            &json!({ "selector": { "matchLabels": { "app": "other" } }, "patch": spec["patch"] }),
        )];
        assert!(mutate(&pod(), &known(&elsewhere), &mut never).is_ok(), "not selected, not refused");
    }
}

#[test]
fn resources_follow_the_class_that_the_pod_ends_up_with() {
    let requests = |mutated: &Value| mutated["spec"]["containers"][0]["resources"]["requests"].clone();
    for (spec, expected) in [
        (json!({ "priorityClassName": "koord-batch" }), json!({ (BATCH_CPU): "1000" })),
        (json!({ "priorityClassName": "koord-mid" }), json!({ (MID_CPU): "1000" })),
        (json!({ "priorityClassName": "koord-prod" }), json!({ "cpu": "1" })),
        (json!({ "priorityClassName": "koord-free" }), json!({ "cpu": "1" })),
        (json!({ "qosClass": "BE" }), json!({ (BATCH_CPU): "1000" })),
        (json!({ "qosClass": "LS" }), json!({ "cpu": "1" })),
        (json!({ "labels": { "koordinator.sh/priority-class": "koord-mid" } }), json!({ (MID_CPU): "1000" })),
        (json!({}), json!({ "cpu": "1" })),
    ] {
        assert_eq!(requests(&mutated(&pod(), std::slice::from_ref(&spec))), expected, "{spec}");
    }
}

#[test]
fn a_pod_that_is_batch_or_mid_by_itself_is_converted_even_if_the_draw_skips_every_profile() {
    for (priority, cpu, class) in [(5_500, BATCH_CPU, Priority::Batch), (7_500, MID_CPU, Priority::Mid)] {
        let mut own = pod();
        own["spec"]["priority"] = json!(priority);
        for probability in [json!(0), json!("10%")] {
            let profiles =
                [profile("p", &json!({ "probability": probability, "labels": { "touched": "1" } }))];
            let outcome = outcome(&own, &known(&profiles), 99);
            assert!(matches!(outcome.verdicts[0].1, Verdict::Skipped(_)));
            assert_eq!(outcome.resources, Resources::Converted(class));
            let requests = &outcome.pod["spec"]["containers"][0]["resources"]["requests"];
            assert_eq!(*requests, json!({ (cpu): "1000" }));
            assert_eq!(outcome.pod["metadata"]["labels"], json!({ "app": "x" }));
        }
        let elsewhere = [profile("p", &json!({ "selector": { "matchLabels": { "app": "other" } } }))];
        assert_eq!(outcome(&own, &known(&elsewhere), 0).pod, own, "nobody selects it");
    }
}

#[test]
fn resources_stay_where_a_profile_or_an_option_says_so() {
    let batch = json!({ "priorityClassName": "koord-batch" });
    let mut skipping = profile("z", &json!({ "probability": 0 }));
    skipping.metadata.annotations =
        Some([(super::profile::SKIP_UPDATE_RESOURCES.to_owned(), String::new())].into());
    let with_profile = [profile("a", &batch), skipping.clone()];
    let kept = outcome(&pod(), &known(&with_profile), 0);
    let by_option = [profile("a", &batch)];
    let option = outcome(&pod(), &Known { skip_resources: true, ..known(&by_option) }, 0);
    for outcome in [kept, option] {
        assert_eq!(outcome.resources, Resources::LeftAlone);
        assert_eq!(outcome.pod["spec"]["containers"], pod()["spec"]["containers"]);
        assert_eq!(outcome.pod["spec"]["priority"], 5_000, "the rest is applied");
    }
    skipping.spec.selector = serde_json::from_value(json!({ "matchLabels": { "app": "other" } })).unwrap();
    let unselected = [profile("a", &batch), skipping];
    assert_eq!(outcome(&pod(), &known(&unselected), 0).resources, Resources::Converted(Priority::Batch));
}

#[test]
fn outside_the_selectors_only_batch_resources_of_the_pods_own_are_noted() {
    let elsewhere = [profile("p", &json!({ "selector": { "matchLabels": { "app": "other" } } }))];
    for profiles in [&elsewhere[..], &[]] {
        let mut own = pod();
        assert_eq!(outcome(&own, &known(profiles), 0).pod, own);
        own["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC] = json!("by hand");
        assert_eq!(outcome(&own, &known(profiles), 0).pod, own);
        own["spec"]["containers"][0]["resources"] = json!({ "limits": { (BATCH_CPU): "500" } });
        let noted = outcome(&own, &known(profiles), 0).pod;
        assert_eq!(
            noted["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC],
            r#"{"containers":{"c":{"limits":{"kubernetes.io/batch-cpu":"500"}}}}"#
        );
        own["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC] =
            noted["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC].clone();
        assert_eq!(noted, own, "and nothing else is touched");
    }
}

#[test]
fn a_sidecar_that_comes_later_is_converted_when_the_api_server_asks_again() {
    let profiles = [profile(
        "p",
        &json!({ "priorityClassName": "koord-batch", "qosClass": "BE", "labelSuffixes": { "app": "-s" } }),
    )];
    let mut first = outcome(&pod(), &known(&profiles), 0).pod;
    let containers = first["spec"]["containers"].as_array_mut().unwrap();
    containers.push(json!({ "name": "proxy", "resources": { "limits": { "memory": "64Mi" } } }));
    first["metadata"]["labels"]["mesh"] = json!("1");
    let second = outcome(&first, &known(&profiles), 0).pod;
    assert_eq!(
        second["spec"]["containers"][1]["resources"],
        json!({ "limits": { (BATCH_MEMORY): "64Mi" }, "requests": { (BATCH_MEMORY): "64Mi" } })
    );
    assert!(second["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC].as_str().unwrap().contains("proxy"));
    assert_eq!(second["metadata"]["labels"]["app"], "x-s", "appended once");
    assert_eq!(second["metadata"]["labels"]["mesh"], "1", "what others did stays");
}

#[test]
fn quantities_that_the_api_server_rewrites_are_still_known() {
    let patch = json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { (BATCH_CPU): "5" } } }] } });
    let profiles = [profile("p", &json!({ "priorityClassName": "koord-batch", "patch": patch }))];
    let first = outcome(&pod(), &known(&profiles), 0).pod;
    assert_eq!(
        first["spec"]["containers"][0]["resources"]["requests"],
        json!({ (BATCH_CPU): "1000" }),
        "cpu wins"
    );
    let mut stored = first.clone();
    stored["spec"]["containers"][0]["resources"]["requests"][BATCH_CPU] = json!("1k");
    assert_eq!(outcome(&stored, &known(&profiles), 0).pod, stored, "it is so already");
    stored["metadata"]["labels"]["mesh"] = json!("1");
    let containers = stored["spec"]["containers"].as_array_mut().unwrap();
    containers.push(json!({ "name": "proxy", "resources": { "limits": { "cpu": "1" } } }));
    let second = outcome(&stored, &known(&profiles), 0).pod;
    assert_eq!(
        second["spec"]["containers"][0]["resources"]["requests"],
        json!({ (BATCH_CPU): "1000" }),
        "not the patch's 5"
    );
}

#[test]
fn a_pod_remembers_only_where_a_second_look_would_differ() {
    let remembers = |spec: Value| {
        let mutated = mutated(&pod(), &[spec]);
        mutated["metadata"]["annotations"].get(RECORD).is_some()
    };
    assert!(!remembers(
        json!({ "priorityClassName": "koord-batch", "qosClass": "BE", "koordinatorPriority": 5 })
    ));
    assert!(!remembers(json!({ "labelKeysMapping": { "app": "copy" }, "labels": { "app": "z" } })));
    assert!(remembers(json!({ "labelSuffixes": { "app": "-s" } })));
    assert!(remembers(json!({ "probability": 50 })));
}

#[test]
fn a_record_by_hand_opens_no_way_around_a_profile() {
    let profiles = [profile(
        "p",
        &json!({ "namespaceSelector": { "matchLabels": { "team": "data" } }, "qosClass": "BE" }),
    )];
    for record in [
        "nonsense",
        r#"{"draws":{"p":99}}"#,
        r#"{"labels":{"koordinator.sh/qosClass":{"is":"BE"}}}"#,
        r#"{"labels":{"koordinator.sh/qosClass":{"was":"LS","is":"BE"}}}"#,
    ] {
        let mut forged = pod();
        forged["metadata"]["annotations"][RECORD] = json!(record);
        let mutated = outcome(&forged, &known(&profiles), 0).pod;
        assert_eq!(mutated["metadata"]["labels"]["koordinator.sh/qosClass"], "BE", "{record}");
    }
}

#[test]
fn resources_of_the_pod_as_a_whole_are_warned_of() {
    let profiles = [profile("p", &json!({ "priorityClassName": "koord-batch" }))];
    let mut own = pod();
    own["spec"]["resources"] = json!({ "requests": { "cpu": "2" } });
    let outcome = outcome(&own, &known(&profiles), 0);
    assert_eq!(outcome.pod["spec"]["resources"], own["spec"]["resources"]);
    assert!(
        outcome.warnings.iter().any(|warning| warning.starts_with("spec.resources")),
        "{:?}",
        outcome.warnings
    );
}

/// Koordinator's tutorial (`docs/best-practices/colocation-of-spark-jobs.md`): its profile, and the pods that Spark 3.2 makes of
/// its application.
mod tutorial {
    use super::*;

    fn spark() -> ClusterColocationProfile {
        profile(
            "spark-demo",
            &json!({
                "namespaceSelector": { "matchLabels": { "koordinator.sh/enable-colocation": "true" } },
                "selector": { "matchLabels": { "sparkoperator.k8s.io/launched-by-spark-operator": "true" } },
                "qosClass": "BE", "priorityClassName": "koord-batch", "koordinatorPriority": 1000,
                "schedulerName": "koord-scheduler",
            }),
        )
    }

    /// 3 GiB, and a tenth or 384 MiB more for what is beside the heap.
    fn pod(role: &str, container: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("spark-tc-complex-{role}"), "namespace": "spark-demo",
                "labels": {
                    "spark-role": role, "sparkoperator.k8s.io/app-name": "spark-tc-complex",
                    "sparkoperator.k8s.io/launched-by-spark-operator": "true",
                },
            },
            "spec": {
                "priority": 0, "preemptionPolicy": "PreemptLowerPriority", "schedulerName": "default-scheduler",
                "restartPolicy": "Never", "serviceAccountName": "spark",
                "containers": [{
                    "name": container, "image": "docker.io/koordinatorsh/spark:v3.2.1-koord-examples",
                    "resources": {
                        "limits": { "cpu": "1", "memory": "3456Mi" },
                        "requests": { "cpu": "1", "memory": "3456Mi" },
                    },
                }],
            },
            "status": {},
        })
    }

    fn known<'a>(profiles: &'a [ClusterColocationProfile], labels: &Strings) -> Known<'a> {
        Known { namespace: Namespace::known("spark-demo", labels), ..super::known(profiles) }
    }

    #[test]
    fn driver_and_executor_get_every_field_that_it_promises() {
        let profiles = [spark()];
        let labelled: Strings = [("koordinator.sh/enable-colocation".to_owned(), "true".to_owned())].into();
        let known = known(&profiles, &labelled);
        for (role, container) in
            [("driver", "spark-kubernetes-driver"), ("executor", "spark-kubernetes-executor")]
        {
            let before = pod(role, container);
            let outcome = outcome(&before, &known, 0);
            let batch = json!({ (BATCH_CPU): "1000", (BATCH_MEMORY): "3456Mi" });
            let mut expected = before.clone();
            expected["metadata"]["labels"]["koordinator.sh/qosClass"] = json!("BE");
            expected["metadata"]["labels"]["koordinator.sh/priority"] = json!("1000");
            expected["metadata"]["annotations"] = json!({
                (EXTENDED_RESOURCE_SPEC): format!(
                    r#"{{"containers":{{"{container}":{{"limits":{{"{BATCH_CPU}":"1000","{BATCH_MEMORY}":"3456Mi"}},"requests":{{"{BATCH_CPU}":"1000","{BATCH_MEMORY}":"3456Mi"}}}}}}}}"#
                ),
            });
            expected["spec"]["schedulerName"] = json!("koord-scheduler");
            expected["spec"]["priorityClassName"] = json!("koord-batch");
            expected["spec"]["priority"] = json!(5_000);
            expected["spec"]["containers"][0]["resources"] = json!({ "limits": batch, "requests": batch });
            assert_eq!(outcome.pod, expected);
            assert_eq!(outcome.resources, Resources::Converted(Priority::Batch));
            let findings = validate(&outcome.pod, None, Options::default()).unwrap();
            assert_eq!(findings, Findings::default());
        }
    }

    #[test]
    fn it_touches_nothing_in_a_namespace_without_the_label() {
        let profiles = [spark()];
        let before = pod("driver", "spark-kubernetes-driver");
        assert_eq!(outcome(&before, &known(&profiles, &Strings::new()), 0).pod, before);
    }
}

/// Run with more cases by `PROPTEST_CASES=100000 cargo test -p enforcer admission`.
pub mod properties {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    const KEYS: [&str; 5] = ["app", "tier", "koordinator.sh/qosClass", "koordinator.sh/priority-class", "x"];
    const VALUES: [&str; 7] = ["", "a", "a-s", "BE", "LS", "koord-batch", "koord-mid"];

    fn strings() -> impl Strategy<Value = Value> {
        vec((proptest::sample::select(&KEYS[..]), proptest::sample::select(&VALUES[..])), 0..3)
            .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect())
    }

    fn mapping() -> impl Strategy<Value = Value> {
        vec((proptest::sample::select(&KEYS[..]), proptest::sample::select(&KEYS[..])), 0..3)
            .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect())
    }

    fn quantity() -> impl Strategy<Value = Value> {
        proptest::sample::select(vec![
            json!("1"),
            json!(2),
            json!("250m"),
            json!("1Gi"),
            json!("0"),
            json!(null),
        ])
    }

    fn resources() -> impl Strategy<Value = Value> {
        let names = ["cpu", "memory", BATCH_CPU, BATCH_MEMORY, MID_CPU, MID_MEMORY, "nvidia.com/gpu"];
        let list = || {
            vec((proptest::sample::select(names.to_vec()), quantity()), 0..3).prop_map(|pairs| {
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()
            })
        };
        (option::of(list()), option::of(list()))
            .prop_map(|(requests, limits)| json!({ "requests": requests, "limits": limits }))
    }

    fn containers() -> impl Strategy<Value = Value> {
        vec((proptest::sample::select(vec!["a", "b", "c"]), option::of(resources())), 0..3).prop_map(|list| {
            let mut names = std::collections::BTreeSet::new();
            let unique = list.into_iter().filter(|(name, _)| names.insert(*name));
            unique.map(|(name, resources)| json!({ "name": name, "resources": resources })).collect()
        })
    }

    fn any_pod() -> impl Strategy<Value = Value> {
        (
            strings(),
            strings(),
            containers(),
            containers(),
            option::of(resources()),
            proptest::sample::select(vec![json!(null), json!(0), json!(5_500), json!(7_500), json!(9_500)]),
        )
            .prop_map(|(labels, annotations, init, containers, overhead, priority)| {
                json!({
                    "metadata": { "labels": labels, "annotations": annotations },
                    "spec": {
                        "initContainers": init, "containers": containers, "priority": priority,
                        "overhead": overhead.map(|overhead| overhead["limits"].clone()),
                    },
                })
            })
    }

    fn any_patch() -> impl Strategy<Value = Value> {
        let directive = proptest::sample::select(vec![None, None, None, Some("delete"), Some("replace")]);
        let context = proptest::sample::select(vec![
            json!({ "$patch": "replace", "a": 1 }),
            json!({ "$patch": "delete" }),
            json!({ "b": 2 }),
            json!({ "a": null }),
            json!(null),
            json!({ "$retainKeys": ["c"], "c": 3 }),
        ]);
        let list = vec((proptest::sample::select(vec!["a", "b", "s"]), resources(), directive), 0..3);
        (strings(), list, option::of(resources()), context).prop_map(
            |(labels, list, overhead, context)| {
                let containers = list.into_iter().map(|(name, resources, directive)| match directive {
                    Some("delete") => json!({ "name": name, "$patch": "delete" }),
                    Some(_) => json!({ "name": name, "resources": { "$patch": "replace", "limits": resources["limits"] } }),
                    None => json!({ "name": name, "resources": resources }),
                });
                json!({ "metadata": { "labels": labels }, "spec": {
                    "containers": containers.collect::<Value>(), "securityContext": context,
                    "overhead": overhead.map(|overhead| overhead["limits"].clone()),
                } })
            },
        )
    }

    fn any_profile() -> impl Strategy<Value = Value> {
        (
            (option::of(strings()), option::of(strings()), option::of(mapping()), option::of(mapping())),
            option::of(strings()),
            option::of(strings()),
            option::of(proptest::sample::select(vec!["BE", "LS"])),
            option::of(proptest::sample::select(vec!["koord-batch", "koord-mid", "koord-prod"])),
            option::of(any_patch()),
            option::of(0..=100_i32),
        )
            .prop_map(
                |(
                    (labels, annotations, label_keys, annotation_keys),
                    suffixes,
                    selector,
                    qos,
                    class,
                    patch,
                    percent,
                )| {
                    json!({
                        "labels": labels, "annotations": annotations, "labelKeysMapping": label_keys,
                        "annotationKeysMapping": annotation_keys, "labelSuffixes": suffixes,
                        "selector": selector.map(|labels| json!({ "matchLabels": labels })),
                        "qosClass": qos, "priorityClassName": class, "patch": patch, "probability": percent,
                    })
                },
            )
    }

    /// Anything that JSON can say, with the names of pods in it.
    pub fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            proptest::sample::select(vec![
                json!("1"),
                json!("1e9"),
                json!("-5"),
                json!("9223372036854775807E"),
                json!("{}")
            ]),
        ];
        let names = [
            "metadata",
            "labels",
            "annotations",
            "spec",
            "containers",
            "initContainers",
            "resources",
            "requests",
            "limits",
            "cpu",
            "memory",
            "overhead",
            "priority",
            "name",
            "status",
            "qosClass",
            BATCH_CPU,
            BATCH_MEMORY,
            RECORD,
            EXTENDED_RESOURCE_SPEC,
            "koordinator.sh/qosClass",
            "$patch",
            "$retainKeys",
            "$deleteFromPrimitiveList/finalizers",
        ];
        leaf.prop_recursive(7, 64, 6, move |inner| {
            prop_oneof![
                1 => vec(inner.clone(), 0..4).prop_map(Value::from),
                4 => vec((proptest::sample::select(names.to_vec()), inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn mutating_twice_is_mutating_once(
            pod in any_pod(), specs in vec(any_profile(), 0..4), first in 0_u8..100, second in 0_u8..100,
        ) {
            let profiles: Vec<_> =
                specs.iter().enumerate().map(|(at, spec)| profile(&format!("p{at}"), spec)).collect();
            let known = known(&profiles);
            let once = mutate(&pod, &known, &mut || first).unwrap();
            let twice = mutate(&once.pod, &known, &mut || second).unwrap();
            prop_assert_eq!(&twice.pod, &once.pod);
            let mut patched = pod.clone();
            json_patch::patch(&mut patched, &once.patch(&pod)).unwrap();
            prop_assert_eq!(patched, once.pod);
        }

        #[test]
        fn a_pod_that_nobody_selects_stays_as_it_is(pod in any_pod(), spec in any_profile()) {
            let mut spec = spec;
            spec["namespaceSelector"] = json!({ "matchLabels": { "team": "web" } });
            let profiles = [profile("p", &spec)];
            let mutated = mutate(&pod, &known(&profiles), &mut never).unwrap().pod;
            let mut expected = pod.clone();
            if let Some(noted) = mutated["metadata"]["annotations"].get(EXTENDED_RESOURCE_SPEC) {
                expected["metadata"]["annotations"][EXTENDED_RESOURCE_SPEC] = noted.clone();
            }
            prop_assert_eq!(mutated, expected);
        }

        #[test]
        fn no_json_makes_it_panic(pod in any_json(), patch in any_json(), old in any_json()) {
            let profiles = [
                profile("a", &json!({ "labels": { "a": "b" }, "patch": patch, "priorityClassName": "koord-batch" })),
                profile("b", &json!({ "labelSuffixes": { "a": "-s" }, "probability": 50 })),
            ];
            if let Ok(outcome) = mutate(&pod, &known(&profiles), &mut || 7) {
                let again = mutate(&outcome.pod, &known(&profiles), &mut || 99).unwrap();
                prop_assert_eq!(again.pod, outcome.pod);
            }
            validate(&pod, Some(&old), Options::default()).ok();
            validate(&old, None, Options::default()).ok();
        }
    }
}

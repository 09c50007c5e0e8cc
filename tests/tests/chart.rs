//! The chart is in step with the code: metrics that dashboard and alerts name, flags that containers get, policies and
//! annotations that agents read, permissions.
//!
//! Without network and without Helm: `cargo xtask manifests --check` sees to it that daemonset/enforcer.yaml is what the chart
//! renders.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use enforcer::policy::{Policy, slo_of_annotation};
use enforcer_tests::{
    agent::enforcer,
    queries::{self, Query, metrics_in},
    sources::{code, root},
};
use serde_json::Value;

const CHART: &str = "daemonset/chart/enforcer";

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|err| panic!("{err}\n{text}"))
}

/// What `kubectl apply` would make.
fn objects() -> Vec<Value> {
    let text = read("daemonset/enforcer.yaml");
    let all: Vec<Value> = text.split("\n---\n").skip(1).map(yaml).collect();
    assert!(all.len() > 20, "{} objects", all.len());
    all
}

fn of_kind<'a>(objects: &'a [Value], kinds: &'a [&str]) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(|object| kinds.contains(&object["kind"].as_str().unwrap()))
}

/// Names in the sources of whatever makes metrics, with the type of each.
fn metrics_made() -> BTreeMap<String, bool> {
    let text = code("enforcer/src/report/metrics") + &code("enforcer/src/admission/webhook/metrics.rs");
    let quoted: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
    let histograms = [
        "enforcer_request_duration_seconds",
        "enforcer_run_queue_wait_seconds",
        "enforcer_reaction_seconds",
        "enforcer_webhook_admission_seconds",
    ];
    let is_metric = |word: &&&str| word.starts_with("enforcer_") || word.starts_with("process_");
    quoted.iter().filter(is_metric).map(|name| ((*name).to_owned(), histograms.contains(name))).collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_there_are() {
    let made = metrics_made();
    for Query { file, text } in queries::all().unwrap() {
        for name in metrics_in(&text) {
            let is_there = match made.get(name) {
                // A histogram has no series of its own name.
                Some(is_histogram) => !is_histogram,
                None => ["_bucket", "_sum", "_count"].iter().any(|suffix| {
                    name.strip_suffix(suffix).is_some_and(|name| made.get(name) == Some(&true))
                }),
            };
            assert!(is_there, "{file} asks for {name}, which is no metric: {text}");
        }
    }
}

#[test]
fn somebody_is_alarmed_about_each_of_these() {
    let alerts = read(&format!("{CHART}/files/alerts.yaml"));
    for name in [
        "enforcer_build_info",
        "enforcer_error_budget_remaining_ratio",
        "enforcer_lease_revocations_total",
        "enforcer_limit_foreign_writes_total",
        "enforcer_limit_write_errors_total",
        "enforcer_probe_drops_total",
        "enforcer_webhook_unconverted_pods",
    ] {
        assert!(metrics_in(&alerts).contains(name), "no alert on {name}");
    }
}

#[test]
fn containers_get_only_flags_that_their_commands_take() {
    let objects = objects();
    let mut commands = BTreeSet::new();
    for object in of_kind(&objects, &["DaemonSet", "Deployment"]) {
        for container in object["spec"]["template"]["spec"]["containers"].as_array().unwrap() {
            let arguments: Vec<&str> = container["args"]
                .as_array()
                .unwrap()
                .iter()
                .map(|argument| argument.as_str().unwrap())
                .collect();
            let output = enforcer().unwrap().args([arguments[0], "--help"]).output().unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "enforcer {} is no command", arguments[0]);
            for flag in &arguments[1..] {
                let flag = flag.split('=').next().unwrap();
                let is_told = help.split_whitespace().any(|word| word == flag);
                assert!(is_told, "enforcer {} takes no {flag}", arguments[0]);
            }
            commands.insert(arguments[0].to_owned());
        }
    }
    assert!(
        ["agent", "controller", "guardian", "webhook"].iter().all(|name| commands.contains(*name)),
        "{commands:?}"
    );
}

#[test]
fn agents_read_the_charts_policy() {
    let objects = objects();
    let policy = of_kind(&objects, &["ConfigMap"])
        .find_map(|object| object["data"]["policy.yaml"].as_str())
        .expect("a ConfigMap with policy.yaml");
    let parsed = Policy::parse(policy, Path::new("policy.yaml"), 4);
    parsed.unwrap_or_else(|err| panic!("{err}\n{policy}"));
}

#[test]
fn agents_read_the_examples_annotations() {
    let mut count = 0;
    for name in ["nginx", "redis"] {
        let text = read(&format!("daemonset/examples/spark/{name}.yaml"));
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("enforcer.dev/slo: ")) {
            slo_of_annotation(line.trim_matches('\'')).unwrap_or_else(|err| panic!("{name}: {err}"));
            count += 1;
        }
    }
    assert_eq!(count, 2);
}

#[test]
fn the_charts_version_is_the_agents_and_its_image_the_one_that_is_made() {
    let chart = yaml(&read(&format!("{CHART}/Chart.yaml")));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let values = yaml(&read(&format!("{CHART}/values.yaml")));
    let repository = values["image"]["repository"].as_str().unwrap();
    assert!(
        read("xtask/src/image.rs").contains(&format!("const NAME: &str = \"{repository}\"")),
        "{repository}"
    );
}

/// Values and the schema's properties, side by side.
fn same_keys(at: &str, values: &Value, schema: &Value) {
    let (Some(values), Some(properties)) = (values.as_object(), schema["properties"].as_object()) else {
        return;
    };
    for (key, value) in values {
        let schema = properties.get(key).unwrap_or_else(|| panic!("{at}.{key} is not in values.schema.json"));
        same_keys(&format!("{at}.{key}"), value, schema);
    }
    // Maps that are empty by default have their keys in the schema only.
    if !values.is_empty() {
        for key in properties.keys().filter(|key| *key != "global" && *key != "claims") {
            assert!(values.contains_key(key), "{at}.{key} is in values.schema.json and has no default");
        }
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let values = yaml(&read(&format!("{CHART}/values.yaml")));
    let schema: Value = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    same_keys("", &values, &schema);
}

#[test]
fn nobody_may_do_everything_or_read_secrets_of_others() {
    let objects = objects();
    let mut rules = 0;
    for role in of_kind(&objects, &["ClusterRole", "Role"]) {
        let name = &role["metadata"]["name"];
        for rule in role["rules"].as_array().unwrap() {
            rules += 1;
            let text = rule.to_string();
            assert!(!text.contains("\"*\""), "{name}: {text}");
            let is_cluster_wide = role["kind"] == "ClusterRole";
            assert!(!(is_cluster_wide && text.contains("secrets")), "{name}: {text}");
            let deletes = ["delete", "deletecollection", "escalate", "bind", "impersonate"];
            let verbs = rule["verbs"].as_array().unwrap();
            assert!(!verbs.iter().any(|verb| deletes.contains(&verb.as_str().unwrap())), "{name}: {text}");
        }
    }
    assert!(rules > 8, "{rules} rules");
}

#[test]
fn only_agents_are_privileged_in_any_way() {
    let objects = objects();
    for object in of_kind(&objects, &["DaemonSet", "Deployment"]) {
        let pod = &object["spec"]["template"]["spec"];
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let host = &volume["hostPath"]["path"];
            let is_known = host.is_null() || host == "/sys/fs/cgroup" || host == "/run/enforcer";
            assert!(is_known, "{host} is mounted, and daemonset/README.md does not say why");
        }
        for container in pod["containers"].as_array().unwrap() {
            let (name, context) = (&container["name"], &container["securityContext"]);
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
            let added = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
            if object["kind"] == "Deployment" {
                assert!(added.is_empty() && context["runAsNonRoot"] == true, "{name}");
            }
            let readme = read("daemonset/README.md");
            for capability in added {
                let row = format!("| `{}` |", capability.as_str().unwrap());
                assert!(
                    readme.contains(&row),
                    "daemonset/README.md does not say why {name} has {capability}"
                );
            }
        }
    }
}

//! `enforcer mutate`, as anybody may use it: files in, a pod and reasons out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::Write as _,
    process::{Output, Stdio},
};

use enforcer_tests::agent::{Files, enforcer};

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: spark-demo\n  labels: { koordinator.sh/enable-colocation: 'true' }\n";

const CLASSES: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "koord-batch"}, "value": 5000},
  {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "koord-prod"}, "value": 9000}]}"#;

const PROFILE: &str = "apiVersion: config.koordinator.sh/v1alpha1
kind: ClusterColocationProfile
metadata: { name: spark-demo }
spec:
  namespaceSelector: { matchLabels: { koordinator.sh/enable-colocation: 'true' } }
  selector: { matchLabels: { sparkoperator.k8s.io/launched-by-spark-operator: 'true' } }
  qosClass: BE
  priorityClassName: koord-batch
  koordinatorPriority: 1000
  schedulerName: koord-scheduler
";

const POD: &str = "apiVersion: v1
kind: Pod
metadata:
  name: driver
  namespace: spark-demo
  labels: { sparkoperator.k8s.io/launched-by-spark-operator: 'true' }
spec:
  containers:
  - name: spark-kubernetes-driver
    image: spark
    args: ['true', '1e3', '0777', 'null', '', '# no comment', 'a: b']
    resources:
      requests: { cpu: 1, memory: 3456Mi }
      limits: { cpu: '1', memory: 3456Mi }
";

fn write(files: &Files, name: &str, text: &str) -> String {
    files.write(name, text).unwrap().to_str().unwrap().to_owned()
}

fn run(arguments: &[&str]) -> Output {
    enforcer().unwrap().arg("mutate").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `enforcer mutate` on a pod with some objects, each text a file of its own.
fn mutate(name: &str, pod: &str, objects: &[&str], options: &[&str]) -> Output {
    let files = Files::new(name).unwrap();
    let pod = write(&files, "pod.yaml", pod);
    let objects: Vec<String> = objects
        .iter()
        .enumerate()
        .map(|(at, text)| write(&files, &format!("objects-{at}.yaml"), text))
        .collect();
    let mut arguments = vec!["-f", &pod, "--objects"];
    arguments.extend(objects.iter().map(String::as_str));
    arguments.extend(options);
    run(&arguments)
}

#[test]
fn the_tutorials_pod_is_printed_as_yaml_with_the_reasons_beside_it() {
    let output = mutate("tutorial", POD, &[&format!("{NAMESPACE}---\n{PROFILE}"), CLASSES], &[]);
    let (yaml, reasons) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{reasons}");
    for line in [
        "koordinator.sh/qosClass: BE",
        "schedulerName: koord-scheduler",
        "priorityClassName: koord-batch",
        "priority: 5000",
        "preemptionPolicy: PreemptLowerPriority",
        "kubernetes.io/batch-memory: 3456Mi",
        "image: spark",
    ] {
        assert!(
            yaml.lines().any(|found| found.trim_start().trim_start_matches("- ") == line),
            "{line}\n{yaml}"
        );
    }
    assert_eq!(yaml.matches("kubernetes.io/batch-cpu: ").count(), 2, "{yaml}");
    assert!(!yaml.contains(" cpu:") && !yaml.contains(" memory:"), "{yaml}");
    assert!(reasons.contains("profile spark-demo: applied") && reasons.contains("koord-batch"), "{reasons}");
    // What it prints it takes, and leaves as it is.
    let again = mutate("tutorial-again", &yaml, &[&format!("{NAMESPACE}---\n{PROFILE}"), CLASSES], &[]);
    assert_eq!(text(&again.stdout), yaml);
    assert!(text(&again.stderr).contains("stays as it is"), "{}", text(&again.stderr));
}

#[test]
fn pods_come_from_standard_input_too_in_json_and_in_lists() {
    let files = Files::new("stdin").unwrap();
    let objects =
        write(&files, "all.yaml", &format!("{PROFILE}---\n{NAMESPACE}---\n# nothing\n---\n{CLASSES}\n"));
    let list = r#"{"kind": "PodList", "apiVersion": "v1", "items": [
      {"metadata": {"name": "a", "namespace": "spark-demo"}, "spec": {"containers": []}},
      {"metadata": {"name": "b"}, "spec": {"containers": []}}]}"#;
    let mut child = enforcer()
        .unwrap()
        .args(["mutate", "-f", "-", "--objects", &objects])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{reasons}");
    assert_eq!(text(&output.stdout).matches("kind: Pod").count(), 2);
    assert!(
        reasons.contains("selector wants") && reasons.contains("no Namespace default is known"),
        "{reasons}"
    );
}

#[test]
fn without_its_namespace_a_profile_with_a_namespace_selector_cannot_match() {
    let output = mutate("no-namespace", POD, &[PROFILE, CLASSES], &[]);
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{reasons}");
    assert!(reasons.contains("cannot match") && reasons.contains("no Namespace spark-demo"), "{reasons}");
    assert!(text(&output.stdout).contains("cpu: 1"), "{}", text(&output.stdout));
}

#[test]
fn a_draw_decides_where_probability_does_and_own_batch_pods_are_converted_anyway() {
    let profile = PROFILE.replace("spec:\n", "spec:\n  probability: 30%\n");
    for (draw, is_applied) in [("0", true), ("29", true), ("30", false), ("99", false)] {
        let output = mutate("draw", POD, &[&profile, NAMESPACE, CLASSES], &["--draw", draw]);
        let (yaml, reasons) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(yaml.contains("batch-cpu"), is_applied, "{draw}: {reasons}");
        assert!(reasons.contains(&format!("{draw} was drawn")), "{reasons}");
    }
    let own = POD.replace("spec:\n", "spec:\n  priorityClassName: koord-batch\n");
    let output = mutate("draw-own", &own, &[&profile, NAMESPACE, CLASSES], &["--draw", "99"]);
    let yaml = text(&output.stdout);
    assert!(yaml.contains("batch-cpu") && !yaml.contains("qosClass"), "{yaml}");
    let output = mutate("draw-100", POD, &[&profile], &["--draw", "100"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn resources_stay_if_that_is_wanted() {
    let output = mutate("skip", POD, &[PROFILE, NAMESPACE, CLASSES], &["--skip-resources"]);
    let yaml = text(&output.stdout);
    assert!(
        yaml.contains("cpu: 1") && yaml.contains("priority: 5000") && !yaml.contains("batch-cpu"),
        "{yaml}"
    );
}

#[test]
fn what_the_webhook_would_refuse_exits_with_1_and_prints_no_pod() {
    for (name, profile, part) in [
        ("no-class", PROFILE.to_owned(), "there is no PriorityClass koord-batch"),
        ("bad-percent", PROFILE.replace("spec:\n", "spec:\n  probability: half\n"), "spec.probability"),
        (
            "bad-patch",
            PROFILE.replace(
                "  priorityClassName: koord-batch\n",
                "  patch: { spec: { containers: [{ image: x }] } }\n",
            ),
            "spec.patch.spec.containers",
        ),
    ] {
        let output = mutate(name, POD, &[&profile, NAMESPACE], &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains("ClusterColocationProfile spark-demo") && message.contains(part),
            "{message}"
        );
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn bad_input_names_file_document_and_field_and_exits_with_2() {
    let two = format!("{NAMESPACE}---\n{PROFILE}");
    for (name, pod, objects, parts) in [
        ("syntax", "a: [", PROFILE, &["pod.yaml", "neither YAML nor JSON", "line"][..]),
        ("empty", "", PROFILE, &["pod.yaml", "holds no Pod"]),
        ("scalar", "hello", PROFILE, &["pod.yaml", "a string"]),
        ("no-kind", "a: 1", PROFILE, &["pod.yaml", "kind is missing"]),
        (
            "kind",
            &POD.replace("kind: Pod", "kind: Deployment"),
            PROFILE,
            &["pod.yaml", "Deployment", "give Pods"],
        ),
        (
            "quantity",
            &POD.replace("cpu: 1,", "cpu: [1],"),
            PROFILE,
            &["pod.yaml", "spec.containers[0].resources.requests.cpu"],
        ),
        (
            "label",
            &POD.replace("operator: 'true'", "operator: true"),
            PROFILE,
            &["pod.yaml", "metadata.labels"],
        ),
        (
            "version",
            POD,
            &PROFILE.replace("v1alpha1", "v1"),
            &["objects-0.yaml", "config.koordinator.sh/v1alpha1"],
        ),
        (
            "typo",
            POD,
            &two.replace("qosClass", "qosclass"),
            &["objects-0.yaml, document 2", "spec.qosclass", "no such field"],
        ),
        ("enum", POD, &two.replace("qosClass: BE", "qosClass: be"), &["document 2", "spec.qosClass"]),
        (
            "type",
            POD,
            &two.replace("1000", "high"),
            &["document 2", "spark-demo", "spec.koordinatorPriority"],
        ),
        (
            "selector",
            POD,
            &two.replace("selector: {", "selector: { matchExpressions: 7,"),
            &["document 2", "spec.selector.matchExpressions"],
        ),
        (
            "unnamed",
            POD,
            &PROFILE.replace("name: spark-demo", ""),
            &["objects-0.yaml", "metadata.name is missing"],
        ),
    ] {
        let output = mutate(name, pod, &[objects], &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {message}");
        for part in parts {
            assert!(message.contains(part), "{name}: no {part:?} in {message}");
        }
        assert_eq!(message.lines().count(), 1, "one sentence, no backtrace: {message}");
        assert_eq!(text(&output.stdout), "", "{name}");
    }
    let output = run(&["-f", "/no/such/pod", "--objects", "/no/such/objects"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/no/such/pod"));
}

#[test]
fn a_selector_without_meaning_matches_nothing_and_is_told() {
    let bad = PROFILE
        .replace("  qosClass", "    matchExpressions: [{ key: a, operator: Like, values: [b] }]\n  qosClass");
    let bad = bad.replace(
        "selector: { matchLabels: { sparkoperator.k8s.io/launched-by-spark-operator: 'true' } }",
        "selector:",
    );
    let output = mutate("bad-selector", POD, &[&bad, NAMESPACE, CLASSES], &[]);
    let reasons = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{reasons}");
    assert!(reasons.contains("cannot be evaluated") && reasons.contains("matchExpressions[0]"), "{reasons}");
}

#[test]
fn help_tells_of_files_streams_and_exit_codes() {
    let help = text(&run(&["--help"]).stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["--objects", "--draw", "--skip-resources", "standard input", "Exit codes", "Example"] {
        assert!(help.contains(part), "{part}\n{help}");
    }
}

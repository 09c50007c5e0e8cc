//! `enforcer explain batch` on files: what a node would lend, without an agent or a cluster.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Output;

use enforcer_tests::agent::{Files, enforcer};
use serde_json::Value;

const NODE: &str = "apiVersion: v1
kind: Node
metadata: { name: node-1 }
status:
  capacity: { cpu: '16', memory: 64Gi }
  allocatable: { cpu: '16', memory: 64Gi }
";

/// Batch pods get what is lent, so what they use is not taken off.
const PODS: &str = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: { name: shop, namespace: default, uid: shop, labels: { koordinator.sh/qosClass: LS } }
  spec:
    nodeName: node-1
    containers:
    - { name: shop, image: shop, resources: { requests: { cpu: '4', memory: 8Gi } } }
  status: { phase: Running }
- apiVersion: v1
  kind: Pod
  metadata: { name: job, namespace: default, uid: job, labels: { koordinator.sh/qosClass: BE } }
  spec:
    nodeName: node-1
    priority: 5500
    priorityClassName: koord-batch
    containers:
    - { name: job, image: job, resources: { requests: { kubernetes.io/batch-cpu: '2000' } } }
  status: { phase: Running }
";

const METRIC: &str = "apiVersion: slo.koordinator.sh/v1alpha1
kind: NodeMetric
metadata: { name: node-1 }
spec: {}
status:
  updateTime: '2026-11-25T12:00:00Z'
  nodeMetric:
    nodeUsage: { resources: { cpu: 4500m, memory: 8Gi } }
    systemUsage: { resources: { cpu: '1', memory: 2Gi } }
  podsMetric:
  - { name: shop, namespace: default, priority: koord-prod, podUsage: { resources: { cpu: 1500m, memory: 3Gi } } }
  - { name: job, namespace: default, priority: koord-batch, podUsage: { resources: { cpu: '2', memory: 3Gi } } }
";

fn explain(name: &str, files: &[(&str, &str)], options: &[&str]) -> Output {
    let directory = Files::new(name).unwrap();
    let mut command = enforcer().unwrap();
    command.args(["explain", "batch"]).args(options);
    for (option, text) in files {
        let path = directory.write(&format!("{}.yaml", option.trim_matches('-')), text).unwrap();
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

fn explain_node(name: &str, strategy: Option<&str>, options: &[&str]) -> Output {
    let mut files = vec![("--node-file", NODE), ("--pods-file", PODS), ("--metrics-file", METRIC)];
    files.extend(strategy.map(|strategy| ("--strategy-file", strategy)));
    explain(name, &files, options)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lent(output: &Output) -> (Option<i64>, Option<i64>) {
    let lent: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|err| panic!("{err}: {}", text(&output.stderr)));
    (lent["batch_cpu_milli"].as_i64(), lent["batch_memory_bytes"].as_i64())
}

/// Koordinator's: capacity x threshold - system - pods before batch.
#[test]
fn what_is_lent_is_what_the_formula_says() {
    const GIB: i64 = 1 << 30;
    let margin_bytes = 64 * GIB * 35 / 100;
    let memory_bytes = 64 * GIB - margin_bytes - 2 * GIB - 3 * GIB;
    let output = explain_node("lent", None, &["--json"]);
    assert_eq!(lent(&output), (Some(16_000 * 60 / 100 - 1_000 - 1_500), Some(memory_bytes)));
    let less = r#"{"enable": true, "cpuReclaimThresholdPercent": 50}"#;
    let output = explain_node("lent-less", Some(less), &["--json"]);
    assert_eq!(lent(&output), (Some(16_000 * 50 / 100 - 1_000 - 1_500), Some(memory_bytes)));
    let by_request = r#"{"enable": true, "cpuCalculatePolicy": "maxUsageRequest"}"#;
    let output = explain_node("lent-by-request", Some(by_request), &["--json"]);
    assert_eq!(lent(&output).0, Some(16_000 * 60 / 100 - 1_000 - 4_000));
}

#[test]
fn each_term_has_a_line_in_the_table() {
    let output = explain_node("table", None, &[]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for (term, cpu, memory) in [
        ("capacity", "16000m", "64.000Gi"),
        ("- safety margin", "6400m", "22.400Gi"),
        ("- system: used or reserved, whichever is more", "1000m", "2.000Gi"),
        ("  used by pods before batch", "1500m", "3.000Gi"),
        ("= offered to batch", "7100m", "36.600Gi"),
    ] {
        let line = table.lines().find(|line| line.starts_with(term));
        let figures = line.map(|line| line[term.len()..].split_whitespace().collect::<Vec<_>>());
        assert_eq!(figures, Some(vec![cpu, memory]), "{term}\n{table}");
    }
}

#[test]
fn an_old_report_and_a_strategy_that_is_off_lend_nothing_and_say_why() {
    let output = explain_node("old", None, &["--json", "--now", "2026-11-25T12:20:00Z"]);
    assert_eq!(lent(&output), (None, None));
    let output = explain_node("old-table", None, &["--now", "2026-11-25T12:20:00Z"]);
    let why = text(&output.stdout);
    assert!(why.contains("1200 s old") && why.contains("degradeTimeMinutes"), "{why}");
    let output = explain_node("off", Some(r#"{"enable": false}"#), &[]);
    let why = text(&output.stdout);
    assert!(why.starts_with("nothing is lent: "), "{why}");
}

#[test]
fn bad_files_are_named_with_what_is_wrong() {
    for (name, files, code, part) in [
        ("no-metrics", &[("--node-file", NODE)][..], 2, "--metrics-file"),
        ("pods-for-node", &[("--node-file", PODS), ("--metrics-file", METRIC)], 2, "node-file.yaml"),
        ("syntax", &[("--node-file", NODE), ("--metrics-file", "a: [")], 2, "metrics-file.yaml"),
    ] {
        let output = explain(name, files, &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{name}: {message}");
        assert!(message.contains(part), "{name}: {message}");
        assert!(output.stdout.is_empty(), "{name}");
    }
}

//! Evictions: by Koordinator's thresholds and for the sake of LS, through the Eviction API, with budgets honoured.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::cluster::{Cluster, install::GENEROUS};
use serde_json::json;

use crate::{
    citizen::{Citizen, STANDALONE},
    pod::{Pod, Spec, wait_for, wait_long},
    squeezing::{Hurt, QUOTA_ONLY},
};

/// Two minutes at its floor, and what comes before.
const HANDED_OVER: Duration = Duration::from_mins(5);

/// The node uses more than one percent of its memory, certainly.
const FULL: &str =
    r#"{"clusterStrategy":{"enable":true,"memoryEvictThresholdPercent":1,"memoryEvictLowerPercent":0}}"#;

fn batch_pod<'a>(cluster: &'a Cluster, citizen: &Citizen<'_>, name: &str) -> Result<Pod<'a>> {
    wait_for("batch resources are offered", || {
        Ok(citizen.offered("kubernetes.io/batch-cpu")?.is_some_and(|cpu| cpu >= 100))
    })
    .with_context(|| citizen.log())?;
    let amount = json!({ "kubernetes.io/batch-cpu": "100", "kubernetes.io/batch-memory": "64Mi" });
    let spec = Spec::batch(json!({ "requests": amount, "limits": amount })).labelled("app", name);
    Pod::start(cluster, name, &spec, &["pause"])
}

/// As long as the budget says no, it stays; then it goes.
pub fn budgets_are_honoured() -> Result<()> {
    let cluster = Cluster::running()?;
    let citizen = Citizen::start(&cluster, "evicting", STANDALONE, GENEROUS)?;
    let pod = batch_pod(&cluster, &citizen, "protected")?;
    cluster.apply(&json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": { "name": "protected" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "protected" } } },
    }))?;
    wait_for("the budget has seen its pod", || {
        Ok(cluster.ask_json(&["get", "pdb", "protected"])?["status"]["currentHealthy"] == 1)
    })?;
    cluster.configure(&[("colocation-config", GENEROUS), ("resource-threshold-config", FULL)])?;
    let refused = citizen.event("BatchEvictionRefused", "protected");
    let deleted = pod.look()?["metadata"]["deletionTimestamp"].is_string();
    cluster.ask(&["delete", "pdb", "protected"])?;
    println!("{}", refused?);
    ensure!(!deleted, "evicted against its budget");
    println!("{}", citizen.event("BatchEvicted", "protected")?);
    wait_for("the pod is gone", || Ok(cluster.ask(&["get", "pod", "protected"]).is_err()))
}

/// BE that hurts with the least that it must be left, for minutes, is better off on another node.
pub fn for_latency() -> Result<()> {
    let cluster = Cluster::running()?;
    // So much that LS suffers for certain.
    let policy = format!("{QUOTA_ONLY}  floor: 800m\n");
    let hurt = Hurt::of(Citizen::start(&cluster, "handed-over", &policy, GENEROUS)?, "handed-over")?;
    let name = &hurt.batch.as_ref().context("BUG: no batch pod")?.name;
    let begun = Instant::now();
    let mut told = Vec::new();
    // Seldom: kubectl is a load of its own.
    wait_long("the batch pod is evicted", HANDED_OVER, Duration::from_secs(5), || {
        told = hurt.citizen.events("BatchEvicted", Some(name))?;
        Ok(!told.is_empty())
    })
    .with_context(|| hurt.citizen.log())?;
    let why = told[0]["message"].to_string();
    println!("after {:.0?}: {why}", begun.elapsed());
    ensure!(why.contains("for the sake of LS"), "{why}");
    wait_for("the pod is gone", || Ok(cluster.ask(&["get", "pod", name]).is_err()))
}

/// A dry run only says so.
pub fn dry_run() -> Result<()> {
    let cluster = Cluster::running()?;
    let policy = format!("{STANDALONE}  eviction: dryRun\n");
    let citizen = Citizen::start(&cluster, "dry-run", &policy, GENEROUS)?;
    let pod = batch_pod(&cluster, &citizen, "spared")?;
    cluster.configure(&[("colocation-config", GENEROUS), ("resource-threshold-config", FULL)])?;
    println!("{}", citizen.event("BatchWouldBeEvicted", "spared")?);
    ensure!(pod.look()?["metadata"]["deletionTimestamp"].is_null(), "evicted");
    Ok(())
}

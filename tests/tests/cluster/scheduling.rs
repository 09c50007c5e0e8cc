//! The stock scheduler counts what is lent like any other resource.

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::cluster::{Cluster, install::GENEROUS};
use serde_json::{Value, json};

use crate::{
    citizen::{Citizen, STANDALONE},
    pod::{Pod, Spec, wait_for},
};

/// Under the name that Koordinator's profiles ask for.
const SCHEDULER: &str = "koord-scheduler";

fn batch_pod(name: &str, cpu: &str) -> (Spec, Value) {
    let amount = json!({ "kubernetes.io/batch-cpu": cpu, "kubernetes.io/batch-memory": "64Mi" });
    let spec = Spec::batch(json!({ "requests": amount, "limits": amount }));
    let mut object = spec.object(name, &["pause"]);
    object["spec"]["schedulerName"] = json!(SCHEDULER);
    (spec, object)
}

/// A batch pod waits as long as nothing is lent, or not enough, and is bound when there is.
pub fn by_what_is_lent() -> Result<()> {
    let cluster = Cluster::running()?;
    cluster.install()?;
    cluster.take_back()?;
    let (spec, object) = batch_pod("early", "500");
    cluster.apply(&object)?;
    ensure_pending(&cluster, "early")?;

    let citizen = Citizen::start(&cluster, "scheduling", STANDALONE, GENEROUS)?;
    let early = Pod::made(&cluster, "early", spec.qos()).with_context(|| citizen.log())?;
    let looked = early.look()?;
    ensure!(looked["spec"]["schedulerName"] == SCHEDULER && looked["spec"]["nodeName"] == cluster.node);

    cluster.apply(&batch_pod("greedy", "1000k").1)?;
    let pending = ensure_pending(&cluster, "greedy");
    cluster.ask(&["delete", "pod", "greedy", "--grace-period=0", "--force"])?;
    pending?;

    let described = cluster.ask(&["describe", "node", &cluster.node])?;
    let shown: Vec<&str> =
        described.lines().map(str::trim).filter(|line| line.starts_with("kubernetes.io/batch-")).collect();
    println!("{}", shown.join("\n"));
    // Capacity, allocatable, and what is given out of it, of both.
    ensure!(shown.len() == 6, "{described}");
    Ok(())
}

/// For want of nothing else.
fn ensure_pending(cluster: &Cluster, name: &str) -> Result<()> {
    let mut why = Value::Null;
    wait_for(&format!("{name} is found to fit nowhere"), || {
        let pod = cluster.ask_json(&["get", "pod", name])?;
        why = pod["status"]["conditions"][0]["message"].clone();
        Ok(pod["status"]["conditions"][0]["reason"] == "Unschedulable")
    })?;
    println!("{name}: {why}");
    ensure!(why.as_str().is_some_and(|why| why.contains("Insufficient kubernetes.io/batch-cpu")), "{why}");
    Ok(())
}

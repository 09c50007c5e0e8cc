//! The node and what runs on it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::{self, PodQos};
use enforcer_rig::cluster::Cluster;
use serde_json::{Value, json};

use crate::pod::{Pod, wait_for};

pub fn ready() -> Result<()> {
    let cluster = Cluster::running()?;
    wait_for("the node is ready", || Ok(is_ready(&cluster.ask_json(&["get", "node", &cluster.node])?)))
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

pub fn classes() -> Result<()> {
    let cluster = Cluster::running()?;
    for qos in [PodQos::Guaranteed, PodQos::Burstable, PodQos::BestEffort] {
        let name = format!("class-{}", format!("{qos:?}").to_lowercase());
        let pod = Pod::run(&cluster, &name, qos, &["pause"])?;
        for directory in pod.directories()? {
            ensure!(directory.is_dir(), "no {}", directory.display());
        }
        ensure!(pod.processes()?.len() == 1, "{:?}", pod.processes());
        let path = format!("{}/{}/{}", cluster.cgroup, pod.path(), pod.container);
        let parsed = kubepods::parse(&path).with_context(|| format!("{path} is not understood"))?;
        ensure!(
            parsed.qos == qos && parsed.uid == pod.uid && parsed.container.as_ref() == Some(&pod.container),
            "{path} is taken for {parsed:?}"
        );
    }
    Ok(())
}

pub fn removal() -> Result<()> {
    let cluster = Cluster::running()?;
    let pod = Pod::run(&cluster, "removal", PodQos::BestEffort, &["pause"])?;
    pod.delete()?;
    for directory in pod.directories()? {
        wait_for(&format!("{} is gone", directory.display()), || Ok(!directory.exists()))?;
    }
    Ok(())
}

pub fn reach() -> Result<()> {
    let cluster = Cluster::running()?;
    let pod = Pod::run(&cluster, "reach", PodQos::Burstable, &["serve", "--listen", "0.0.0.0:8080"])?;
    pod.listens_at(8080).map(drop)
}

pub fn service_account() -> Result<()> {
    let cluster = Cluster::running()?;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "someone" } });
    cluster.apply(&account)?;
    let kubeconfig = cluster.kubeconfig_of("default", "someone")?;
    let mut kubectl = Command::new(&cluster.kubectl);
    let output = kubectl.env("KUBECONFIG", &kubeconfig).args(["auth", "whoami", "--output=json"]).output()?;
    std::fs::remove_file(&kubeconfig)?;
    let user: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let name = &user["status"]["userInfo"]["username"];
    ensure!(name == "system:serviceaccount:default:someone", "{name}");
    cluster.ask(&["delete", "serviceaccount", "someone"])?;
    Ok(())
}

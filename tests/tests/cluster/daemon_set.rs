//! The agent as people run it: the chart's `DaemonSet` under kubelet, from the image, with the capabilities that it is given.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::cluster::{
    Cluster,
    install::{self, GENEROUS},
};
use enforcer_tests::needs::image;
use serde_json::Value;

use crate::pod::wait_for;

const NAMESPACE: &str = "enforcer-system";

/// The probes load, the agent turns ready, knows its node, and leaves nothing when the `DaemonSet` goes.
pub fn runs() -> Result<()> {
    let cluster = Cluster::running()?;
    let output = cluster.import(&image())?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.install()?;
    cluster.configure(&[("colocation-config", GENEROUS)])?;
    cluster.apply_yaml(&install::objects("agent", &["DaemonSet"])?)?;
    let outcome = look(&cluster);
    cluster.ask(&["delete", "daemonset", "enforcer-agent", "-n", NAMESPACE, "--timeout=60s"])?;
    wait_for("the agent's pod is gone", || Ok(pods(&cluster)?.is_empty()))?;
    outcome
}

fn look(cluster: &Cluster) -> Result<()> {
    let mut seen = Value::Null;
    let ready = wait_for("agent and guardian are ready", || {
        seen = pods(cluster)?.into_iter().next().unwrap_or_default();
        let containers = seen["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(containers.len() == 2 && containers.iter().all(|container| container["ready"] == true))
    });
    let name = seen["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let log = || cluster.ask(&["logs", &name, "--all-containers", "-n", NAMESPACE]).unwrap_or_default();
    ready.with_context(|| format!("{}\n{}", seen["status"], log()))?;
    let address = seen["status"]["podIP"].as_str().context("the pod has no address")?;
    let get = |path: &str| -> Result<String> {
        let answer = minreq::get(format!("http://{address}:9317{path}")).with_timeout(10).send()?;
        Ok(answer.as_str()?.to_owned())
    };
    println!("{}: {}", name, get("/readyz")?.trim());
    wait_for("it knows its own pod", || {
        let metrics = get("/metrics")?;
        let value =
            |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        Ok(value("enforcer_pods ").is_some_and(|pods| pods >= 1.0))
    })
    .with_context(log)?;
    wait_for("batch resources are offered", || {
        let node = cluster.ask_json(&["get", "node", &cluster.node])?;
        Ok(node["status"]["allocatable"]["kubernetes.io/batch-cpu"].is_string())
    })
    .with_context(log)?;
    // Its probes may die only with it, and neither container may restart meanwhile.
    std::thread::sleep(Duration::from_secs(5));
    let restarts = &pods(cluster)?[0]["status"]["containerStatuses"][0]["restartCount"];
    ensure!(*restarts == 0, "{restarts} restarts\n{}", log());
    Ok(())
}

fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    let all =
        cluster.ask_json(&["get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent"])?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

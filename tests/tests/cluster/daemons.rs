//! Daemons that end and start again while pods run.

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::PodQos;
use enforcer_rig::cluster::Cluster;
use rustix::process::Signal;
use serde_json::Value;

use crate::pod::{Pod, wait_for};

pub fn kubelet_restarts() -> Result<()> {
    restart("kubelet", |cluster| {
        let before = renewed_at(cluster)?;
        wait_for("kubelet tells of its node again", || Ok(renewed_at(cluster)? != before))
    })
}

pub fn containerd_restarts() -> Result<()> {
    restart("containerd", |cluster| {
        // It answers once it can make a pod.
        Pod::run(cluster, "afterwards", PodQos::BestEffort, &["pause"]).map(drop)
    })
}

/// Restarts a daemon under a pod and waits until it is back.
fn restart(name: &str, wait_until_back: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let witness = Cluster::running()?;
    let pod = Pod::run(&witness, &format!("under-{name}"), PodQos::Burstable, &["pause"])?;
    let processes = pod.processes()?;
    let mut cluster = Cluster::running()?;
    let before = cluster.daemon(name)?.pid;
    cluster.restart(name)?;
    ensure!(cluster.daemon(name)?.pid != before, "{name} is the same as before");
    wait_until_back(&cluster)?;
    ensure_untouched(&pod, &processes)?;
    Cluster::running()?;
    Ok(())
}

pub fn api_server_stops() -> Result<()> {
    let cluster = Cluster::running()?;
    let pod = Pod::run(&cluster, "without-api-server", PodQos::Burstable, &["pause"])?;
    let processes = pod.processes()?;
    let server = cluster.daemon("kube-apiserver")?;
    server.signal(Signal::STOP)?;
    let asked = cluster.ask(&["get", "--raw=/readyz"]);
    server.signal(Signal::CONT)?;
    ensure!(asked.is_err(), "the API server answers although it is stopped");
    wait_for("the API server answers again", || Ok(cluster.ask(&["get", "--raw=/readyz"]).is_ok()))?;
    ensure_untouched(&pod, &processes)
}

fn ensure_untouched(pod: &Pod, processes: &[u32]) -> Result<()> {
    ensure!(pod.processes()? == processes, "{processes:?} became {:?}", pod.processes());
    let status = &pod.look()?["status"]["containerStatuses"][0];
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}

/// When kubelet last said that it lives.
fn renewed_at(cluster: &Cluster) -> Result<String> {
    let lease = cluster.ask_json(&["get", "lease", &cluster.node, "--namespace=kube-node-lease"])?;
    let renewed: &Value = &lease["spec"]["renewTime"];
    Ok(renewed.as_str().context("the node's lease was never renewed")?.to_owned())
}

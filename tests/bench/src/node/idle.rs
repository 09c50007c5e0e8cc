//! Pods that do nothing, on the real node.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_rig::cluster::{Cluster, WORKLOAD_IMAGE};
use serde_json::{Value, json};

use super::{Args, start_agent, wait_for_pods, watch};

const SELECTOR: &str = "--selector=enforcer-bench=idle";
/// For each pod, until all run.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(args: &Args, cluster: &Cluster) -> Result<Value> {
    eprintln!("starting {} idle pods", args.idle_pods);
    let pods = Pods::start(cluster, args.idle_pods)?;
    let directory = tempfile::Builder::new().prefix("enforcer-bench-").tempdir()?;
    let mut agent = start_agent(cluster, &cluster.node, directory.path(), "")?;
    wait_for_pods(&mut agent, args.idle_pods)?;
    eprintln!("{} idle pods: watching the agent for {} s", args.idle_pods, args.seconds);
    let figures = watch(&mut agent, args.seconds)?;
    agent.end(None)?;
    drop(pods);
    Ok(figures)
}

/// Deleted when dropped.
struct Pods<'a>(&'a Cluster);

impl<'a> Pods<'a> {
    fn start(cluster: &'a Cluster, count: usize) -> Result<Self> {
        let pods = Self(cluster);
        pods.delete()?;
        let objects: Vec<Value> = (0..count).map(object).collect();
        cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }))?;
        let patience = PATIENCE * u32::try_from(count)?;
        cluster.wait_for(&format!("{count} pods run"), patience, || Ok(pods.running()? == count))?;
        Ok(pods)
    }

    fn running(&self) -> Result<usize> {
        let names = ["get", "pods", SELECTOR, "--field-selector=status.phase=Running", "--output=name"];
        Ok(self.0.ask(&names)?.lines().count())
    }

    fn delete(&self) -> Result<()> {
        self.0.ask(&["delete", "pods", SELECTOR, "--grace-period=1", "--wait=false"])?;
        let until = Instant::now() + Duration::from_mins(2);
        while !self.0.ask(&["get", "pods", SELECTOR, "--output=name"])?.is_empty() {
            ensure!(Instant::now() < until, "pods of the benchmark stay");
            // Interrupted or not, they have to go.
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

impl Drop for Pods<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.delete() {
            eprintln!("{err:#}");
        }
    }
}

/// LS and BE by turns, as small as they come.
fn object(place: usize) -> Value {
    let class = if place.is_multiple_of(2) { "LS" } else { "BE" };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("idle-{place}"),
            "labels": { "enforcer-bench": "idle", "koordinator.sh/qosClass": class },
        },
        "spec": { "containers": [{
            "name": "main", "image": WORKLOAD_IMAGE, "imagePullPolicy": "Never", "args": ["pause"],
        }]},
    })
}

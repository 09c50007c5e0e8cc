//! `bench node`: what the agent costs as a citizen of a cluster.
//!
//! `idle`: pods that do nothing on the real node, kubelet's and containerd's. `churn`: a second node object without a kubelet, with
//! many more pods, whose directories are made here, and which come and go.

mod churn;
mod idle;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use enforcer_rig::{
    agent::Agent,
    cluster::{Cluster, install::GENEROUS},
    interrupt,
    process::built,
    wait,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Idle pods on the real node.
    #[arg(long, default_value_t = 80)]
    idle_pods: usize,
    /// Pods on the node without a kubelet.
    #[arg(long, default_value_t = 500)]
    pods: usize,
    /// Pods there that come or go per second.
    #[arg(long, default_value_t = 10)]
    changes: u32,
    /// How long to watch the agent.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// For all pods to be counted.
const PATIENCE: Duration = Duration::from_secs(20);
/// Until what the start took is over.
const SETTLED: Duration = Duration::from_secs(20);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// As much of the agent's status as is needed here.
#[derive(Deserialize)]
struct Status {
    agent_cpu_seconds: f64,
    agent_resident_bytes: u64,
    overhead_ratio: Option<f64>,
    groups: Vec<GroupStatus>,
}

#[derive(Deserialize)]
struct GroupStatus {
    cgroups: usize,
}

impl Status {
    /// Pods with directories.
    fn pods(&self) -> usize {
        self.groups.iter().filter(|group| group.cgroups > 0).count()
    }
}

pub fn run(args: &Args) -> Result<Value> {
    let cluster = Cluster::running()?;
    cluster.install()?;
    cluster.configure(&[("colocation-config", GENEROUS)])?;
    let rows = (|| {
        anyhow::Ok(json!({
            "seconds": args.seconds,
            "idle": idle::run(args, &cluster)?,
            "churn": churn::run(args, &cluster)?,
        }))
    })();
    cluster.unconfigure()?;
    cluster.take_back()?;
    rows
}

/// An agent with the rights that ship, on a node of this cluster.
fn start_agent(cluster: &Cluster, node: &str, directory: &Path, limits: &str) -> Result<Agent> {
    let kubeconfig = cluster.agents_kubeconfig()?;
    let kubeconfig = kubeconfig.to_str().context("the kubeconfig's path is no text")?;
    let policy = format!("kubernetes:\n  slo: {{ runQueueWait: {{ p99: 2ms }} }}\n{limits}");
    Agent::start(&built("enforcer")?, directory, &policy, None, &["--node", node, "--kubeconfig", kubeconfig])
}

/// Waits until the agent counts so many pods.
fn wait_for_pods(agent: &mut Agent, pods: usize) -> Result<()> {
    wait::until(&format!("the agent counts {pods} pods"), PATIENCE, wait::LOOK, || {
        agent.check()?;
        Ok(agent.status::<Status>()?.pods() == pods)
    })
}

/// What the agent uses from now on.
fn watch(agent: &mut Agent, seconds: u64) -> Result<Value> {
    interrupt::sleep(SETTLED)?;
    let begun = std::time::Instant::now();
    let before: Status = agent.status()?;
    let mut resident_bytes = 0;
    let mut overhead: f64 = 0.0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        interrupt::sleep(LOOK)?;
        agent.check()?;
        let status: Status = agent.status()?;
        resident_bytes = status.agent_resident_bytes.max(resident_bytes);
        overhead = status.overhead_ratio.unwrap_or_default().max(overhead);
    }
    let after: Status = agent.status()?;
    let used = after.agent_cpu_seconds - before.agent_cpu_seconds;
    Ok(json!({
        "pods": after.pods(),
        "cpu_percent": used / begun.elapsed().as_secs_f64() * 100.0,
        "rss_mib": resident_bytes as f64 / f64::from(1 << 20),
        "overhead_percent_of_node_max": overhead * 100.0,
    }))
}

//! The chart, installed by Helm, and its agent, which can be switched off while everything else stays.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{agent, cluster::Cluster};
use serde_json::{Value, json};

use super::objects::Pod;
use crate::{
    demo::status::Status,
    manifests::{CHART, NAMESPACE},
    programs::{root, run_quietly},
};

const RELEASE: &str = "enforcer";
const DAEMON_SET: &str = "enforcer-agent";
const AGENTS: &str = "app.kubernetes.io/component=agent";
const PORT: u16 = 9317;
/// A label that no node has.
const NOWHERE: &str = "enforcer.dev/nowhere";
/// For Helm to see everything ready, or gone.
const HELM_PATIENCE: &str = "3m";
const FREE_THE_PLACE: &str =
    "what the tests installed, or another demo, has to go first: `cargo xtask cluster down`";
const PATIENCE: Duration = Duration::from_mins(2);

/// An installed one. It is uninstalled when dropped.
#[derive(Debug)]
pub struct Chart<'a> {
    cluster: &'a Cluster,
    helm: PathBuf,
    is_installed: bool,
}

impl<'a> Chart<'a> {
    /// Installs it, and waits until everything is ready. Agents lend CPU up to `reclaim` percent of what the node has.
    pub fn install(cluster: &'a Cluster, helm: &Path, reclaim: u32) -> Result<Self> {
        // What somebody else installed must not be uninstalled in the end.
        ensure!(!is_recorded(cluster)?, "the chart is installed already; {FREE_THE_PLACE}");
        let chart = Self { cluster, helm: helm.to_owned(), is_installed: true };
        let path = cluster.paths.tree.join("etc/values.json");
        fs::write(&path, values(reclaim).to_string())?;
        let mut command = chart.helm("install");
        command.arg(root().join(CHART)).args(["--create-namespace", "--wait", "--values"]).arg(path);
        run_quietly(&mut command).with_context(|| {
            format!("the chart cannot be installed; {FREE_THE_PLACE}\n{}", chart.complaint())
        })?;
        Ok(chart)
    }

    /// Uninstalls it; batch resources go with it.
    pub fn uninstall(mut self) -> Result<()> {
        self.is_installed = false;
        run_quietly(&mut self.helm("uninstall")).context("the chart cannot be uninstalled")?;
        Ok(())
    }

    /// Switches the agents on, and waits until the node's is ready.
    pub fn enforce(&self) -> Result<Agent> {
        self.select(&Value::Null)?;
        let mut address = None;
        let ready = self.cluster.wait_for("the agent is ready", PATIENCE, || {
            let agents = self.agents()?;
            address = agents.iter().find(|pod| pod.is_ready).and_then(|pod| pod.address);
            Ok(address.is_some())
        });
        ready.with_context(|| self.complaint())?;
        let address = SocketAddr::new(address.context("BUG: an agent without address")?, PORT);
        Ok(Agent { address })
    }

    /// Switches the agents off, and waits until none is left. What they lent stays lent.
    pub fn leave_alone(&self) -> Result<()> {
        self.select(&json!("true"))?;
        self.cluster.wait_for("the agent is gone", PATIENCE, || Ok(self.agents()?.is_empty()))
    }

    fn select(&self, label: &Value) -> Result<()> {
        let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { NOWHERE: label } } } } });
        let patch = patch.to_string();
        let arguments = ["--namespace", NAMESPACE, "--type=merge", "--patch", &patch];
        self.cluster.ask(&[&["patch", "daemonset", DAEMON_SET][..], &arguments].concat())?;
        Ok(())
    }

    fn agents(&self) -> Result<Vec<Pod>> {
        Pod::all(self.cluster, NAMESPACE, AGENTS)
    }

    fn helm(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.helm);
        command.args([verb, RELEASE, "--namespace", NAMESPACE, "--timeout", HELM_PATIENCE]);
        command.env("KUBECONFIG", &self.cluster.paths.kubeconfig);
        // Nothing of the user's is read or written.
        for (variable, directory) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(variable, self.cluster.paths.tree.join("helm").join(directory));
        }
        command
    }

    /// What may be the matter with its pods.
    fn complaint(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.cluster.ask(&[arguments, &["--namespace", NAMESPACE]].concat()).unwrap_or_default()
        };
        ask(&["get", "pods"]) + &ask(&["get", "events", "--field-selector=type=Warning"])
    }
}

impl Drop for Chart<'_> {
    fn drop(&mut self) {
        if !self.is_installed {
            return;
        }
        // Not with `run_quietly`: what was interrupted is uninstalled all the same.
        let output = self.helm("uninstall").arg("--ignore-not-found").output();
        if !output.is_ok_and(|output| output.status.success()) {
            println!("the chart stays installed");
        }
    }
}

/// Whether Helm has a record of it.
fn is_recorded(cluster: &Cluster) -> Result<bool> {
    let selector = format!("--selector=owner=helm,name={RELEASE}");
    let records = cluster.ask(&["get", "secrets", "--namespace", NAMESPACE, &selector, "--output=name"])?;
    Ok(!records.trim().is_empty())
}

/// What suits a node of two CPUs that has its images already.
fn values(reclaim: u32) -> Value {
    json!({
        "image": { "pullPolicy": "Never" },
        "controller": { "replicas": 1 },
        "webhook": { "replicas": 1 },
        "config": { "data": { "colocation-config": {
            "enable": true,
            // By default all that is idle: a part of so small a node would not do for a driver and an executor.
            "cpuReclaimThresholdPercent": reclaim,
        } } },
    })
}

/// A running agent.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    address: SocketAddr,
}

impl Agent {
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&agent::served(self.address, "/v1/status")?)?)
    }
}

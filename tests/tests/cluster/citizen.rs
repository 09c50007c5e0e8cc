//! An agent that knows its pods, with the rights that ship and no others.

use std::path::Path;

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;
use enforcer_tests::agent::{Agent, Files};
use serde_json::Value;

use crate::pod::wait_for;

/// What the agent does for a node without a policy of its own; most tests ask for this.
pub const STANDALONE: &str = "kubernetes:\n  slo: { runQueueWait: { p99: 2ms } }\n";
/// An agent on the cluster's node, and what was installed for it. The settings go when it is dropped.
pub struct Citizen<'a> {
    pub cluster: &'a Cluster,
    pub agent: Agent,
    pub files: Files,
}

impl<'a> Citizen<'a> {
    /// Installs what the chart installs, without its workloads, and starts an agent as the chart's service account.
    pub fn start(cluster: &'a Cluster, name: &str, policy: &str, strategy: &str) -> Result<Self> {
        cluster.install()?;
        cluster.configure(&[("colocation-config", strategy)])?;
        Self::start_against(cluster, name, policy, &cluster.agents_kubeconfig()?)
    }

    /// The same with an API server, or whatever stands before it, that is reached by this kubeconfig.
    pub fn start_against(cluster: &'a Cluster, name: &str, policy: &str, kubeconfig: &Path) -> Result<Self> {
        let files = Files::new(name)?;
        let kubeconfig = kubeconfig.to_str().context("the kubeconfig's path is no text")?;
        let more = ["--node", &cluster.node, "--kubeconfig", kubeconfig];
        let agent = Agent::start(&files, policy, &more)?;
        Ok(Self { cluster, agent, files })
    }

    /// What the node offers of a resource. `None`: it does not know the resource.
    pub fn offered(&self, resource: &str) -> Result<Option<i64>> {
        let node = self.cluster.ask_json(&["get", "node", &self.cluster.node])?;
        let offered = &node["status"]["allocatable"][resource];
        offered.as_str().map(|text| text.parse().with_context(|| format!("{resource}: {text}"))).transpose()
    }

    /// Events of this reason, about this object if it is named, as kubectl has them.
    pub fn events(&self, reason: &str, about: Option<&str>) -> Result<Vec<Value>> {
        let selector = format!("--field-selector=reason={reason}");
        let all = self.cluster.ask_json(&["get", "events", "--all-namespaces", &selector])?;
        let items = all["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .into_iter()
            .filter(|event| about.is_none_or(|name| event["involvedObject"]["name"] == name))
            .collect())
    }

    /// Waits for an event and returns its text.
    pub fn event(&self, reason: &str, about: &str) -> Result<String> {
        let mut text = None;
        let waited = wait_for(&format!("an event {reason} tells about {about}"), || {
            text = self.events(reason, Some(about))?.first().map(|event| event["message"].to_string());
            Ok(text.is_some())
        });
        waited.with_context(|| format!("the agent's log:\n{}", self.files.log().unwrap_or_default()))?;
        text.context("BUG: waited for it")
    }

    /// The agent's log, for messages.
    pub fn log(&self) -> String {
        format!("the agent's log:\n{}", self.files.log().unwrap_or_default())
    }
}

impl Drop for Citizen<'_> {
    fn drop(&mut self) {
        if let Err(err) = forget(self.cluster) {
            println!("something stays in the cluster: {err:#}");
        }
    }
}

/// Events and settings of one test must not be taken for another's.
fn forget(cluster: &Cluster) -> Result<()> {
    cluster.unconfigure()?;
    cluster.take_back()?;
    for namespace in ["default", "kube-system"] {
        cluster.ask(&["delete", "events", "--all", "-n", namespace])?;
    }
    Ok(())
}

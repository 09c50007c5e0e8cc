//! Pods, as the API server has them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;
use serde_json::Value;

/// Whose pods the example's profiles turn into batch pods.
pub const BATCH_NAMESPACE: &str = "spark-demo";
/// For a pod to run, and for what runs in it to listen.
const PATIENCE: Duration = Duration::from_mins(2);

fn is_lent(pod: &Value) -> bool {
    let spec = &pod["spec"];
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    pod["metadata"]["labels"]["koordinator.sh/qosClass"] == "BE"
        && spec["schedulerName"] == "koord-scheduler"
        && spec["nodeName"].is_string()
        && containers.iter().map(|container| &container["resources"]["requests"]).all(|requests| {
            let has = |resource: &str| requests[resource].is_string();
            has("kubernetes.io/batch-cpu")
                && has("kubernetes.io/batch-memory")
                && !has("cpu")
                && !has("memory")
        })
}

/// As much of a pod as is needed here.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    /// Of its life: `Pending`, `Running` and so on.
    pub phase: String,
    /// All of its containers are ready.
    pub is_ready: bool,
    /// BE, on batch resources alone, and bound by the chart's second scheduler.
    pub is_lent: bool,
    pub address: Option<IpAddr>,
}

impl Pod {
    fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let status = &object["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        Self {
            name: text(&object["metadata"]["name"]),
            phase: text(&status["phase"]),
            is_ready: ready.any(|condition| condition["status"] == "True"),
            is_lent: is_lent(object),
            address: status["podIP"].as_str().and_then(|address| address.parse().ok()),
        }
    }

    /// Those that a selector of labels matches.
    pub fn all(cluster: &Cluster, namespace: &str, selector: &str) -> Result<Vec<Self>> {
        let found = cluster.ask_json(&["get", "pods", "--namespace", namespace, "--selector", selector])?;
        Ok(found["items"].as_array().into_iter().flatten().map(Self::of).collect())
    }

    /// Deletes those that a selector of labels matches, and waits until they are gone.
    pub fn delete_all(cluster: &Cluster, namespace: &str, selector: &str) -> Result<()> {
        let arguments = ["--selector", selector, "--grace-period=1", "--timeout=60s", "--ignore-not-found"];
        cluster.ask(&[&["delete", "pods", "--namespace", namespace][..], &arguments].concat())?;
        Ok(())
    }

    /// Makes one and waits until it runs. It needs labels of its own, by which it is found.
    pub fn make(cluster: &Cluster, object: &Value, namespace: &str, selector: &str) -> Result<Self> {
        cluster.apply(object)?;
        let mut seen = Vec::new();
        cluster
            .wait_for(&format!("pod {selector} runs"), PATIENCE, || {
                seen = Self::all(cluster, namespace, selector)?;
                Ok(seen.iter().any(|pod| pod.phase == "Running" && pod.address.is_some()))
            })
            .with_context(|| {
                let about =
                    cluster.ask(&["describe", "pods", "--namespace", namespace, "--selector", selector]);
                about.unwrap_or_default()
            })?;
        seen.pop().context("BUG: no pod was seen")
    }

    /// Where it is reached at this port, once it accepts connections: that it runs does not say so.
    pub fn listens_at(&self, cluster: &Cluster, port: u16) -> Result<SocketAddr> {
        let address = SocketAddr::new(self.address.context("BUG: a running pod has an address")?, port);
        cluster.wait_for(&format!("{} accepts connections", self.name), PATIENCE, || {
            Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
        })?;
        Ok(address)
    }
}

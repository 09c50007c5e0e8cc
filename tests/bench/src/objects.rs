//! Kubernetes objects by the hundred: kubectl would take a process for each.

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Requests at once.
const AT_ONCE: usize = 16;
const NAMESPACE: &str = "default";
/// What all of them are labelled with.
const LABEL: &str = "enforcer-bench";

/// Makes nodes that no kubelet stands behind, and pods on them. All are removed when it is dropped.
pub struct Objects {
    runtime: Runtime,
    nodes: Api<Node>,
    pods: Api<Pod>,
}

impl Objects {
    /// As the cluster's administrator.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(cluster))?;
        let objects =
            Self { runtime, nodes: Api::all(client.clone()), pods: Api::namespaced(client, NAMESPACE) };
        // Of a benchmark that was killed.
        objects.remove()?;
        Ok(objects)
    }

    /// Nodes of 16 CPUs and 64 GiB.
    pub fn make_nodes(&self, names: impl Iterator<Item = String>) -> Result<()> {
        let amounts = json!({ "cpu": "16", "memory": "64Gi", "pods": "1000" });
        let nodes = names
            .map(|name| {
                Ok(serde_json::from_value(json!({
                    "metadata": { "name": name, "labels": { LABEL: "" } },
                    "status": { "capacity": amounts, "allocatable": amounts },
                }))?)
            })
            .collect::<Result<Vec<Node>>>()?;
        let create = |node: Node| async move { self.nodes.create(&PostParams::default(), &node).await };
        self.runtime
            .block_on(stream::iter(nodes).map(create).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>())?;
        Ok(())
    }

    /// Makes pods and returns them as the API server has them, in any order.
    pub fn make_pods(&self, pods: Vec<Pod>) -> Result<Vec<Pod>> {
        let create = |pod: Pod| async move { self.pods.create(&PostParams::default(), &pod).await };
        let made = stream::iter(pods).map(create).buffer_unordered(AT_ONCE).try_collect();
        Ok(self.runtime.block_on(made)?)
    }

    /// Tells what kubelet would tell of a pod.
    pub fn set_pod_status(&self, name: &str, status: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "status": status }));
        let parameters = PatchParams::default();
        let patched = self.pods.patch_status(name, &parameters, &patch);
        self.runtime.block_on(patched).with_context(|| format!("the status of pod {name}"))?;
        Ok(())
    }

    /// At once, since no kubelet would have anything to end.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        let deleted = self.pods.delete(name, &now);
        self.runtime.block_on(deleted).with_context(|| format!("pod {name} stays"))?;
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let (now, ours) = (DeleteParams::default().grace_period(0), ListParams::default().labels(LABEL));
        self.runtime.block_on(async {
            self.pods.delete_collection(&now, &ours).await?;
            self.nodes.delete_collection(&now, &ours).await
        })?;
        Ok(())
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Err(err) = self.remove() {
            eprintln!("objects labelled {LABEL} stay in the cluster: {err:#}");
        }
    }
}

async fn client(cluster: &Cluster) -> Result<Client> {
    let file = Kubeconfig::read_from(&cluster.paths.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A pod on a node of ours, where no scheduler and no taint sends it away.
pub fn pod(name: &str, node: &str, more_labels: &Value, spec: &Value) -> Result<Pod> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": more_labels },
        "spec": spec,
    });
    pod["metadata"]["labels"][LABEL] = json!("");
    pod["spec"]["nodeName"] = json!(node);
    pod["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    Ok(serde_json::from_value(pod)?)
}

//! What the chart installs, for agents that are started by hand: with the rights that ship and no others.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, root};

/// Where the settings are that koord-manager and the agents follow.
pub const SETTINGS_NAMESPACE: &str = "koordinator-system";
/// Lends more than there is, so that what else runs on the machine makes no difference.
pub const GENEROUS: &str =
    r#"{"enable":true,"cpuReclaimThresholdPercent":300,"memoryReclaimThresholdPercent":90}"#;
const SETTINGS: &str = "slo-controller-config";
/// Kinds of what runs, and of what asks those who run.
const RUNNING: [&str; 5] =
    ["DaemonSet", "Deployment", "Service", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// The chart's plain YAML.
fn manifests() -> Result<Vec<String>> {
    let path = root().join("daemonset/enforcer.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.split("\n---\n").map(str::to_owned).collect())
}

/// Of the chart's plain YAML, the objects of these kinds that belong to this component.
///
/// # Errors
/// Where there are not as many as kinds.
pub fn objects(component: &str, kinds: &[&str]) -> Result<String> {
    let component = format!("app.kubernetes.io/component: {component}");
    let mut objects = manifests()?;
    objects.retain(|object| is_of(object, kinds) && object.lines().any(|line| line.trim() == component));
    ensure!(objects.len() == kinds.len(), "{} objects of {kinds:?} for {component}", objects.len());
    Ok(objects.join("\n---\n"))
}

fn is_of(object: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| object.lines().any(|line| line == format!("kind: {kind}")))
}

/// One of the example's files, such as `profile.yaml`.
///
/// # Errors
/// Where there is no such file.
pub fn example(name: &str) -> Result<String> {
    let path = root().join("daemonset/examples/spark").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

impl Cluster {
    /// Makes what the chart makes, but for what runs.
    ///
    /// # Errors
    /// Where the API server refuses something.
    pub fn install(&self) -> Result<()> {
        let mut objects = manifests()?;
        objects.retain(|object| !is_of(object, &RUNNING));
        self.apply_yaml(&objects.join("\n---\n"))
    }

    /// Sets these keys of the settings, and no others.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub fn configure(&self, keys: &[(&str, &str)]) -> Result<()> {
        let data: serde_json::Map<String, Value> =
            keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": SETTINGS, "namespace": SETTINGS_NAMESPACE },
            "data": data,
        }))
    }

    /// Removes the settings.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub fn unconfigure(&self) -> Result<()> {
        self.ask(&["delete", "configmap", SETTINGS, "-n", SETTINGS_NAMESPACE, "--ignore-not-found"])?;
        Ok(())
    }

    /// Takes away what agents that are gone had lent, which the chart's controller would do some time.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub fn take_back(&self) -> Result<()> {
        let nothing =
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": self.node }, "status": {} });
        self.apply_server_side(&nothing, "enforcer", &["--subresource=status"])
    }

    /// Leads agents to the API server, as the chart's service account.
    ///
    /// # Errors
    /// Where nothing is installed.
    pub fn agents_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig_of("enforcer-system", "enforcer-agent")
    }
}

//! Does the API server take what the chart renders? A dry run on its side: everything is checked, nothing is kept.

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::{Cluster, install::SETTINGS_NAMESPACE};
use serde_json::json;

use crate::{
    go,
    manifests::{self, NAMESPACE},
};

/// Others' kinds that the chart makes objects of: where their CRDs are in whose Go module.
const OTHERS: [(&str, &str, &[&str]); 2] = [
    (
        "github.com/prometheus-operator/prometheus-operator",
        "0.85.0",
        &[
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ],
    ),
    (
        "github.com/cert-manager/cert-manager",
        "1.21.2",
        &["deploy/crds/cert-manager.io_certificates.yaml", "deploy/crds/cert-manager.io_issuers.yaml"],
    ),
];

/// Tries the chart with its defaults and with each file of values in its `ci` directory.
pub fn run() -> Result<()> {
    let definitions = definitions()?;
    let cluster = Cluster::running()?;
    for file in &definitions {
        cluster.ask(&["apply", "--server-side", "--filename", file])?;
    }
    let files: Vec<&str> = definitions.iter().flat_map(|file| ["--filename", file.as_str()]).collect();
    let tried = cluster
        .ask(&[&["wait", "--for=condition=Established", "--timeout=60s"][..], &files].concat())
        .and_then(|_| try_all(&cluster));
    cluster.ask(&[&["delete", "--ignore-not-found"][..], &files].concat())?;
    tried
}

fn try_all(cluster: &Cluster) -> Result<()> {
    // What is in a namespace is taken only if that is there.
    for name in [NAMESPACE, SETTINGS_NAMESPACE] {
        cluster.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))?;
    }
    for (name, objects) in manifests::all_rendered()? {
        let answers = cluster
            .dry_run_yaml(&objects)
            .with_context(|| format!("the API server does not take what the chart renders with {name}"))?;
        println!("with {name}: {} objects pass the API server's dry run", answers.lines().count());
    }
    Ok(())
}

/// Files with the CRDs of others.
fn definitions() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for (module, version, paths) in OTHERS {
        let sources = go::sources(module, version)?;
        files.extend(paths.iter().map(|path| sources.join(path).display().to_string()));
    }
    Ok(files)
}

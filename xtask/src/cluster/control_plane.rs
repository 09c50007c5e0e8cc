//! etcd, API server, controller manager and scheduler.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use super::{
    binaries::Binaries,
    launch::Launch,
    network::{API_ADDRESS, SERVICES},
    pki::{Authority, Identity},
};

/// For a server to be ready.
const PATIENCE: Duration = Duration::from_mins(1);
const ADMINISTRATORS: Option<&str> = Some("system:masters");

/// Starts etcd and the API server, and gives the administrator a kubeconfig.
pub fn start_api(launch: &mut Launch, binaries: &Binaries, authority: &Authority) -> Result<()> {
    // What is stored need not outlive a loss of power.
    let etcd = ["--data-dir=/var/lib/etcd", "--unsafe-no-fsync"].map(str::to_owned);
    launch.start("etcd", &binaries.etcd, &etcd)?;

    let node = launch.cluster.address.to_string();
    let names = [
        "127.0.0.1",
        &node,
        &API_ADDRESS.to_string(),
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let server = authority.issue(&Identity {
        name: "api-server",
        user: "kube-apiserver",
        group: None,
        serves: &names,
    })?;
    let client = authority.issue(&Identity {
        name: "api-server-to-kubelet",
        user: "kube-apiserver-kubelet-client",
        group: ADMINISTRATORS,
        serves: &[],
    })?;
    let (private_key, public_key) = authority.token_keys()?;
    let ca = authority.files().certificate;
    let arguments = [
        flag("etcd-servers", "http://127.0.0.1:2379"),
        flag("bind-address", "0.0.0.0"),
        // The port and, in `network`, the address of its own service: pods reach it there although nothing like kube-proxy
        // forwards services.
        flag("secure-port", "443"),
        flag("advertise-address", &node),
        flag("service-cluster-ip-range", SERVICES),
        // For the same reason, webhooks are called at the addresses of their pods.
        flag("enable-aggregator-routing", "true"),
        flag("allow-privileged", "true"),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        file("client-ca-file", &ca),
        file("tls-cert-file", &server.certificate),
        file("tls-private-key-file", &server.key),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        file("service-account-key-file", &public_key),
        file("service-account-signing-key-file", &private_key),
        file("kubelet-certificate-authority", &ca),
        file("kubelet-client-certificate", &client.certificate),
        file("kubelet-client-key", &client.key),
        // Nobody resolves the node's name.
        flag("kubelet-preferred-address-types", "InternalIP"),
    ];
    launch.start("kube-apiserver", &binaries.api_server, &arguments)?;

    let administrator =
        Identity { name: "administrator", user: "administrator", group: ADMINISTRATORS, serves: &[] };
    let cluster = &launch.cluster;
    authority.kubeconfig(&administrator, &cluster.server(), &cluster.paths.kubeconfig)
}

/// Waits until the API server answers.
pub fn wait_for_api(launch: &Launch) -> Result<()> {
    launch.cluster.wait_for("the API server is ready", PATIENCE, || {
        Ok(launch.cluster.ask(&["get", "--raw=/readyz"]).is_ok())
    })
}

/// Starts those who act on what the API server stores.
pub fn start_controllers(launch: &mut Launch, binaries: &Binaries, authority: &Authority) -> Result<()> {
    let kubeconfig = component(launch, authority, "kube-controller-manager")?;
    let ca = authority.files();
    let arguments = [
        file("kubeconfig", &kubeconfig),
        flag("leader-elect", "false"),
        flag("bind-address", "127.0.0.1"),
        // Each controller with rights of its own, or RBAC leaves them none.
        flag("use-service-account-credentials", "true"),
        // The default one would be made on the host.
        flag("flex-volume-plugin-dir", "/var/lib/kube-controller-manager/volume-plugins"),
        file("service-account-private-key-file", &launch.path("pki/tokens.key")),
        file("root-ca-file", &ca.certificate),
        file("cluster-signing-cert-file", &ca.certificate),
        file("cluster-signing-key-file", &ca.key),
    ];
    launch.start("kube-controller-manager", &binaries.controller_manager, &arguments)?;

    let kubeconfig = component(launch, authority, "kube-scheduler")?;
    let configuration = launch.configure(
        "scheduler.json",
        &serde_json::to_string_pretty(&json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": { "leaderElect": false },
            "clientConnection": { "kubeconfig": kubeconfig },
            // The second is the name that pods carry which Koordinator's webhook has changed.
            "profiles": [{ "schedulerName": "default-scheduler" }, { "schedulerName": "koord-scheduler" }],
        }))?,
    )?;
    let arguments = [file("config", &configuration), flag("secure-port", "0")];
    launch.start("kube-scheduler", &binaries.scheduler, &arguments)
}

/// The kubeconfig of a component whose rights are RBAC's defaults.
fn component(launch: &Launch, authority: &Authority, name: &str) -> Result<PathBuf> {
    let user = format!("system:{name}");
    let path = launch.path("etc").join(format!("{name}.kubeconfig"));
    let client = Identity { name, user: &user, group: None, serves: &[] };
    authority.kubeconfig(&client, &launch.cluster.server(), &path)?;
    Ok(path)
}

pub fn flag(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

pub fn file(name: &str, value: &Path) -> String {
    format!("--{name}={}", value.display())
}

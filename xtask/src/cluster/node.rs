//! The node: containerd and kubelet.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use enforcer_rig::{cluster::PAUSE_IMAGE, process::installed};
use serde_json::json;

use super::{
    binaries::Binaries,
    control_plane::{file, flag},
    launch::Launch,
    pki::{Authority, Identity},
};
use crate::programs::run_quietly;

/// The node's name.
pub const NAME: &str = "node";
/// What services' names end with.
pub const DOMAIN: &str = "cluster.local";
/// Debian's CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// For the node to be ready.
const PATIENCE: Duration = Duration::from_mins(2);

/// Starts containerd, with a bridge for pods.
pub fn start_runtime(launch: &mut Launch, pods: &str) -> Result<()> {
    let networks = launch.path("etc/networks");
    fs::create_dir(&networks).with_context(|| format!("cannot make {}", networks.display()))?;
    launch.configure(
        "networks/bridge.conflist",
        &serde_json::to_string_pretty(&json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods }]],
                    // To the node's other addresses.
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        }))?,
    )?;
    let configuration = launch.configure("containerd.toml", &runtime_configuration(&networks))?;
    let arguments = [file("config", &configuration)];
    launch.start("containerd", &installed("containerd")?, &arguments)
}

/// `restrict_oom_score_adj`: no process may be made less likely to be killed than its parent without `CAP_SYS_RESOURCE`,
/// which containers and small virtual machines lack; containerd is told not to try.
fn runtime_configuration(networks: &Path) -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{}"
"#,
        networks.display()
    )
}

/// Waits until containerd answers, and gives it images.
pub fn load_images(launch: &Launch, archives: &[impl AsRef<Path>]) -> Result<()> {
    launch.cluster.wait_for("containerd answers", PATIENCE, || {
        let mut ctr = launch.cluster.command_among_daemons("ctr")?;
        let output = ctr.args(["--connect-timeout=2s", "version"]).output()?;
        Ok(output.status.success())
    })?;
    for archive in archives {
        run_quietly(&mut launch.cluster.import(archive.as_ref())?)?;
    }
    Ok(())
}

/// Starts kubelet.
pub fn start_kubelet(launch: &mut Launch, binaries: &Binaries, authority: &Authority) -> Result<()> {
    let user = format!("system:node:{NAME}");
    let address = launch.cluster.address.to_string();
    let identity = authority.issue(&Identity {
        name: "kubelet",
        user: &user,
        group: Some("system:nodes"),
        serves: &[&address, NAME],
    })?;
    let kubeconfig = launch.path("etc/kubelet.kubeconfig");
    authority.kubeconfig_with(&identity, &launch.cluster.server(), &kubeconfig)?;
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "tlsCertFile": identity.certificate,
        "tlsPrivateKeyFile": identity.key,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority.files().certificate },
        },
        "authorization": { "mode": "Webhook" },
        // Nobody answers there unless a name server is started.
        "clusterDNS": [address],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", launch.cluster.cgroup),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        // The default one would be made on the host.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // The host's may lie where the cluster has a directory of its own, and nobody could be asked from here anyway.
        "resolvConf": launch.configure("resolv.conf", "")?,
        // Never: nobody could pull an image again.
        "imageGCHighThresholdPercent": 100,
    });
    let configuration = launch.configure("kubelet.json", &serde_json::to_string_pretty(&configuration)?)?;
    let arguments = [
        file("config", &configuration),
        file("kubeconfig", &kubeconfig),
        flag("hostname-override", NAME),
        flag("node-ip", &address),
    ];
    launch.start("kubelet", &binaries.kubelet, &arguments)
}

/// Waits until pods can be scheduled and made.
pub fn wait_until_ready(launch: &Launch) -> Result<()> {
    let cluster = &launch.cluster;
    cluster.wait_for("the node is ready", PATIENCE, || {
        let ready = r#"--output=jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        Ok(cluster.ask(&["get", "node", NAME, ready]).is_ok_and(|status| status == "True"))
    })?;
    cluster.wait_for("pods have an identity", PATIENCE, || {
        Ok(cluster.ask(&["get", "serviceaccount", "default"]).is_ok())
    })
}

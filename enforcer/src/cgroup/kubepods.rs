//! Which pod and container a cgroup directory belongs to, by its path alone.
//!
//! Covers kubelet's systemd and cgroupfs drivers, nested roots (`--cgroup-root`, kind), and the directory names of
//! containerd, CRI-O, Docker and Podman. A static pod's directory is named by its config hash, which is returned as the
//! UID. Sources: kubelet `pkg/kubelet/cm/cgroup_manager_linux.go`, containerd and CRI-O `cgroups` packages.

use serde::{Deserialize, Serialize};

/// Kubernetes' own `QoS` class, which decides where kubelet puts a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodQos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl PodQos {
    /// As the API has it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Guaranteed" => Some(Self::Guaranteed),
            "Burstable" => Some(Self::Burstable),
            "BestEffort" => Some(Self::BestEffort),
            _ => None,
        }
    }
}

/// The pod, and below it the container, of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodCgroup {
    pub qos: PodQos,
    /// With dashes, as in the API; a static pod's config hash has none.
    pub uid: String,
    /// The runtime's id of the container or sandbox; `None` for the pod's own directory.
    pub container: Option<String>,
}

const RUNTIMES: [&str; 6] = ["cri-containerd", "containerd", "crio", "docker", "libpod", "pouch"];

/// Parses a path below a hierarchy's mount point. `None`: not a pod's directory, nor below one.
pub fn parse(path: &str) -> Option<PodCgroup> {
    let mut components = path.split('/').filter(|name| !name.is_empty());
    let mut best_effort = false;
    let mut burstable = false;
    let mut inside_kubepods = false;
    while let Some(name) = components.next() {
        // containerd with the cgroupfs driver under a kubelet with the systemd driver: slice:prefix:id, anywhere.
        let (name, attached) = match name.split_once(':') {
            Some((slice, rest)) => (slice, rest.rsplit(':').next()),
            None => (name, None),
        };
        let bare = name.strip_suffix(".slice").unwrap_or(name);
        inside_kubepods |= bare == "kubepods" || bare.ends_with("-kubepods") || bare.starts_with("kubepods-");
        inside_kubepods |= bare.contains("-kubepods-");
        if !inside_kubepods {
            continue;
        }
        let words: Vec<&str> = bare.split('-').collect();
        best_effort |= words.contains(&"besteffort");
        burstable |= words.contains(&"burstable");
        let Some(uid) = pod_uid(bare) else { continue };
        let qos = match (best_effort, burstable) {
            (true, _) => PodQos::BestEffort,
            (_, true) => PodQos::Burstable,
            _ => PodQos::Guaranteed,
        };
        let container = attached.or_else(|| components.next()).and_then(container_id);
        return Some(PodCgroup { qos, uid, container });
    }
    None
}

/// Whether kubelet itself keeps writing a directory: its root for pods and those of its `QoS` classes.
pub fn is_kubelets(path: &str) -> bool {
    let names = || path.split('/').map(|name| name.strip_suffix(".slice").unwrap_or(name));
    names().any(|name| name.split('-').any(|word| word == "kubepods")) && parse(path).is_none()
}

/// `pod<uid>` (cgroupfs) or `…-pod<uid with underscores>` (systemd).
fn pod_uid(name: &str) -> Option<String> {
    let (before, uid) = name.rsplit_once("pod")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 8 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_uid.then_some(uid)
}

/// `<runtime>-<id>.scope` or `<id>`; CRI-O's `crio-conmon-<id>.scope` holds a monitor, not a container.
fn container_id(name: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id =
        RUNTIMES.iter().find_map(|runtime| name.strip_prefix(runtime)?.strip_prefix('-')).unwrap_or(name);
    let is_id = id.len() >= 12 && id.chars().all(|c| c.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5f2c1c9a8e0d4b7aa1c3e5f7092b4d6e8fa0b1c2d3e4f5061728394a5b6c7d8e";

    fn check(path: &str, expected: Option<(PodQos, &str, bool)>) {
        let path = path.replace("ID", ID);
        let found = parse(&path);
        let found =
            found.as_ref().map(|pod| (pod.qos, pod.uid.as_str(), pod.container.as_deref() == Some(ID)));
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn every_driver_runtime_and_nesting_is_understood() {
        use PodQos::{BestEffort, Burstable, Guaranteed};
        let uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        let under = "0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9";
        for (path, expected) in [
            // systemd driver
            (format!("kubepods.slice/kubepods-pod{under}.slice"), Some((Guaranteed, uid, false))),
            (
                format!(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-ID.scope"
                ),
                Some((Burstable, uid, true)),
            ),
            (
                format!(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/crio-ID.scope/container"
                ),
                Some((BestEffort, uid, true)),
            ),
            (
                format!(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/crio-conmon-ID.scope"
                ),
                Some((BestEffort, uid, false)),
            ),
            (
                format!("kubepods.slice/kubepods-pod{under}.slice/docker-ID.scope"),
                Some((Guaranteed, uid, true)),
            ),
            // cgroupfs driver
            (format!("kubepods/burstable/pod{uid}/ID"), Some((Burstable, uid, true))),
            (format!("kubepods/besteffort/pod{uid}"), Some((BestEffort, uid, false))),
            (format!("kubepods/pod{uid}/crio-ID"), Some((Guaranteed, uid, true))),
            // nested roots
            (
                format!(
                    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/cri-containerd-ID.scope"
                ),
                Some((Burstable, uid, true)),
            ),
            (format!("docker/ID/kubelet/kubepods/besteffort/pod{uid}/ID"), Some((BestEffort, uid, true))),
            (
                format!(
                    "system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice"
                ),
                Some((Guaranteed, uid, false)),
            ),
            // mixed drivers
            (
                format!(
                    "system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:ID"
                ),
                Some((BestEffort, uid, true)),
            ),
            // static pod
            (
                "kubepods/burstable/pod4c96d4a1e5b06c1d1ae6bd3a2b8c7f0e/ID".into(),
                Some((Burstable, "4c96d4a1e5b06c1d1ae6bd3a2b8c7f0e", true)),
            ),
            // not pods
            ("kubepods.slice".into(), None),
            ("kubepods.slice/kubepods-besteffort.slice".into(), None),
            ("system.slice/ssh.service".into(), None),
            (format!("user.slice/pod{uid}"), None),
        ] {
            check(&path, expected);
        }
    }

    #[test]
    fn kubelets_own_directories_are_told_from_pods() {
        for path in [
            "kubepods.slice",
            "kubepods.slice/kubepods-besteffort.slice",
            "kubepods/burstable",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
        ] {
            assert!(is_kubelets(path), "{path}");
        }
        for path in ["batch.slice", "kubepods/besteffort/pod0ad5c1de-9ab5-4a2c-8ed1-0e1f1b5a0d3c"] {
            assert!(!is_kubelets(path), "{path}");
        }
    }
}

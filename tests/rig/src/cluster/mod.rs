//! The cluster of `cargo xtask cluster`: whether one is up, how to reach it, and how to trouble it.
//!
//! Its API server can be reached from this machine, and nothing else from anywhere. Its pods' cgroups are the host's,
//! below [`Cluster::cgroup`] in every hierarchy.

pub mod cgroups;
pub mod daemon;
pub mod image;
pub mod install;
pub mod kubeconfig;
mod kubectl;
mod service;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use self::daemon::Daemon;
use crate::process::installed;

/// Names the file in which the cluster is recorded that tests are to use. Default: that of this checkout.
pub const VARIABLE: &str = "ENFORCER_CLUSTER";

/// Holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "localhost/pause:enforcer";
/// Has the `workload` program as its entrypoint: `args: [pause]` sleeps, `args: [antagonist, cpu-spin]` does not.
pub const WORKLOAD_IMAGE: &str = "localhost/workload:enforcer";

/// Where its files are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Paths {
    /// All of it, target/cluster.
    pub home: PathBuf,
    /// For its administrator.
    pub kubeconfig: PathBuf,
    /// What the daemons and pods of the last cluster logged.
    pub logs: PathBuf,
    /// A tmpfs, as long as the cluster is up.
    pub tree: PathBuf,
    /// The network namespace, as `nsenter --net` takes it.
    pub network: PathBuf,
    /// The mount namespace, as `nsenter --mount` takes it.
    pub mounts: PathBuf,
}

/// A cluster, as `cargo xtask cluster up` has recorded it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Version, without a `v`.
    pub kubernetes: String,
    /// Version, without a `v`.
    pub etcd: String,
    /// The name of its only node.
    pub node: String,
    /// The node's address, at which the API server listens too.
    pub address: Ipv4Addr,
    /// This machine's address on the cluster's network: pods and the API server reach here what listens there.
    pub host_address: Ipv4Addr,
    /// kubelet's `--cgroup-root`, below each hierarchy's mount point and without a leading slash. Not what the agent calls
    /// so, which is where the hierarchies are mounted.
    pub cgroup: String,
    pub paths: Paths,
    /// The program.
    pub kubectl: PathBuf,
    /// The `workload` program, which joins a cgroup and becomes another program.
    pub workload: PathBuf,
    /// The cgroup that daemons join.
    pub daemons_cgroup: PathBuf,
    /// In the order in which they were started.
    pub daemons: Vec<Daemon>,
    /// Everything has started.
    pub is_ready: bool,
}

/// The project's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("BUG: the rig lies two directories down")
}

impl Paths {
    /// Those of this checkout's cluster, whether there is one or not.
    pub fn new() -> Self {
        let home = root().join("target/cluster");
        let tree = home.join("tree");
        Self {
            kubeconfig: home.join("kubeconfig"),
            logs: home.join("logs"),
            network: tree.join("namespaces/net"),
            mounts: tree.join("namespaces/mnt"),
            tree,
            home,
        }
    }

    /// Where a cluster is recorded.
    pub fn record(&self) -> PathBuf {
        self.home.join("cluster.json")
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// The one that is up.
    ///
    /// # Errors
    /// Where none is, or not all of it.
    pub fn running() -> Result<Self> {
        const CURE: &str = "as root, `cargo xtask cluster up` brings one up";
        let cluster = Self::recorded()?.with_context(|| format!("no cluster is up: {CURE}"))?;
        ensure!(
            cluster.is_running(),
            "there is only a part of a cluster: `cargo xtask cluster down` takes it down, and {CURE}"
        );
        Ok(cluster)
    }

    /// The one that was recorded, in whatever state it is by now.
    ///
    /// # Errors
    /// Where the record cannot be read.
    pub fn recorded() -> Result<Option<Self>> {
        let path = env::var_os(VARIABLE).map_or_else(|| Paths::new().record(), PathBuf::from);
        let text = match fs::read_to_string(&path) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let cluster = serde_json::from_str(&text);
        Ok(Some(
            cluster.with_context(|| format!("{} is of another version of this project", path.display()))?,
        ))
    }

    /// Records it, all or nothing.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub fn record(&self) -> Result<()> {
        let path = self.paths.record();
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether everything has started and nothing has ended since.
    pub fn is_running(&self) -> bool {
        self.is_ready && self.daemons.iter().all(Daemon::is_running)
    }

    /// The API server's URL, from this machine and from inside.
    pub fn server(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate authority's certificate, as PEM.
    ///
    /// # Errors
    /// Where no cluster is up.
    pub fn authority(&self) -> Result<String> {
        let path = self.paths.tree.join("pki/ca.crt");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Its directory in each hierarchy, v2 first.
    ///
    /// # Errors
    /// Where the mount table cannot be read.
    pub fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let mounts = cgroups::mounts()?;
        Ok(mounts.into_iter().map(|mount| mount.join(&self.cgroup)).collect())
    }

    /// A directory below the cluster's, in the hierarchy that has this controller.
    ///
    /// # Errors
    /// Where none has it.
    pub fn directory(&self, controller: &str, path: &str) -> Result<PathBuf> {
        Ok(cgroups::mount_of(controller)?.join(&self.cgroup).join(path))
    }

    /// Whether v2 is all that there is.
    ///
    /// # Errors
    /// Where the mount table cannot be read.
    pub fn is_v2(&self) -> Result<bool> {
        Ok(cgroups::mounts()?.len() == 1)
    }

    /// A command in the cluster's network, with the files of the host: it reaches pods.
    ///
    /// # Errors
    /// Where nsenter is missing.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(installed("nsenter")?);
        command.arg(option("--net", &self.paths.network)).arg(program);
        Ok(command)
    }

    /// A command among the daemons: with their network, and with their /run, /var/lib and /var/log.
    ///
    /// # Errors
    /// Where nsenter is missing.
    pub fn command_among_daemons(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(installed("nsenter")?);
        command.arg(option("--net", &self.paths.network)).arg(option("--mount", &self.paths.mounts));
        command.arg(program);
        Ok(command)
    }

    /// A command that gives an image to the container runtime: a docker archive. Pods that use it must not ask for
    /// `imagePullPolicy: Always`.
    ///
    /// # Errors
    /// Where nsenter is missing.
    pub fn import(&self, archive: &Path) -> Result<Command> {
        let mut command = self.command_among_daemons("ctr")?;
        command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        Ok(command)
    }
}

/// `--name=value`
pub fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}

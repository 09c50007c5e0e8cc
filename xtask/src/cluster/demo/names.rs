//! The cluster's name server, which Spark's executors ask for their driver. It runs as long as the demo.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;

use crate::cluster::{ground, node::DOMAIN};

const NAME: &str = "coredns";

/// A running one. It is ended when dropped.
#[derive(Debug)]
pub struct NameServer;

impl NameServer {
    /// Starts it as one more daemon, where kubelet tells pods to ask.
    pub fn start(program: &Path) -> Result<Self> {
        ground::ensure_visible(program)?;
        let mut cluster = Cluster::running()?;
        let path = cluster.paths.tree.join("etc/Corefile");
        fs::write(&path, configuration(&cluster))
            .with_context(|| format!("cannot write {}", path.display()))?;
        cluster.start(NAME, program, &["-conf".to_owned(), path.display().to_string()])?;
        Ok(Self)
    }
}

fn configuration(cluster: &Cluster) -> String {
    let (address, kubeconfig) = (cluster.address, cluster.paths.kubeconfig.display());
    format!(
        ". {{\n  bind {address}\n  errors\n  kubernetes {DOMAIN} {{\n    kubeconfig {kubeconfig}\n  }}\n}}\n"
    )
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Asked for anew: other daemons may have been started since.
        let stopped = Cluster::recorded().and_then(|cluster| match cluster {
            Some(mut cluster) => cluster.stop(NAME),
            None => Ok(()),
        });
        if let Err(err) = stopped {
            println!("{NAME} stays: {err:#}");
        }
    }
}

//! A cluster that is being brought up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;

use super::ground;

/// One of these.
#[derive(Debug)]
pub struct Launch {
    pub cluster: Cluster,
}

impl Launch {
    /// A file or directory in the tmpfs.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cluster.paths.tree.join(name)
    }

    /// Writes a configuration file and returns its path.
    pub fn configure(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path("etc").join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Starts a daemon.
    pub fn start(&mut self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        ground::ensure_visible(program)?;
        self.cluster.start(name, program, arguments)
    }
}

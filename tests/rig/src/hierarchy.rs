//! Which cgroup hierarchies this host has.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// A mounted hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    pub mount: PathBuf,
    pub is_v2: bool,
    /// Of v1.
    controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether it is v1 with this controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|has| has == controller)
    }
}

/// All of them, v2 first.
///
/// # Errors
/// Where the mount table cannot be read.
pub fn all() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    let mut found = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, point, kind @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else { continue };
        let is_v2 = kind == "cgroup2";
        let controllers = if is_v2 { Vec::new() } else { options.split(',').map(str::to_owned).collect() };
        found.push(Hierarchy { mount: point.into(), is_v2, controllers });
    }
    found.sort_by_key(|hierarchy| !hierarchy.is_v2);
    Ok(found)
}

//! The cluster's directory in every cgroup hierarchy: kubelet's `--cgroup-root`, which keeps its pods apart from those of
//! any other kubelet, and where the daemons are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::root;
use crate::{hierarchy, sandbox};

/// Controllers that kubelet wants in its root, where they are in v2 at all.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

/// Its path below each mount point. The checkout is part of it: the clusters of two checkouts do not meet, and what is
/// left of one can be removed even without its record.
pub fn name() -> String {
    let root = root().to_string_lossy();
    let words: Vec<&str> =
        root.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!("enforcer-cluster-{}", words.join("-"))
}

/// Where hierarchies are mounted, v2 first.
///
/// # Errors
/// Where the mount table cannot be read.
pub fn mounts() -> Result<Vec<PathBuf>> {
    Ok(hierarchy::all()?.into_iter().map(|hierarchy| hierarchy.mount).collect())
}

/// Where the hierarchy with this controller is mounted: v1's, else v2.
///
/// # Errors
/// Where there is none.
pub fn mount_of(controller: &str) -> Result<PathBuf> {
    let mut hierarchies = hierarchy::all()?;
    let place = hierarchies.iter().position(|hierarchy| hierarchy.has(controller));
    let place = place.or_else(|| hierarchies.iter().position(|hierarchy| hierarchy.is_v2));
    let place = place.with_context(|| format!("no hierarchy has the controller {controller}"))?;
    Ok(hierarchies.swap_remove(place).mount)
}

/// The directory that all daemons are to join: in v2 if there is one. Whatever they start stays there or goes into a pod's
/// directory, so that nothing can get lost.
///
/// # Errors
/// Where no hierarchy will do.
pub fn daemons() -> Result<PathBuf> {
    let hierarchies = hierarchy::all()?;
    let home = hierarchies.iter().find(|hierarchy| hierarchy.is_v2 || hierarchy.has("cpu"));
    let home = home.context("neither cgroup v2 nor v1's cpu controller is mounted")?;
    Ok(home.mount.join(name()).join("daemons"))
}

/// Makes the cluster's directory in every hierarchy, and that of the daemons.
///
/// # Errors
/// Where cgroups cannot be made, or none are mounted.
pub fn make() -> Result<()> {
    let hierarchies = hierarchy::all()?;
    for hierarchy in &hierarchies {
        sandbox::make(&hierarchy.mount.join(name()))?;
    }
    if let [only] = &hierarchies[..]
        && only.is_v2
    {
        enable_controllers(&only.mount)?;
    }
    sandbox::make(&daemons()?)
}

fn enable_controllers(v2: &Path) -> Result<()> {
    let offered = fs::read_to_string(v2.join("cgroup.controllers"))?;
    for controller in CONTROLLERS.into_iter().filter(|name| offered.split_whitespace().any(|is| is == *name))
    {
        sandbox::set(&v2.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// Those that are there.
///
/// # Errors
/// Where the mount table cannot be read.
pub fn existing() -> Result<Vec<PathBuf>> {
    let directories = mounts()?.into_iter().map(|mount| mount.join(name()));
    Ok(directories.filter(|directory| directory.exists()).collect())
}

/// Ends whatever runs in them, and removes them.
///
/// # Errors
/// Where one stays.
pub fn remove() -> Result<()> {
    for directory in existing()? {
        thaw(&directory);
        sandbox::remove(&directory);
        ensure!(!directory.exists(), "the cgroup {} cannot be removed", directory.display());
    }
    Ok(())
}

/// In v1, a process that is frozen is not even killed; a runtime freezes its containers for a moment now and then.
fn thaw(directory: &Path) {
    let state = directory.join("freezer.state");
    if !state.exists() {
        return;
    }
    // Gone meanwhile, or never frozen.
    fs::write(&state, "THAWED").ok();
    let children = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    children.filter(|path| path.is_dir()).for_each(|child| thaw(&child));
}

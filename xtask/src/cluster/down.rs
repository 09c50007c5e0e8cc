//! `cargo xtask cluster down`.

use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::cluster::{Cluster, Paths, cgroups};

use super::{ground, network};
use crate::programs::{self, is_root};

/// Takes down what there is, and says so.
pub fn run() -> Result<()> {
    let paths = Paths::new();
    let _lock = if is_root() { Some(lock(&paths)?) } else { None };
    let begun = Instant::now();
    if take_down()? {
        println!(
            "the cluster is down after {:.1} s; what it logged is in {}",
            begun.elapsed().as_secs_f64(),
            paths.logs.display()
        );
    } else {
        println!("no cluster is up");
    }
    Ok(())
}

/// Held while a cluster is brought up or taken down.
pub fn lock(paths: &Paths) -> Result<File> {
    fs::create_dir_all(&paths.home).with_context(|| format!("cannot make {}", paths.home.display()))?;
    programs::lock(&paths.home.join("lock"), "another `cargo xtask cluster`")
}

/// Takes down what there is: processes, namespaces, mounts, network devices, cgroups, and the record of them. Returns
/// whether there was anything.
pub fn take_down() -> Result<bool> {
    let paths = Paths::new();
    // What another version has recorded, this one may not understand; the ground is found without the record.
    let recorded = Cluster::recorded();
    let is_recorded = paths.record().exists();
    let is_there = is_recorded || ground::is_laid(&paths) || !cgroups::existing()?.is_empty();
    if !is_there {
        return Ok(false);
    }
    ensure!(is_root(), "a cluster is taken down by root, as it was brought up");
    let cluster = recorded.unwrap_or_default();
    let daemons = cluster.iter().flat_map(|cluster| &cluster.daemons);
    // Those first that start things, kubelet above all.
    for daemon in daemons.rev() {
        daemon.kill()?;
    }
    cgroups::remove()?;
    // On a full disk the rest must go all the same.
    let kept = keep_logs(&paths);
    // Without ground, a record is left from before a reboot, and the device of that name is another cluster's.
    if let Some(cluster) = cluster.as_ref().filter(|_| ground::is_laid(&paths)) {
        network::part(cluster.host_address)?;
    }
    ground::clear(&paths)?;
    for file in [&paths.kubeconfig, &paths.record()] {
        remove(file)?;
    }
    if let Err(err) = kept {
        println!("!! what the cluster has logged is lost: {err:#}");
    }
    Ok(true)
}

/// Copies what daemons and pods have logged out of the tmpfs, in place of what an earlier cluster had logged.
fn keep_logs(paths: &Paths) -> Result<()> {
    let source = paths.tree.join("log");
    if !source.is_dir() {
        return Ok(());
    }
    if paths.logs.exists() {
        fs::remove_dir_all(&paths.logs).with_context(|| format!("cannot remove {}", paths.logs.display()))?;
    }
    copy(&source, &paths.logs)
}

/// Regular files only: /var/log/containers has links to what is elsewhere in it.
fn copy(source: &Path, destination: &Path) -> Result<()> {
    fs::create_dir_all(destination).with_context(|| format!("cannot make {}", destination.display()))?;
    for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), destination.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&from, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

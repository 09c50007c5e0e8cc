//! The CPUs that a group may use: a directory of its own in v1's cpuset hierarchy, or its files on a v2 host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::sandbox::{Sandbox, make, remove, remove_leftovers, set};

/// A group's CPUs, all of them at first.
#[derive(Debug)]
pub struct Cpuset {
    directory: PathBuf,
    /// To remove in the end.
    made: Option<PathBuf>,
}

impl Cpuset {
    /// For the group `name` of `sandbox`, which must exist.
    ///
    /// # Errors
    /// Where no mounted hierarchy has cpusets, or the kernel refuses.
    pub fn new(sandbox: &Sandbox, prefix: &str, name: &str) -> Result<Self> {
        if let Some(mount) = v1_mount()? {
            remove_leftovers(&mount, prefix);
            let top = mount.join(sandbox.path());
            let directory = top.join(name);
            // Before anything is made, so that it is removed whatever fails.
            let cpuset = Self { directory, made: Some(top.clone()) };
            for directory in [&top, &cpuset.directory] {
                make(directory)?;
                let parent = directory.parent().context("a cgroup lies below its mount")?;
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    set(&directory.join(file), &read(&parent.join(file))?)?;
                }
            }
            return Ok(cpuset);
        }
        let mount = sandbox.v2_mount().context("neither v1's cpuset hierarchy nor v2 is mounted")?;
        let top = mount.join(sandbox.path());
        for directory in [mount, &top] {
            set(&directory.join("cgroup.subtree_control"), "+cpuset")?;
        }
        Ok(Self { directory: top.join(name), made: None })
    }

    /// The directory that processes must join for it, besides the group's.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Allows the first so many CPUs only.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn allow(&self, cpus: usize) -> Result<()> {
        set(&self.directory.join("cpuset.cpus"), &format!("0-{}", cpus.max(1) - 1))
    }
}

impl Drop for Cpuset {
    fn drop(&mut self) {
        if let Some(made) = &self.made {
            remove(made);
        }
    }
}

fn v1_mount() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, point, "cgroup", options, ..] = fields[..] else { return None };
        options.split(',').any(|option| option == "cpuset").then(|| point.into())
    });
    Ok(mount)
}

fn read(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

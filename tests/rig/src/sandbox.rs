//! A corner of the cgroup tree of one's own, in the hierarchies that this host has, removed when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::hierarchy;

/// Hierarchies that groups get a directory in.
#[derive(Clone, Debug)]
struct Hosts {
    v2: Option<PathBuf>,
    v1_cpu: Option<PathBuf>,
    /// Used by groups that limit memory only.
    v1_memory: Option<PathBuf>,
}

impl Hosts {
    fn find() -> Result<Self> {
        let mut found = Self { v2: None, v1_cpu: None, v1_memory: None };
        for hierarchy in hierarchy::all()? {
            if hierarchy.has("cpu") {
                found.v1_cpu = Some(hierarchy.mount.clone());
            }
            if hierarchy.has("memory") {
                found.v1_memory = Some(hierarchy.mount.clone());
            }
            if hierarchy.is_v2 {
                found.v2 = Some(hierarchy.mount);
            }
        }
        anyhow::ensure!(found.v2.is_some() || found.v1_cpu.is_some(), "no cgroup hierarchy is mounted");
        Ok(found)
    }

    fn iter(&self) -> impl Iterator<Item = &Path> {
        self.v2.iter().chain(&self.v1_cpu).map(PathBuf::as_path)
    }

    fn with_memory(&self) -> impl Iterator<Item = &Path> {
        self.iter().chain(self.v1_memory.as_deref())
    }
}

/// The corner.
#[derive(Debug)]
pub struct Sandbox {
    hosts: Hosts,
    name: String,
}

/// One group in it.
#[derive(Debug)]
pub struct Group {
    hosts: Hosts,
    /// Below each mount point.
    pub path: String,
    has_memory: bool,
}

impl Sandbox {
    /// Makes `<prefix>-<pid>` in every hierarchy, after removing what dead processes left under the same prefix.
    ///
    /// # Errors
    /// Where cgroups cannot be made.
    pub fn new(prefix: &str) -> Result<Self> {
        let hosts = Hosts::find()?;
        for mount in hosts.with_memory() {
            remove_leftovers(mount, prefix);
        }
        let sandbox = Self { hosts, name: format!("{prefix}-{}", std::process::id()) };
        for mount in sandbox.hosts.iter() {
            make(&mount.join(&sandbox.name))?;
        }
        if let (Some(v2), None) = (&sandbox.hosts.v2, &sandbox.hosts.v1_cpu) {
            for directory in [v2.clone(), v2.join(&sandbox.name)] {
                set(&directory.join("cgroup.subtree_control"), "+cpu")?;
            }
        }
        Ok(sandbox)
    }

    /// Its path below each mount point.
    pub fn path(&self) -> &str {
        &self.name
    }

    /// Where v2 is mounted.
    pub fn v2_mount(&self) -> Option<&Path> {
        self.hosts.v2.as_deref()
    }

    /// Makes a group. `weight`: cpu.shares on v1; on v2 the weight that runc makes of it.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn group(&self, name: &str, shares: u32) -> Result<Group> {
        self.make_group(name, shares, false)
    }

    /// Makes a group whose memory can be limited as well.
    ///
    /// # Errors
    /// Where it cannot be made, or there is no memory controller.
    pub fn memory_group(&self, name: &str, shares: u32) -> Result<Group> {
        if self.hosts.v1_memory.is_none() {
            let v2 = self.hosts.v2.as_ref().context("no memory controller")?;
            for directory in [v2.clone(), v2.join(&self.name)] {
                set(&directory.join("cgroup.subtree_control"), "+memory")?;
            }
        }
        self.make_group(name, shares, true)
    }

    fn make_group(&self, name: &str, shares: u32, has_memory: bool) -> Result<Group> {
        let group = Group { hosts: self.hosts.clone(), path: format!("{}/{name}", self.name), has_memory };
        for directory in group.directories() {
            make(&directory)?;
        }
        if let Some(v1_cpu) = &self.hosts.v1_cpu {
            set(&v1_cpu.join(&group.path).join("cpu.shares"), &shares.to_string())?;
        } else if let Some(v2) = &self.hosts.v2 {
            set(&v2.join(&group.path).join("cpu.weight"), &weight_of(shares).to_string())?;
        }
        Ok(group)
    }
}

/// 2 shares are weight 1, 1,024 are 100, as runc has it since 1.3.2.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn weight_of(shares: u32) -> u32 {
    let log = f64::from(shares.max(2)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Between 1 and 10,000 by the kernel's rule.
    10f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u32
}

impl Group {
    /// Its directories, in every hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let memory = self.hosts.v1_memory.as_deref().filter(|_| self.has_memory);
        self.hosts.iter().chain(memory).map(|mount| mount.join(&self.path))
    }

    /// The directory whose files limit memory, of a group made by [`Sandbox::memory_group`].
    pub fn memory_directory(&self) -> PathBuf {
        let mount =
            self.hosts.v1_memory.as_ref().or(self.hosts.v2.as_ref()).expect("checked in memory_group");
        mount.join(&self.path)
    }

    /// A limit at which the kernel makes the group reclaim, on v1 by the hard limit.
    ///
    /// # Errors
    /// Where it cannot be set.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let file = if self.hosts.v1_memory.is_some() { "memory.limit_in_bytes" } else { "memory.high" };
        set(&self.memory_directory().join(file), &bytes.to_string())
    }

    /// A limit beyond which the kernel kills.
    ///
    /// # Errors
    /// Where it cannot be set.
    pub fn cap_memory(&self, bytes: u64) -> Result<()> {
        let file = if self.hosts.v1_memory.is_some() { "memory.limit_in_bytes" } else { "memory.max" };
        set(&self.memory_directory().join(file), &bytes.to_string())
    }

    /// The directory whose files limit CPU time.
    pub fn cpu_directory(&self) -> PathBuf {
        let mount = self.hosts.v1_cpu.as_ref().or(self.hosts.v2.as_ref()).expect("checked in Hosts::find");
        mount.join(&self.path)
    }

    /// The directory in the v2 hierarchy.
    pub fn v2_directory(&self) -> Option<PathBuf> {
        Some(self.hosts.v2.as_ref()?.join(&self.path))
    }

    /// The CPU limit's files as text, joined: for comparison only.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn cpu_limit(&self) -> Result<String> {
        let directory = self.cpu_directory();
        let read = |name: &str| -> Result<String> {
            let path = directory.join(name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.trim().to_owned())
        };
        if self.hosts.v1_cpu.is_some() {
            return Ok(format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?));
        }
        read("cpu.max")
    }

    /// Files in which it shows that somebody holds the group back.
    pub fn lever_files(&self) -> Vec<PathBuf> {
        let of_v2 = |name: &str| self.v2_directory().map(|directory| directory.join(name));
        let cpu = self.cpu_directory();
        let files = [
            of_v2("cgroup.freeze"),
            of_v2("memory.high"),
            of_v2("cpuset.cpus"),
            Some(cpu.join("cpu.idle")),
            Some(cpu.join("cpu.max")),
            Some(cpu.join("cpu.cfs_quota_us")),
            Some(cpu.join("cpu.cfs_period_us")),
        ];
        files.into_iter().flatten().filter(|file| file.exists()).collect()
    }

    /// Who holds a group back that nobody should: the file, and what it says.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn held_back_by(&self) -> Result<Option<String>> {
        for file in self.lever_files() {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let value = text.split_whitespace().next().unwrap_or_default();
            let is_free = file.ends_with("cpu.cfs_period_us") || ["", "0", "-1", "max"].contains(&value);
            if !is_free {
                return Ok(Some(format!("{}: {}", file.display(), text.trim())));
            }
        }
        Ok(None)
    }

    /// Limits CPU time to so many cores, on average over a period.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn set_cpu_limit(&self, cores: f64, period: Duration) -> Result<()> {
        let directory = self.cpu_directory();
        let quota_us = (period.as_secs_f64() * 1e6 * cores).round();
        let period_us = period.as_micros();
        if self.hosts.v1_cpu.is_some() {
            set(&directory.join("cpu.cfs_period_us"), &period_us.to_string())?;
            return set(&directory.join("cpu.cfs_quota_us"), &quota_us.to_string());
        }
        set(&directory.join("cpu.max"), &format!("{quota_us} {period_us}"))
    }

    /// As it was made: no limit.
    ///
    /// # Errors
    /// Where it cannot be set.
    pub fn lift_cpu_limit(&self) -> Result<()> {
        let directory = self.cpu_directory();
        if self.hosts.v1_cpu.is_some() {
            return set(&directory.join("cpu.cfs_quota_us"), "-1");
        }
        set(&directory.join("cpu.max"), "max")
    }

    /// CPU time used so far, by the kernel's own account.
    ///
    /// # Errors
    /// Where there is no v2 directory.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(&self.v2_directory().context("no v2 hierarchy to read CPU time from")?)
    }

    /// Sum of the kernel's run-queue delays of the group's threads, from schedstat.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn run_delay(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for process in self.processes() {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                let ns = text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default();
                sum += Duration::from_nanos(ns);
            }
        }
        Ok(sum)
    }

    fn processes(&self) -> Vec<u32> {
        let directories: Vec<PathBuf> = self.directories().collect();
        processes_in(&directories)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in self.directories() {
            remove(&directory);
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for mount in self.hosts.with_memory() {
            remove(&mount.join(&self.name));
        }
    }
}

/// CPU time that a directory in the v2 hierarchy has used so far, by the kernel's own account.
///
/// # Errors
/// Where there is no such directory.
pub fn cpu_time(directory: &Path) -> Result<Duration> {
    let path = directory.join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let usec = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .context("cpu.stat has no usage_usec")?;
    Ok(Duration::from_micros(usec.parse()?))
}

pub(crate) fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the cgroup {}: run as root", directory.display()))
}

pub(crate) fn set(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
}

fn processes_in(directories: &[PathBuf]) -> Vec<u32> {
    let mut processes: Vec<u32> = directories
        .iter()
        .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>())
        .collect();
    processes.sort_unstable();
    processes.dedup();
    processes
}

/// Removes a directory of ours with everything in it. Whoever runs there was started by us, since nobody else knows the
/// directory.
pub(crate) fn remove(directory: &Path) {
    let children = fs::read_dir(directory).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&child.path());
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        for process in processes_in(&[directory.to_owned()]) {
            if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        match fs::remove_dir(directory) {
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                eprintln!("the cgroup {} stays: {err}", directory.display());
                return;
            }
            _ => return,
        }
    }
}

/// What a process that was killed could not remove.
pub(crate) fn remove_leftovers(mount: &Path, prefix: &str) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_prefix('-'));
        let is_dead =
            pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists());
        if is_dead {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_runcs() {
        assert_eq!([2, 1024, 262_144].map(weight_of), [1, 100, 10_000]);
    }
}

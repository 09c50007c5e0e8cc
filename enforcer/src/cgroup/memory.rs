//! What the memory controller and PSI say of a directory.
//!
//! A pressure file is read once a second at most: each reading folds the kernel's averages, and below 100 ms that loses
//! stalled time for everybody who reads it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::hierarchy::{Hierarchy, Mounts};

/// The files of one directory. On hybrid hosts the controller's are in the v1 memory hierarchy, at the same path if anywhere.
#[derive(Clone, Debug)]
pub struct MemoryFiles {
    controller: Option<Controller>,
    pressure: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Controller {
    V2(PathBuf),
    V1(PathBuf),
}

/// One look; totals since the cgroup was made. `None`: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// In use now.
    pub bytes: Option<u64>,
    /// Of it, what the kernel cannot take away: anonymous and unevictable memory, which is what Koordinator counts as used.
    pub unreclaimable_bytes: Option<u64>,
    /// Taken from it by the kernel; v1 does not tell.
    pub reclaimed_bytes: Option<u64>,
    /// Taken from it, and needed again.
    pub refaulted_bytes: Option<u64>,
    /// Times that a limit of the directory itself, or below it, was reached.
    pub limit_hits: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Time in which some task stalled, by PSI.
    pub stalled_some: Option<Duration>,
}

impl MemoryFiles {
    /// Those of the directory at `path` below the mount points.
    pub fn of(mounts: &Mounts, path: &Path) -> Self {
        let in_v2 = mounts.mount(Hierarchy::V2).map(|mount| mount.join(path));
        let controller = match &mounts.v1_memory {
            Some(mount) => Some(Controller::V1(mount.join(path))),
            None => in_v2.clone().map(Controller::V2),
        };
        Self { controller, pressure: in_v2.map(|directory| directory.join("memory.pressure")) }
    }

    /// Reads them all. `oom_kills`: also a file that says nothing else.
    pub fn read(&self, oom_kills: bool) -> Reading {
        let reading = match &self.controller {
            Some(Controller::V2(directory)) => of_v2(directory),
            Some(Controller::V1(directory)) => of_v1(directory, oom_kills),
            None => Reading::default(),
        };
        let stalled_some = self.pressure.as_ref().and_then(|file| stalled_some(&text(file)?));
        Reading { stalled_some, ..reading }
    }
}

fn of_v2(directory: &Path) -> Reading {
    let stat = text(&directory.join("memory.stat")).unwrap_or_default();
    let events = text(&directory.join("memory.events")).unwrap_or_default();
    Reading {
        bytes: number(&directory.join("memory.current")),
        unreclaimable_bytes: unreclaimable_of(&stat, ""),
        reclaimed_bytes: pages(value(&stat, "pgsteal")),
        refaulted_bytes: pages(sum(&stat, ["workingset_refault_anon", "workingset_refault_file"])),
        limit_hits: sum(&events, ["high", "max"]),
        oom_kills: value(&events, "oom_kill"),
        stalled_some: None,
    }
}

fn of_v1(directory: &Path, oom_kills: bool) -> Reading {
    let stat = text(&directory.join("memory.stat")).unwrap_or_default();
    let oom = if oom_kills { text(&directory.join("memory.oom_control")) } else { None };
    Reading {
        bytes: number(&directory.join("memory.usage_in_bytes")),
        unreclaimable_bytes: unreclaimable_of(&stat, "total_"),
        reclaimed_bytes: None,
        refaulted_bytes: pages(sum(
            &stat,
            ["total_workingset_refault_anon", "total_workingset_refault_file"],
        )),
        limit_hits: number(&directory.join("memory.failcnt")),
        oom_kills: oom.and_then(|oom| value(&oom, "oom_kill")),
        stalled_some: None,
    }
}

/// [`Reading::unreclaimable_bytes`] alone.
pub fn unreclaimable(mounts: &Mounts, path: &Path) -> Option<u64> {
    let (directory, prefix) = match (&mounts.v1_memory, &mounts.v2) {
        (Some(v1), _) => (v1.join(path), "total_"),
        (None, Some(v2)) => (v2.join(path), ""),
        (None, None) => return None,
    };
    unreclaimable_of(&text(&directory.join("memory.stat"))?, prefix)
}

/// `prefix`: of what v1 sums up over all directories below.
fn unreclaimable_of(stat: &str, prefix: &str) -> Option<u64> {
    let of = |key: &str| {
        let lines = stat.lines().filter_map(|line| line.strip_prefix(prefix)?.strip_prefix(key));
        lines.filter_map(|rest| rest.strip_prefix(' ')).find_map(|number| number.trim().parse::<u64>().ok())
    };
    ["inactive_anon", "active_anon", "unevictable"].into_iter().map(of).sum()
}

/// Rounded down as the kernel does.
pub fn whole_pages(bytes: u64) -> u64 {
    bytes - bytes % rustix::param::page_size() as u64
}

/// Makes the kernel reclaim what a v2 directory uses above `high`, once. Blocks for as long as that takes.
///
/// # Errors
/// Where there is no `memory.reclaim` (5.19), or not all could be reclaimed.
pub fn push_down_to(directory: &Path, high: u64) -> std::io::Result<()> {
    let above = number(&directory.join("memory.current")).unwrap_or_default().saturating_sub(high);
    if above == 0 {
        return Ok(());
    }
    fs::write(directory.join("memory.reclaim"), above.to_string())
}

fn pages(count: Option<u64>) -> Option<u64> {
    Some(count? * rustix::param::page_size() as u64)
}

/// `None` where the file is not there: the directory went, or has no memory controller.
fn text(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok()
}

fn number(file: &Path) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

/// The value of a line `key value`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Of both, if both are known.
fn sum(text: &str, keys: [&str; 2]) -> Option<u64> {
    Some(value(text, keys[0])? + value(text, keys[1])?)
}

/// The total of the line `some avg10=0.00 avg60=0.00 avg300=0.00 total=<us>`.
fn stalled_some(pressure: &str) -> Option<Duration> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    let (_, total_us) = line.split_once("total=")?;
    Some(Duration::from_micros(total_us.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    const PRESSURE: &str = "some avg10=0.10 avg60=0.00 avg300=0.00 total=241115\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";

    #[test]
    fn a_v2_directory_tells_everything() {
        let root = tempfile::tempdir().unwrap();
        write(
            &root.path().join("web"),
            &[
                ("memory.current", "1048576\n"),
                (
                    "memory.stat",
                    "anon 5\ninactive_anon 4096\nactive_anon 8192\nunevictable 0\npgsteal_kswapd 9\npgsteal 3\n\
                     workingset_refault_anon 1\nworkingset_refault_file 2\n",
                ),
                ("memory.events", "low 0\nhigh 4\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
                ("memory.pressure", PRESSURE),
            ],
        );
        let mounts = Mounts { v2: Some(root.path().to_owned()), ..Mounts::default() };
        let page = rustix::param::page_size() as u64;
        let expected = Reading {
            bytes: Some(1 << 20),
            unreclaimable_bytes: Some(12_288),
            reclaimed_bytes: Some(3 * page),
            refaulted_bytes: Some(3 * page),
            limit_hits: Some(7),
            oom_kills: Some(1),
            stalled_some: Some(Duration::from_micros(241_115)),
        };
        assert_eq!(MemoryFiles::of(&mounts, Path::new("web")).read(true), expected);
    }

    #[test]
    fn a_hybrid_host_has_the_controller_in_v1_and_pressure_in_v2() {
        let root = tempfile::tempdir().unwrap();
        let (v1, v2) = (root.path().join("memory"), root.path().join("unified"));
        let mounts = Mounts { v2: Some(v2.clone()), v1_memory: Some(v1.clone()), ..Mounts::default() };
        write(&v2.join("web"), &[("memory.pressure", PRESSURE)]);
        let only_pressure =
            Reading { stalled_some: Some(Duration::from_micros(241_115)), ..Reading::default() };
        assert_eq!(MemoryFiles::of(&mounts, Path::new("web")).read(true), only_pressure);
        write(
            &v1.join("web"),
            &[
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.failcnt", "12\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                (
                    "memory.stat",
                    "active_anon 1\ntotal_inactive_anon 0\ntotal_active_anon 4096\ntotal_unevictable 0\n",
                ),
            ],
        );
        let found = MemoryFiles::of(&mounts, Path::new("web")).read(true);
        let expected = Reading {
            bytes: Some(4096),
            unreclaimable_bytes: Some(4096),
            limit_hits: Some(12),
            oom_kills: Some(2),
            ..only_pressure
        };
        assert_eq!(found, expected, "kernels before 5.14 do not tell what v1 groups refault");
    }

    #[test]
    fn a_directory_that_went_tells_nothing() {
        let mounts = Mounts { v2: Some("/nowhere".into()), ..Mounts::default() };
        assert_eq!(MemoryFiles::of(&mounts, Path::new("web")).read(true), Reading::default());
    }
}

//! The mounted cgroup hierarchies that the agent uses.

use std::path::{Path, PathBuf};

use enforcer_ebpf::table::Key;
use serde::{Deserialize, Serialize};

/// A hierarchy that directories are followed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    V2,
    /// The v1 hierarchy that holds the cpu controller.
    V1Cpu,
    /// The v1 hierarchy that holds the cpuset controller. Not followed: its directories are looked up by the paths of others.
    V1Cpuset,
    /// The v1 hierarchy that holds the memory controller. Likewise.
    V1Memory,
}

impl Hierarchy {
    /// How the probes know a directory of this hierarchy.
    pub const fn key(self, inode: u64) -> Key {
        match self {
            Self::V2 => Key::v2(inode),
            Self::V1Cpu => Key::v1_cpu(inode),
            // They do not look there.
            Self::V1Cpuset | Self::V1Memory => Key::EMPTY,
        }
    }
}

impl std::fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V1Cpu => "v1 cpu",
            Self::V1Cpuset => "v1 cpuset",
            Self::V1Memory => "v1 memory",
        })
    }
}

/// What the host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One v2 tree with all controllers.
    V2,
    /// v1 controllers beside a v2 tree without them.
    Hybrid,
    V1,
}

/// Why no cgroups can be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the mount table cannot be read: {0}")]
    Mounts(String),
    #[error(
        "no cgroup hierarchy with a cpu controller is mounted below {0}: mount cgroup2 there, or name the right place \
         with --cgroup-root"
    )]
    NotMounted(PathBuf),
}

/// Mount points, by hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    pub v2: Option<PathBuf>,
    pub v1_cpu: Option<PathBuf>,
    pub v1_cpuset: Option<PathBuf>,
    /// Where the memory controller is, unless it is in v2.
    pub v1_memory: Option<PathBuf>,
}

impl Mounts {
    /// The hierarchies mounted at or below `root`, by this process's mount table.
    ///
    /// # Errors
    /// Where nothing usable is mounted there.
    pub fn below(root: &Path) -> Result<Self, Error> {
        let mounts = procfs::process::Process::myself()
            .and_then(|me| me.mountinfo())
            .map_err(|err| Error::Mounts(err.to_string()))?;
        let mounts = mounts.0.iter().map(|mount| Mount {
            point: &mount.mount_point,
            is_whole: is_whole(&mount.root),
            kind: &mount.fs_type,
            has: Controllers {
                cpu: mount.super_options.contains_key("cpu"),
                cpuset: mount.super_options.contains_key("cpuset"),
                memory: mount.super_options.contains_key("memory"),
            },
        });
        Self::of(root, mounts)
    }

    fn of<'a>(root: &Path, mounts: impl Iterator<Item = Mount<'a>>) -> Result<Self, Error> {
        let mut found = Self::default();
        for mount in mounts.filter(|mount| mount.is_whole && mount.point.starts_with(root)) {
            let found_at = |place: &mut Option<PathBuf>| {
                place.get_or_insert_with(|| mount.point.to_owned());
            };
            match mount.kind {
                "cgroup2" => found_at(&mut found.v2),
                // One v1 hierarchy may hold several.
                "cgroup" => {
                    if mount.has.cpu {
                        found_at(&mut found.v1_cpu);
                    }
                    if mount.has.cpuset {
                        found_at(&mut found.v1_cpuset);
                    }
                    if mount.has.memory {
                        found_at(&mut found.v1_memory);
                    }
                }
                _ => {}
            }
        }
        if found.v2.is_none() && found.v1_cpu.is_none() {
            return Err(Error::NotMounted(root.to_owned()));
        }
        Ok(found)
    }

    pub const fn layout(&self) -> Layout {
        match (&self.v2, &self.v1_cpu) {
            (Some(_), Some(_)) => Layout::Hybrid,
            (Some(_), None) => Layout::V2,
            (None, _) => Layout::V1,
        }
    }

    /// The hierarchy that limits CPU time.
    pub const fn cpu_hierarchy(&self) -> Hierarchy {
        if self.v1_cpu.is_some() { Hierarchy::V1Cpu } else { Hierarchy::V2 }
    }

    /// The hierarchy that pins to CPUs, where there is one.
    pub const fn cpuset_hierarchy(&self) -> Option<Hierarchy> {
        match (&self.v1_cpuset, &self.v2) {
            (Some(_), _) => Some(Hierarchy::V1Cpuset),
            (None, Some(_)) => Some(Hierarchy::V2),
            (None, None) => None,
        }
    }

    /// The hierarchy that can hold memory use down, where there is one: v1 has nothing like `memory.high`.
    pub const fn memory_hierarchy(&self) -> Option<Hierarchy> {
        match (&self.v1_memory, &self.v2) {
            (None, Some(_)) => Some(Hierarchy::V2),
            _ => None,
        }
    }

    /// The hierarchy that limits memory, where there is one.
    pub const fn memory_limit_hierarchy(&self) -> Option<Hierarchy> {
        match (&self.v1_memory, &self.v2) {
            (Some(_), _) => Some(Hierarchy::V1Memory),
            (None, Some(_)) => Some(Hierarchy::V2),
            (None, None) => None,
        }
    }

    /// Followed hierarchies with their mount points.
    pub fn iter(&self) -> impl Iterator<Item = (Hierarchy, &Path)> {
        let v2 = self.v2.as_deref().map(|point| (Hierarchy::V2, point));
        let v1_cpu = self.v1_cpu.as_deref().map(|point| (Hierarchy::V1Cpu, point));
        v2.into_iter().chain(v1_cpu)
    }

    /// The mount point of a hierarchy that a directory was found in.
    ///
    /// # Panics
    /// If it is not mounted.
    pub fn point(&self, hierarchy: Hierarchy) -> &Path {
        self.mount(hierarchy).expect("BUG: a directory of a hierarchy that is not mounted")
    }

    /// The mount point of a hierarchy, if it is mounted.
    pub fn mount(&self, hierarchy: Hierarchy) -> Option<&Path> {
        let point = match hierarchy {
            Hierarchy::V2 => &self.v2,
            Hierarchy::V1Cpu => &self.v1_cpu,
            Hierarchy::V1Cpuset => &self.v1_cpuset,
            Hierarchy::V1Memory => &self.v1_memory,
        };
        point.as_deref()
    }
}

/// Whether this root of a mount, as the mount table shows it, is that of the hierarchy. In a cgroup namespace, such as an
/// unprivileged container's, paths begin at the namespace's own directory, and the hierarchy's root is so many times `..`.
fn is_whole(root: &str) -> bool {
    root.split('/').all(|part| part.is_empty() || part == "..")
}

struct Mount<'a> {
    point: &'a Path,
    /// Not a bind mount of some directory inside the hierarchy.
    is_whole: bool,
    kind: &'a str,
    /// Of a v1 hierarchy.
    has: Controllers,
}

struct Controllers {
    cpu: bool,
    cpuset: bool,
    memory: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mounts: &[(&'static str, &'static str, bool)]) -> Result<Mounts, Error> {
        let mounts = mounts.iter().map(|&(point, kind, has_cpu)| Mount {
            point: Path::new(point),
            is_whole: true,
            kind,
            has: Controllers {
                cpu: has_cpu,
                cpuset: point.ends_with("/cpuset"),
                memory: point.ends_with("/memory"),
            },
        });
        Mounts::of(Path::new("/sys/fs/cgroup"), mounts)
    }

    #[test]
    fn a_pure_v2_host_limits_cpu_in_v2() {
        let mounts = of(&[("/", "ext4", false), ("/sys/fs/cgroup", "cgroup2", false)]).unwrap();
        assert_eq!((mounts.layout(), mounts.cpu_hierarchy()), (Layout::V2, Hierarchy::V2));
        assert_eq!(mounts.memory_hierarchy(), Some(Hierarchy::V2));
    }

    #[test]
    fn a_hybrid_host_limits_cpu_in_v1_and_has_v2_beside_it() {
        let mounts = of(&[
            ("/sys/fs/cgroup/memory", "cgroup", false),
            ("/sys/fs/cgroup/cpuset", "cgroup", false),
            ("/sys/fs/cgroup/cpu,cpuacct", "cgroup", true),
            ("/sys/fs/cgroup/unified", "cgroup2", false),
        ])
        .unwrap();
        assert_eq!((mounts.layout(), mounts.cpu_hierarchy()), (Layout::Hybrid, Hierarchy::V1Cpu));
        assert_eq!(mounts.point(Hierarchy::V1Cpu), Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts.cpuset_hierarchy(), Some(Hierarchy::V1Cpuset));
        assert_eq!(mounts.v1_memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(mounts.memory_hierarchy(), None);
    }

    #[test]
    fn a_mount_of_the_root_is_known_from_within_a_cgroup_namespace() {
        assert!(is_whole("/") && is_whole("/../../.."));
        assert!(!is_whole("/kubepods.slice") && !is_whole("/../kubepods.slice") && !is_whole("/..a"));
    }

    #[test]
    fn mounts_elsewhere_are_nobodys_business() {
        let error = of(&[("/mnt/cgroup", "cgroup2", false)]).unwrap_err();
        assert!(error.to_string().contains("--cgroup-root"), "{error}");
    }
}

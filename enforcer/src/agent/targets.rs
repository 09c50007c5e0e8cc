//! From a plan for groups to settings of directories.

use std::{borrow::Cow, os::unix::fs::MetadataExt as _};

use super::{memory::MemoryMeter, meter::Meter};
use crate::{
    actuation::{
        Target,
        split::{memory_part, quota_part},
    },
    cgroup::{
        cpu_list::CpuList,
        hierarchy::{Hierarchy, Mounts},
        memory::whole_pages,
        setting::{Priority, Setting},
        tree::Directory,
    },
    decision::plan::Plan,
    model::{GroupId, Restraint},
};

/// What is to be in force, directory by directory. `online`: the CPUs of the node.
pub fn of<'a>(
    plan: &Plan,
    meter: &'a Meter,
    memory: &MemoryMeter,
    mounts: &Mounts,
    online: &CpuList,
) -> Vec<Target<'a>> {
    let mut targets = Vec::new();
    for (&group, restraint) in &plan.restraints {
        let tops = |hierarchy| meter.tops_of(group, hierarchy);
        if restraint.frozen && mounts.v2.is_some() {
            let frozen = |directory| target(Cow::Borrowed(directory), Setting::Frozen(true));
            targets.extend(tops(Hierarchy::V2).map(frozen));
        }
        if restraint.idle {
            let idle = |directory| target(Cow::Borrowed(directory), Setting::Priority(Priority::Idle));
            targets.extend(tops(mounts.cpu_hierarchy()).map(idle));
        }
        if let Some(limit) = restraint.quota {
            let limit = quota_part(limit, &meter.cores_by_top(group, mounts.cpu_hierarchy()));
            targets.extend(tops(mounts.cpu_hierarchy()).map(|directory| Target {
                directory: Cow::Borrowed(directory),
                setting: Setting::Quota(limit),
                below: meter.below(directory),
            }));
        }
        targets.extend(cpus(group, restraint, meter, mounts, online));
        if let (Some(high), Some(hierarchy)) = (restraint.memory_high, mounts.memory_hierarchy()) {
            let bytes = |directory: &Directory| memory.bytes_of(&directory.path).unwrap_or_default();
            let bytes: Vec<u64> = tops(hierarchy).map(bytes).collect();
            let high = Setting::MemoryHigh(Some(whole_pages(memory_part(high, &bytes))));
            targets.extend(tops(hierarchy).map(|directory| target(Cow::Borrowed(directory), high.clone())));
        }
    }
    targets
}

/// A v1 cpuset directory has the same path as the one that holds the group's CPU time; where there is none, the group
/// is not pinned. There, those are pinned that have none below: a v1 kernel does not let a directory have fewer CPUs than
/// one below it.
fn cpus<'a>(
    group: GroupId,
    restraint: &Restraint,
    meter: &'a Meter,
    mounts: &Mounts,
    online: &CpuList,
) -> Vec<Target<'a>> {
    let (Some(count), Some(hierarchy)) = (restraint.cpus, mounts.cpuset_hierarchy()) else {
        return Vec::new();
    };
    let setting = Setting::Cpus(online.last(count as usize));
    let mut pinned = Vec::new();
    for top in meter.tops_of(group, mounts.cpu_hierarchy()) {
        if top.hierarchy == hierarchy {
            pinned.push(Cow::Borrowed(top));
            continue;
        }
        let there = |directory: &Directory| {
            let inode = std::fs::metadata(mounts.point(hierarchy).join(&directory.path)).ok()?.ino();
            Some(Directory { hierarchy, inode, ..directory.clone() })
        };
        let all = std::iter::once(top).chain(meter.below(top)).filter_map(there).collect();
        // What is empty is still being made: its runtime has not said yet which CPUs it may use.
        let is_used = |directory: &Directory| {
            let tasks = mounts.point(hierarchy).join(&directory.path).join("cgroup.procs");
            std::fs::read_to_string(tasks).is_ok_and(|tasks| !tasks.is_empty())
        };
        pinned.extend(innermost(all).into_iter().filter(is_used).map(Cow::Owned));
    }
    pinned.into_iter().map(|directory| target(directory, setting.clone())).collect()
}

/// Of some directories, those that have none of the others below.
fn innermost(all: Vec<Directory>) -> Vec<Directory> {
    let paths: Vec<_> = all.iter().map(|directory| directory.path.clone()).collect();
    let has_none_below = |directory: &Directory| {
        !paths.iter().any(|path| *path != directory.path && path.starts_with(&directory.path))
    };
    all.into_iter().filter(has_none_below).collect()
}

const fn target(directory: Cow<'_, Directory>, setting: Setting) -> Target<'_> {
    Target { directory, setting, below: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_pinned_by_their_containers_where_there_are_any() {
        let directory = |path: &str| Directory {
            hierarchy: Hierarchy::V1Cpu,
            path: path.into(),
            inode: 1,
            group: GroupId(0),
            is_top: path == "pod1",
        };
        let innermost = |paths: &[&str]| {
            let found = innermost(paths.iter().map(|path| directory(path)).collect());
            found.into_iter().map(|directory| directory.path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(innermost(&["pod1"]), ["pod1"]);
        assert_eq!(innermost(&["pod1", "pod1/a"]), ["pod1/a"]);
        assert_eq!(innermost(&["pod1", "pod1/a", "pod1/a/b", "pod1/ab"]), ["pod1/a/b", "pod1/ab"]);
    }
}

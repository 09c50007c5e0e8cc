//! From a plan for groups to settings of directories.

use std::{borrow::Cow, os::unix::fs::MetadataExt as _};

use super::meter::Meter;
use crate::{
    actuation::{Target, split::equal_part},
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
pub fn of<'a>(plan: &Plan, meter: &'a Meter, mounts: &Mounts, online: &CpuList) -> Vec<Target<'a>> {
    let mut targets = Vec::new();
    for (&group, restraint) in &plan.restraints {
        let tops = |hierarchy| meter.tops_of(group, hierarchy);
        if restraint.frozen && mounts.v2.is_some() {
            let frozen = |(directory, _)| target(Cow::Borrowed(directory), Setting::Frozen(true));
            targets.extend(tops(Hierarchy::V2).map(frozen));
        }
        if restraint.idle {
            let idle = |(directory, _)| target(Cow::Borrowed(directory), Setting::Priority(Priority::Idle));
            targets.extend(tops(mounts.cpu_hierarchy()).map(idle));
        }
        if let Some(limit) = restraint.quota {
            let running = tops(mounts.cpu_hierarchy()).filter(|(_, runs)| *runs).count();
            let limit = equal_part(limit, running);
            targets.extend(tops(mounts.cpu_hierarchy()).map(|(directory, _)| Target {
                directory: Cow::Borrowed(directory),
                setting: Setting::Quota(limit),
                below: meter.below(directory),
            }));
        }
        targets.extend(cpus(group, restraint, meter, mounts, online));
        if let (Some(high), Some(hierarchy)) = (restraint.memory_high, mounts.memory_hierarchy()) {
            // What does not run holds memory as well.
            let parts = tops(hierarchy).count().max(1) as u64;
            let high = Setting::MemoryHigh(Some(whole_pages(high / parts)));
            targets
                .extend(tops(hierarchy).map(|(directory, _)| target(Cow::Borrowed(directory), high.clone())));
        }
    }
    targets
}

/// A v1 cpuset directory has the same path as the one that holds the group's CPU time; where there is none, the group
/// is not pinned. There, those are pinned that have none below: a
/// v1 kernel does not let a directory have fewer CPUs than one below it.
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
    let mut directories: Vec<&Directory> = Vec::new();
    for (top, _) in meter.tops_of(group, mounts.cpu_hierarchy()) {
        let below = if hierarchy == Hierarchy::V1Cpuset { meter.below(top) } else { Vec::new() };
        directories.extend(innermost(top, below));
    }
    let pinned = directories.into_iter().filter_map(|directory| {
        let directory = if directory.hierarchy == hierarchy {
            Cow::Borrowed(directory)
        } else {
            let inode = std::fs::metadata(mounts.point(hierarchy).join(&directory.path)).ok()?.ino();
            Cow::Owned(Directory { hierarchy, inode, ..directory.clone() })
        };
        Some(target(directory, setting.clone()))
    });
    pinned.collect()
}

/// Of a directory and those below it, the ones that have none below.
fn innermost<'a>(top: &'a Directory, below: Vec<&'a Directory>) -> Vec<&'a Directory> {
    let mut all = below;
    all.push(top);
    let has_none_below = |directory: &&Directory| {
        let is_below =
            |other: &&Directory| other.path != directory.path && other.path.starts_with(&directory.path);
        !all.iter().any(is_below)
    };
    all.iter().copied().filter(has_none_below).collect()
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
        let (pod, a, b) = (directory("pod1"), directory("pod1/a"), directory("pod1/a/b"));
        assert_eq!(innermost(&pod, Vec::new()), [&pod]);
        assert_eq!(innermost(&pod, vec![&a]), [&a]);
        let other = directory("pod1/ab");
        assert_eq!(innermost(&pod, vec![&a, &b, &other]), [&b, &other]);
    }
}

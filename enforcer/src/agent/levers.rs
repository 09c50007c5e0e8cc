//! Which levers work on a BE group, and why the others do not.

use std::path::Path;

use super::meter::Meter;
use crate::{
    cgroup::{
        hierarchy::{Hierarchy, Mounts},
        kubepods,
        tree::Directory,
    },
    model::{GroupId, Lever, Levers},
};

/// Levers that work on every directory of a group; none where it has no directory.
pub fn of(group: GroupId, meter: &Meter, mounts: &Mounts) -> Levers {
    let tops = |hierarchy| meter.tops_of(group, hierarchy);
    let all = |hierarchy, works: &dyn Fn(&Directory) -> bool| {
        tops(hierarchy).next().is_some() && tops(hierarchy).all(works)
    };
    let has = |mounts: &Mounts, directory: &Directory, file: &str| {
        mounts.point(directory.hierarchy).join(&directory.path).join(file).exists()
    };
    let cpu = mounts.cpu_hierarchy();
    let quota = if cpu == Hierarchy::V2 { "cpu.max" } else { "cpu.cfs_quota_us" };
    let mut levers = Levers::default();
    if all(cpu, &|directory| has(mounts, directory, quota)) {
        levers = levers.with(Lever::Quota);
    }
    // Where kubelet writes weights, the kernel would refuse them, and kubelet would fail.
    if all(cpu, &|directory| has(mounts, directory, "cpu.idle") && !is_kubelets(&directory.path)) {
        levers = levers.with(Lever::Idle);
    }
    if let Some(hierarchy) = mounts.cpuset_hierarchy() {
        let pins = |directory: &Directory| {
            mounts.point(hierarchy).join(&directory.path).join("cpuset.cpus").exists()
        };
        if all(cpu, &pins) {
            levers = levers.with(Lever::Cpuset);
        }
    }
    if mounts.v2.is_some() && all(Hierarchy::V2, &|directory| has(mounts, directory, "cgroup.freeze")) {
        levers = levers.with(Lever::Freeze);
    }
    // On hybrid hosts the controller is on v1, whose limits end in OOM kills.
    if let Some(hierarchy) = mounts.memory_hierarchy()
        && all(hierarchy, &|directory| has(mounts, directory, "memory.high"))
    {
        levers = levers.with(Lever::Memory);
    }
    levers
}

fn is_kubelets(path: &Path) -> bool {
    path.to_str().is_none_or(kubepods::is_kubelets)
}

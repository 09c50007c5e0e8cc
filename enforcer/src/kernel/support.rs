//! What this kernel offers to the probes. Facts first, then the one rule: which wait source to use.

use enforcer_ebpf::layout;

use super::btf::{self, KernelTypes};

/// How a probe learns since when a task has been runnable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitSource {
    /// The kernel keeps it (`CONFIG_SCHED_INFO`): one program, on `sched_switch`.
    SchedInfo,
    /// Two more programs, on `sched_wakeup` and `sched_wakeup_new`, keep it in a hash map; dearer.
    Wakeups,
}

/// Fields that both variants need: global in the object, structure, path.
const COMMON: [(&str, &str, &str); 9] = [
    ("OFF_PID", "task_struct", "pid"),
    ("OFF_CGROUPS", "task_struct", "cgroups"),
    ("OFF_DFL_CGRP", "css_set", "dfl_cgrp"),
    ("OFF_CPU_CSS", "css_set", "subsys"),
    ("OFF_CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
    ("OFF_KN", "cgroup", "kn"),
    ("OFF_ID", "kernfs_node", "id"),
    ("OFF_GROUP_LEADER", "task_struct", "group_leader"),
    ("OFF_START_TIME", "task_struct", "start_time"),
];

/// Fields that let the kernel's own bookkeeping be used.
const SCHED_INFO: [(&str, &str, &str); 4] = [
    ("OFF_LAST_QUEUED", "task_struct", "sched_info.last_queued"),
    ("OFF_CFS_RQ", "task_struct", "se.cfs_rq"),
    ("OFF_RQ", "cfs_rq", "rq"),
    ("OFF_CLOCK", "rq", "clock"),
];

/// Offsets to set in the object before load, and the variant they make possible.
#[derive(Clone, Debug)]
pub struct Support {
    pub wait_source: WaitSource,
    pub offsets: Vec<(&'static str, u32)>,
    /// Whether the kernel says which task it kills for want of memory, not only its pid.
    pub oom_kill_names_task: bool,
}

impl Support {
    /// Reads the running kernel's types. `force_wakeups` chooses the fallback although the kernel may offer better.
    ///
    /// # Errors
    /// Where the kernel has no BTF, or lacks a field that both variants need.
    pub fn of_running_kernel(force_wakeups: bool) -> Result<Self, btf::Error> {
        let types = KernelTypes::of_running_kernel()?;
        let mut offsets = offsets_of(&types, &COMMON)?;
        // `subsys` is an array of pointers, one per controller.
        let cpu_controller = types.enumerator("cgroup_subsys_id", "cpu_cgrp_id")?;
        for (name, offset) in &mut offsets {
            if *name == "OFF_CPU_CSS" {
                *offset += cpu_controller * 8;
            }
        }
        let state =
            types.offset_of("task_struct", "__state").or_else(|_| types.offset_of("task_struct", "state"))?;
        offsets.push(("OFF_STATE", state));

        let sched_info = if force_wakeups { None } else { offsets_of(&types, &SCHED_INFO).ok() };
        let wait_source = if sched_info.is_some() { WaitSource::SchedInfo } else { WaitSource::Wakeups };
        offsets.extend(sched_info.unwrap_or_default());
        let oom_kill_names_task = types.tracepoint_hands_pointer("mark_victim");
        Ok(Self { wait_source, offsets, oom_kill_names_task })
    }
}

fn offsets_of(
    types: &KernelTypes,
    fields: &[(&'static str, &'static str, &'static str)],
) -> Result<Vec<(&'static str, u32)>, btf::Error> {
    fields.iter().map(|&(name, structure, path)| Ok((name, types.offset_of(structure, path)?))).collect()
}

/// Sizes of the probes' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    /// Possible CPUs.
    pub cpus: u32,
    /// Cgroups that can be told apart, reserved slots included.
    pub slots: u32,
    /// LS groups that blame and request latency can be kept for, the unused row 0 included.
    pub victims: u32,
    /// Groups that can be blamed, reserved columns included.
    pub culprits: u32,
}

impl Sizes {
    /// Kernel memory that the tables take, in bytes. Where wake-ups are timed by probes of their own, some 4 MiB more.
    pub const fn memory_bytes(self) -> u64 {
        let blame = self.victims as u64 * self.culprits as u64 * 8;
        let per_cpu = size_of::<layout::Cpu>() as u64
            + self.slots as u64 * (size_of::<layout::Wait>() + size_of::<layout::Memory>()) as u64
            + blame
            + self.victims as u64 * (size_of::<layout::Requests>() + size_of::<layout::InFlight>()) as u64;
        let table = enforcer_ebpf::table::BUCKET_COUNT as u64 * 64;
        // An entry of an LRU hash: key, value and some 70 bytes of the kernel's own.
        let early = layout::EARLY_ENTRIES as u64 * 120;
        // Of a plain one: key, value and some 56 bytes.
        let stalls = layout::STALLING_ENTRIES as u64 * 72;
        let per_victim = (size_of::<layout::Objective>() + size_of::<layout::Sentry>()) as u64;
        let shared = table + early + stalls + layout::ONSETS_BYTES as u64;
        self.cpus as u64 * per_cpu + shared + self.victims as u64 * per_victim
    }
}

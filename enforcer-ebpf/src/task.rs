//! The few fields of `task_struct` and its neighbours that the probes read.
//!
//! Each `OFF_*` is the byte offset of a kernel field, set by the agent before load. The verifier sees a constant and
//! accepts a plain load through a typed pointer: no `bpf_probe_read`, no relocation.

use aya_ebpf::{Global, helpers::bpf_ktime_get_ns};
use enforcer_ebpf::{layout::Place, table::Key};

use crate::maps::TABLE;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// `task_struct.pid`
    OFF_PID,
    /// `task_struct.__state` (state before 5.14)
    OFF_STATE,
    /// `task_struct.sched_info.last_queued`
    OFF_LAST_QUEUED,
    /// `task_struct.se.cfs_rq`
    OFF_CFS_RQ,
    /// `cfs_rq.rq`
    OFF_RQ,
    /// `rq.clock`
    OFF_CLOCK,
    /// `task_struct.cgroups`
    OFF_CGROUPS,
    /// `css_set.dfl_cgrp`
    OFF_DFL_CGRP,
    /// `css_set.subsys[cpu_cgrp_id]`
    OFF_CPU_CSS,
    /// `cgroup_subsys_state.cgroup`
    OFF_CSS_CGROUP,
    /// `cgroup.kn`
    OFF_KN,
    /// `kernfs_node.id`
    OFF_ID,
    /// `task_struct.group_leader`
    OFF_GROUP_LEADER,
    /// `task_struct.start_time`
    OFF_START_TIME,
}

/// Bit 0: look cgroups up by their directory in the v2 hierarchy; bit 1: by the one in v1's cpu hierarchy.
#[unsafe(no_mangle)]
static IDENTITY: Global<u32> = Global::new(0);
const BY_V2: u32 = 1;
const BY_V1_CPU: u32 = 2;

/// 1: the kernel keeps the time at which a task began to wait (`CONFIG_SCHED_INFO`); 0: the wake-up probes do.
#[unsafe(no_mangle)]
static HAVE_SCHED_INFO: Global<u32> = Global::new(1);

/// Whether the kernel itself knows since when a task has been runnable.
#[inline(always)]
pub fn kernel_keeps_wait_start() -> bool {
    HAVE_SCHED_INFO.load() != 0
}

/// A pointer to a kernel structure, as handed to a BTF tracepoint or found through one.
#[derive(Clone, Copy)]
struct Object(*const u8);

impl Object {
    #[inline(always)]
    fn load<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: a load through a BTF pointer; the verifier checks offset and size against the kernel's types, and the
        // kernel turns a fault into a zero.
        unsafe { core::ptr::read_volatile(self.0.add(offset.load() as usize).cast::<T>()) }
    }

    #[inline(always)]
    fn follow(self, offset: &Global<u32>) -> Option<Self> {
        let next: *const u8 = self.load(offset);
        (!next.is_null()).then_some(Self(next))
    }
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub struct Task(Object);

impl Task {
    #[inline(always)]
    pub fn new(task: *const u8) -> Self {
        Self(Object(task))
    }

    /// The thread id; 0 is the idle task of each CPU.
    #[inline(always)]
    pub fn pid(self) -> u32 {
        self.0.load(&OFF_PID)
    }

    /// Of the task's process: its id, and when it began, in ns. Together they tell it from every other one.
    #[inline(always)]
    pub fn process(self) -> Option<(u32, u64)> {
        let leader = self.0.follow(&OFF_GROUP_LEADER)?;
        Some((leader.load(&OFF_PID), leader.load(&OFF_START_TIME)))
    }

    /// Still on the run queue by its own account (`TASK_RUNNING`).
    #[inline(always)]
    pub fn is_runnable(self) -> bool {
        self.0.load::<u32>(&OFF_STATE) == 0
    }

    /// When the task began to wait for this CPU, in the run queue's clock. `None` if it did not wait. Still set while
    /// `sched_switch` fires for it; migration restarts it.
    #[inline(always)]
    pub fn last_queued_ns(self) -> Option<u64> {
        let since: u64 = self.0.load(&OFF_LAST_QUEUED);
        (since != 0).then_some(since)
    }

    /// The clock of the run queue that the task is on.
    #[inline(always)]
    fn rq_clock_ns(self) -> Option<u64> {
        let rq = self.0.follow(&OFF_CFS_RQ)?.follow(&OFF_RQ)?;
        Some(rq.load(&OFF_CLOCK))
    }

    /// Whose task it is, as far as the policy is concerned.
    #[inline(always)]
    pub fn place(self) -> Place {
        if self.pid() == 0 {
            return Place::IDLE;
        }
        let Some(css_set) = self.0.follow(&OFF_CGROUPS) else { return Place::OTHER };
        let identity = IDENTITY.load();
        if identity & BY_V2 != 0
            && let Some(cgroup) = css_set.follow(&OFF_DFL_CGRP)
            && let Some(place) = place_of(cgroup, Key::v2)
        {
            return place;
        }
        if identity & BY_V1_CPU != 0
            && let Some(css) = css_set.follow(&OFF_CPU_CSS)
            && let Some(cgroup) = css.follow(&OFF_CSS_CGROUP)
            && let Some(place) = place_of(cgroup, Key::v1_cpu)
        {
            return place;
        }
        Place::OTHER
    }
}

#[inline(always)]
fn place_of(cgroup: Object, key: fn(u64) -> Key) -> Option<Place> {
    let id: u64 = cgroup.follow(&OFF_KN)?.load(&OFF_ID);
    find_place(key(id))
}

/// The place of a cgroup, if the policy names it.
#[inline(always)]
pub fn find_place(key: Key) -> Option<Place> {
    TABLE.get(key.bucket())?.find(key)
}

/// Now, in the clock in which waits begin.
///
/// `last_queued` is in the run queue's clock, which is milliseconds away from ktime and drifts; it also is cheaper to
/// read. The idle task is on no fair run queue on some kernels, hence `prev`.
#[inline(always)]
pub fn now_ns(prev: Task, next: Task) -> Option<u64> {
    if !kernel_keeps_wait_start() {
        return Some(ktime_ns());
    }
    next.rq_clock_ns().or_else(|| prev.rq_clock_ns())
}

/// `CLOCK_MONOTONIC`, in ns.
#[inline(always)]
pub fn ktime_ns() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

//! How long do tasks stall because memory has to be made free, and which tasks does the kernel kill for want of it?
//!
//! A task stalls in direct reclaim (the node is short), in reclaim of a memory cgroup (a limit of its own or above it is
//! reached), or in compaction (no large enough page). Each has a tracepoint at its begin and its end, both in the context
//! of the task that stalls, so none of their arguments is needed. What the kernel's own threads do in the background
//! (kswapd, kcompactd) stalls nobody and passes no such tracepoint, or belongs to no group.
//!
//! Absent on purpose: the sleep of a task that is above `memory.high`, and waits for pages that have to be read again.
//! PSI holds both.

use aya_ebpf::{
    EbpfContext, helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use enforcer_ebpf::layout::{Drop, SLOT_OTHER, StallCause};

use crate::{
    maps::{STALLING, ThisCpu, oom_killed},
    task::{Task, ktime_ns},
};

/// `mm_vmscan_direct_reclaim_begin(int order, gfp_t gfp_flags, ...)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
pub fn direct_reclaim_begin(ctx: BtfTracePointContext) -> i32 {
    begin(&ctx, StallCause::DirectReclaim)
}

/// `mm_vmscan_direct_reclaim_end(unsigned long nr_reclaimed, ...)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
pub fn direct_reclaim_end(_: BtfTracePointContext) -> i32 {
    end(StallCause::DirectReclaim)
}

/// `mm_vmscan_memcg_reclaim_begin(int order, gfp_t gfp_flags, ...)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn memcg_reclaim_begin(ctx: BtfTracePointContext) -> i32 {
    begin(&ctx, StallCause::MemcgReclaim)
}

/// `mm_vmscan_memcg_reclaim_end(unsigned long nr_reclaimed, ...)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn memcg_reclaim_end(_: BtfTracePointContext) -> i32 {
    end(StallCause::MemcgReclaim)
}

/// `mm_compaction_begin(...)`, once per zone.
#[btf_tracepoint(function = "mm_compaction_begin")]
pub fn compaction_begin(ctx: BtfTracePointContext) -> i32 {
    begin(&ctx, StallCause::Compaction)
}

/// `mm_compaction_end(...)`
#[btf_tracepoint(function = "mm_compaction_end")]
pub fn compaction_end(_: BtfTracePointContext) -> i32 {
    end(StallCause::Compaction)
}

/// `mark_victim(struct task_struct *task, uid_t uid)`, since 6.8 and in some stable kernels before. Where it is
/// `mark_victim(int pid)`, the agent does not load this.
///
/// The kernel marks one thread of the process that it chose; each further one that wants memory before it has ended is
/// marked as well.
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_kill(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(0));
    if is_first_of_its_process(task)
        && let Some(memory) = ThisCpu::get().memory(task.place().slot())
    {
        memory.oom_kills += 1;
    }
    0
}

/// The kernel marks one at a time (`oom_lock`).
#[inline(always)]
fn is_first_of_its_process(task: Task) -> bool {
    let Some((process, began_ns)) = task.process() else { return true };
    oom_killed(process).is_none_or(|last_ns| core::mem::replace(last_ns, began_ns) != began_ns)
}

#[inline(always)]
fn begin(ctx: &impl EbpfContext, cause: StallCause) -> i32 {
    let cpu = ThisCpu::get();
    if current_slot(cpu) != SLOT_OTHER && STALLING.insert(key(cause), ktime_ns(), 0).is_err() {
        cpu.drop(ctx, Drop::StallTableFull);
    }
    0
}

#[inline(always)]
fn end(cause: StallCause) -> i32 {
    let key = key(cause);
    // SAFETY: the value is copied at once; entries are only replaced whole.
    let Some(since_ns) = (unsafe { STALLING.get(key) }).copied() else { return 0 };
    // Absent already is not possible: only this task removes it.
    STALLING.remove(key).ok();
    let cpu = ThisCpu::get();
    if let Some(memory) = cpu.memory(current_slot(cpu))
        && let Some(stall) = memory.stalls.get_mut(cause as usize)
    {
        stall.count += 1;
        stall.ns += ktime_ns().saturating_sub(since_ns);
    }
    0
}

/// The slot of the current task: the run-queue probe noted it when the task was put on this CPU. Cheaper than asking the
/// task, which kernels before 5.11 do not allow anyhow.
#[inline(always)]
fn current_slot(cpu: ThisCpu) -> u32 {
    cpu.segments().map_or(SLOT_OTHER, |segments| segments.current().place.slot())
}

/// A task stalls for one cause at a time, but a begin that was seen before its program had an end must not pair with the
/// end of another cause.
#[inline(always)]
fn key(cause: StallCause) -> u64 {
    let thread = bpf_get_current_pid_tgid() as u32;
    u64::from(thread) | (cause as u64) << 32
}

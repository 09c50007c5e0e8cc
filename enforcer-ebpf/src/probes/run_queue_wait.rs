//! How long do tasks wait for a CPU, and who runs there meanwhile?

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use enforcer_ebpf::layout::{CULPRIT_UNATTRIBUTED, Cpu, Drop, NO_VICTIM, Place, SEGMENTS, Segment, Wait};

use crate::{
    maps::{OBJECTIVES, RUNNABLE, ThisCpu, count},
    probes::onset::slow_wait,
    task::{Task, kernel_keeps_wait_start, ktime_ns, now_ns},
};

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, ...)`: the first three arguments are
/// the same on all kernels since 5.5.
#[btf_tracepoint(function = "sched_switch")]
pub fn run_queue_wait(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    let (prev, next) = (Task::new(ctx.arg(1)), Task::new(ctx.arg(2)));
    let cpu = ThisCpu::get();
    let Some(segments) = cpu.segments() else { return 0 };
    let Some(now_ns) = now_ns(prev, next) else {
        cpu.drop(&ctx, Drop::NoClock);
        return 0;
    };
    if !kernel_keeps_wait_start() && prev.pid() != 0 && (preempted & 1 != 0 || prev.is_runnable()) {
        queued(&ctx, cpu, prev, now_ns);
    }

    let place = next.place();
    let current = *segments.current();
    let goes_on = place == current.place;
    // The first segment of each CPU has no beginning.
    if !goes_on
        && current.since_ns != 0
        && let Some(ran) = cpu.wait(current.place.slot())
    {
        ran.on_cpu_ns += now_ns.saturating_sub(current.since_ns);
    }
    if let Some(counts) = cpu.wait(place.slot()) {
        counts.switches += 1;
        if place != Place::IDLE {
            record(&ctx, cpu, (place, counts), wait_start(next), now_ns, segments);
        }
    }

    if !goes_on {
        segments.head += 1;
        segments.segments[segments.head as usize % SEGMENTS] = Segment { since_ns: now_ns, place };
    }
    0
}

#[inline(always)]
fn record(
    ctx: &BtfTracePointContext,
    cpu: ThisCpu,
    (place, counts): (Place, &mut Wait),
    since_ns: Option<u64>,
    now_ns: u64,
    past: &Cpu,
) {
    let Some(since_ns) = since_ns else { return };
    let Some(waited_ns) = now_ns.checked_sub(since_ns) else {
        cpu.drop(ctx, Drop::NegativeWait);
        return;
    };
    counts.waits += 1;
    counts.wait_ns += waited_ns;
    count(&mut counts.histogram, waited_ns);
    if place.victim() != NO_VICTIM {
        if let Some(objective) = OBJECTIVES.get(place.victim())
            && objective.wait_ns < waited_ns
        {
            counts.slow += 1;
            slow_wait(ctx, cpu, place.victim());
        }
        blame(cpu, place.victim(), since_ns, now_ns, past);
    }
}

/// Charges the time from `since_ns` to `now_ns` to whoever ran on this CPU, walking back from now.
#[inline(always)]
fn blame(cpu: ThisCpu, victim: u32, since_ns: u64, now_ns: u64, past: &Cpu) {
    let mut end_ns = now_ns;
    for back in 0..SEGMENTS {
        let segment = &past.segments[past.head.wrapping_sub(back as u64) as usize % SEGMENTS];
        let from_ns = segment.since_ns.max(since_ns);
        if let Some(charged) = cpu.blame(victim, segment.place.culprit())
            && from_ns < end_ns
        {
            *charged += end_ns - from_ns;
            end_ns = from_ns;
        }
        if segment.since_ns <= since_ns {
            return;
        }
    }
    if let Some(unattributed) = cpu.blame(victim, CULPRIT_UNATTRIBUTED) {
        *unattributed += end_ns - since_ns;
    }
}

#[inline(always)]
fn wait_start(task: Task) -> Option<u64> {
    if kernel_keeps_wait_start() {
        return task.last_queued_ns();
    }
    let pid = task.pid();
    // SAFETY: the value is copied at once; entries are only replaced whole.
    let since_ns = unsafe { RUNNABLE.get(pid) }.copied()?;
    // Absent already: somebody else took it, and nothing is lost.
    RUNNABLE.remove(pid).ok();
    Some(since_ns)
}

#[inline(always)]
fn queued(ctx: &BtfTracePointContext, cpu: ThisCpu, task: Task, now_ns: u64) {
    if RUNNABLE.insert(task.pid(), now_ns, 0).is_err() {
        cpu.drop(ctx, Drop::RunnableTableFull);
    }
}

/// `sched_wakeup(struct task_struct *p)`; the fallback for kernels without `CONFIG_SCHED_INFO`.
#[btf_tracepoint(function = "sched_wakeup")]
pub fn runnable_since(ctx: BtfTracePointContext) -> i32 {
    queued(&ctx, ThisCpu::get(), Task::new(ctx.arg(0)), ktime_ns());
    0
}

/// `sched_wakeup_new(struct task_struct *p)`; likewise, for a task's first run.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn runnable_since_birth(ctx: BtfTracePointContext) -> i32 {
    queued(&ctx, ThisCpu::get(), Task::new(ctx.arg(0)), ktime_ns());
    0
}

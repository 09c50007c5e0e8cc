//! What enforcer's probe is compared with: a program that does nothing, and one that measures run-queue latency in the
//! customary way, with a hash map from thread to wake-up time. Never part of the agent.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("bench-probes: these are BPF programs; `cargo xtask bench` compiles them");
    std::process::exit(2);
}

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "what aya's entry points take")]
mod probes {
    use aya_ebpf::{
        Global,
        helpers::bpf_ktime_get_ns,
        macros::{btf_tracepoint, cgroup_skb, map},
        maps::{HashMap, PerCpuArray},
        programs::{BtfTracePointContext, SkBuffContext},
    };

    /// `task_struct.pid` and `task_struct.__state`
    #[unsafe(no_mangle)]
    static OFF_PID: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static OFF_STATE: Global<u32> = Global::new(0);

    #[map]
    static STARTED: HashMap<u32, u64> = HashMap::with_max_entries(10_240, 0);
    /// Microseconds, by power of two.
    #[map]
    static LATENCY: PerCpuArray<u64> = PerCpuArray::with_max_entries(64, 0);

    #[btf_tracepoint(function = "sched_switch")]
    pub fn empty(_: BtfTracePointContext) -> i32 {
        0
    }

    /// What any program on packets costs that looks at nothing.
    #[cgroup_skb]
    pub fn empty_packet(_: SkBuffContext) -> i32 {
        1
    }

    #[btf_tracepoint(function = "sched_wakeup")]
    pub fn runqlat_wakeup(ctx: BtfTracePointContext) -> i32 {
        start(ctx.arg(0));
        0
    }

    #[btf_tracepoint(function = "sched_wakeup_new")]
    pub fn runqlat_wakeup_new(ctx: BtfTracePointContext) -> i32 {
        start(ctx.arg(0));
        0
    }

    #[btf_tracepoint(function = "sched_switch")]
    pub fn runqlat_switch(ctx: BtfTracePointContext) -> i32 {
        let (prev, next): (*const u8, *const u8) = (ctx.arg(1), ctx.arg(2));
        if field(prev, &OFF_STATE) == 0 {
            start(prev);
        }
        let pid = field(next, &OFF_PID);
        // SAFETY: copied at once.
        let Some(since_ns) = (unsafe { STARTED.get(pid) }).copied() else { return 0 };
        // SAFETY: takes nothing.
        let waited_us = unsafe { bpf_ktime_get_ns() }.wrapping_sub(since_ns) / 1000;
        let slot = 64 - waited_us.leading_zeros();
        if let Some(count) = LATENCY.get_ptr_mut(slot & 63) {
            // SAFETY: this CPU's element.
            unsafe { *count += 1 };
        }
        STARTED.remove(pid).ok();
        0
    }

    #[inline(always)]
    fn start(task: *const u8) {
        let pid = field(task, &OFF_PID);
        if pid == 0 {
            return;
        }
        // SAFETY: takes nothing.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        // A full map loses a sample, as in the tools that this stands for.
        STARTED.insert(pid, now_ns, 0).ok();
    }

    #[inline(always)]
    fn field(task: *const u8, offset: &Global<u32>) -> u32 {
        // SAFETY: a load through a BTF pointer, checked by the verifier.
        unsafe { core::ptr::read_volatile(task.add(offset.load() as usize).cast()) }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        // The verifier refuses programs that could get here.
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

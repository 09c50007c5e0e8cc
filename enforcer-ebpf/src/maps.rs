//! Every map, its size and why.
//!
//! The sizes written here are placeholders of one element: the agent sets the real ones at load, from the number of CPUs
//! and the limits of its policy, and says so in `enforcer check`. Indices are `cpu × elements + element`; plain arrays
//! rather than per-CPU ones, because only those can be mapped into the agent's memory.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext, Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::SkStorage,
    helpers::bpf_get_smp_processor_id,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, RingBuf},
};
use enforcer_ebpf::{
    histogram::{Histogram, bucket_of},
    layout::{
        Cpu, Drop, EARLY_ENTRIES, InFlight, Memory, ONSETS_BYTES, Objective, Requests, STALLING_ENTRIES,
        Sentry, Wait,
    },
    table::{BUCKET_COUNT, Bucket},
};

use crate::probes::request_latency::Connection;

/// Slots per CPU in [`WAITS`] and [`MEMORY`].
#[unsafe(no_mangle)]
static SLOTS: Global<u32> = Global::new(1);
/// Victim rows per CPU in [`BLAME`], [`REQUESTS`] and [`IN_FLIGHT`].
#[unsafe(no_mangle)]
static VICTIMS: Global<u32> = Global::new(1);
/// Culprit columns per victim in [`BLAME`].
#[unsafe(no_mangle)]
static CULPRITS: Global<u32> = Global::new(1);

/// Elements of [`OOM_KILLED`], a power of two.
const OOM_KILLED_COUNT: u32 = 64;

/// Cgroup to place. 1 MiB, written by the agent only.
#[map]
pub static TABLE: Array<Bucket> = Array::with_max_entries(BUCKET_COUNT, BPF_F_MMAPABLE);
/// What counts as slow, per victim. 32 bytes each, written by the agent only.
#[map]
pub static OBJECTIVES: Array<Objective> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Who ran lately: CPUs × 320 bytes.
#[map]
static CPUS: Array<Cpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Waits and CPU time: CPUs × slots × 416 bytes.
#[map]
static WAITS: Array<Wait> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Memory stalls and OOM kills: CPUs × slots × 64 bytes.
#[map]
static MEMORY: Array<Memory> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The processes that the kernel killed last for want of memory: when each began, by the lower bits of its id. 512 bytes.
#[map]
static OOM_KILLED: Array<u64> = Array::with_max_entries(OOM_KILLED_COUNT, 0);
/// Time waited, by victim and culprit: CPUs × victims × culprits × 8 bytes.
#[map]
static BLAME: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Requests: CPUs × victims × 424 bytes.
#[map]
static REQUESTS: Array<Requests> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Requests in flight: CPUs × victims × 512 bytes.
#[map]
static IN_FLIGHT: Array<InFlight> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Requests in flight of groups of which only a part of the requests count: 8 bytes.
#[map]
pub static PENDING: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// What could not be counted: CPUs × causes × 8 bytes.
#[map]
static DROPS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Since when a task has been runnable, by thread id. Used by the fallback only; 64 Ki tasks × about 64 bytes otherwise
/// (the agent shrinks it to one entry where the kernel keeps that time itself).
#[map]
pub static RUNNABLE: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);
/// Watches for trouble, per victim: 64 bytes each. The agent writes the paces.
#[map]
pub static SENTRIES: Array<Sentry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Onsets of trouble on their way to the agent: 4 KiB, which hold 170 of them.
#[map]
pub static ONSETS: RingBuf = RingBuf::with_byte_size(ONSETS_BYTES, 0);
/// Since when a task has stalled, by thread id and cause. As many as may stall at once: 4,096 × about 72 bytes.
#[map]
pub static STALLING: HashMap<u64, u64> = HashMap::with_max_entries(STALLING_ENTRIES, 0);
/// One per measured connection; the kernel frees it with the socket.
#[btf_map]
pub static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// A request without a connection yet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Early {
    pub since_ns: u64,
    /// What its client had acknowledged.
    pub acknowledged: u64,
}

/// When a request came in on the last packet of its connection's handshake, by addresses and ports. Such a packet is shown
/// to the listener; a moment later the connection has a socket of its own and the entry goes. 1,024 × about 120 bytes.
#[map]
pub static EARLY: LruHashMap<[u32; 9], Early> = LruHashMap::with_max_entries(EARLY_ENTRIES, 0);

/// The CPU this program runs on.
#[derive(Clone, Copy)]
pub struct ThisCpu(u32);

impl ThisCpu {
    #[inline(always)]
    pub fn get() -> Self {
        // SAFETY: takes nothing and cannot fail.
        Self(unsafe { bpf_get_smp_processor_id() } as u32)
    }

    #[inline(always)]
    pub fn segments(self) -> Option<&'static mut Cpu> {
        // SAFETY: only this CPU writes its element, and tracing programs on the switch path do not nest on one CPU.
        unsafe { Some(&mut *CPUS.get_ptr_mut(self.0)?) }
    }

    #[inline(always)]
    pub fn wait(self, slot: u32) -> Option<&'static mut Wait> {
        // SAFETY: as for `segments`.
        unsafe { Some(&mut *WAITS.get_ptr_mut(self.0 * SLOTS.load() + slot)?) }
    }

    #[inline(always)]
    pub fn memory(self, slot: u32) -> Option<&'static mut Memory> {
        // SAFETY: this CPU's element, written in the context of tasks only. A task that takes the CPU within the few
        // instructions that count one may lose a count, which is acceptable.
        unsafe { Some(&mut *MEMORY.get_ptr_mut(self.0 * SLOTS.load() + slot)?) }
    }

    #[inline(always)]
    pub fn blame(self, victim: u32, culprit: u32) -> Option<&'static mut u64> {
        let row = self.0 * VICTIMS.load() + victim;
        // SAFETY: as for `segments`.
        unsafe { Some(&mut *BLAME.get_ptr_mut(row * CULPRITS.load() + culprit)?) }
    }

    /// To be counted with [`Counter::add`]: an interrupt may send another response while one is being counted.
    #[inline(always)]
    pub fn requests(self, victim: u32) -> Option<&'static mut Requests> {
        // SAFETY: as for `segments`, but for nesting.
        unsafe { Some(&mut *REQUESTS.get_ptr_mut(self.0 * VICTIMS.load() + victim)?) }
    }

    /// To be counted with [`Counter::add`], likewise.
    #[inline(always)]
    pub fn in_flight(self, victim: u32) -> Option<&'static mut InFlight> {
        // SAFETY: as for `requests`.
        unsafe { Some(&mut *IN_FLIGHT.get_ptr_mut(self.0 * VICTIMS.load() + victim)?) }
    }

    /// Counts something that could not be counted; the log speaks up at each power of two.
    #[inline(always)]
    pub fn drop(self, ctx: &impl EbpfContext, what: Drop) {
        // SAFETY: a statistic; a lost increment under nesting is acceptable.
        let Some(count) = DROPS.get_ptr_mut(self.0 * Drop::COUNT + what as u32).map(|p| unsafe { &mut *p })
        else {
            return;
        };
        *count += 1;
        if count.is_power_of_two() {
            aya_log_ebpf::warn!(
                ctx,
                "probe drop cause {} now {} times on CPU {}",
                what as u32,
                *count,
                self.0
            );
        }
    }
}

/// When the process began that was killed last of those whose ids have the same lower bits.
#[inline(always)]
pub fn oom_killed(process: u32) -> Option<&'static mut u64> {
    // SAFETY: the kernel kills one process at a time for want of memory, and nobody else reads this.
    unsafe { Some(&mut *OOM_KILLED.get_ptr_mut(process % OOM_KILLED_COUNT)?) }
}

/// A counter that grows by one atomic instruction, which no interrupt and no other CPU gets between. Core has none for
/// the BPF target, the kernel has had this one since 3.18 (`BPF_XADD`).
pub trait Counter {
    /// Adds, and wraps.
    fn add(&mut self, number: Self);
}

impl Counter for u32 {
    #[inline(always)]
    fn add(&mut self, number: Self) {
        // SAFETY: a valid, aligned reference; the instruction touches nothing else.
        unsafe {
            asm!("lock *(u32 *)({at} + 0) += {number}", at = in(reg) self, number = in(reg) u64::from(number));
        }
    }
}

impl Counter for u64 {
    #[inline(always)]
    fn add(&mut self, number: Self) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({at} + 0) += {number}", at = in(reg) self, number = in(reg) number) }
    }
}

/// Counts a duration. The compiler knows that the bucket is in range, the verifier does not: the check must stay.
#[inline(always)]
pub fn count(histogram: &mut Histogram, ns: u64) {
    if let Some(count) = histogram.get_mut(core::hint::black_box(bucket_of(ns))) {
        *count += 1;
    }
}

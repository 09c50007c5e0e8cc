//! Maps to plain counters, summed over CPUs.

use std::{
    mem::offset_of,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use enforcer_ebpf::{
    histogram::{BUCKETS, Histogram},
    layout::{
        self, Cpu, Drop, FIRST_SLOT, FIRST_VICTIM, IN_FLIGHT_BUCKETS, InFlight, Memory, Objective, Place,
        Requests, SEGMENTS, Segment, Sentry, Stall, StallCause, Wait,
    },
};

use super::{mapped::MappedArray, support::Sizes};
use crate::model::{Pace, Signal};

/// Totals of one cgroup since its slot was allotted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitTotals {
    pub switches: u64,
    pub on_cpu_ns: u64,
    pub waits: u64,
    pub wait_ns: u64,
    pub slow: u64,
}

impl WaitTotals {
    /// What came since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            switches: self.switches - earlier.switches,
            on_cpu_ns: self.on_cpu_ns - earlier.on_cpu_ns,
            waits: self.waits - earlier.waits,
            wait_ns: self.wait_ns - earlier.wait_ns,
            slow: self.slow - earlier.slow,
        }
    }
}

impl std::ops::AddAssign for WaitTotals {
    fn add_assign(&mut self, more: Self) {
        self.switches += more.switches;
        self.on_cpu_ns += more.on_cpu_ns;
        self.waits += more.waits;
        self.wait_ns += more.wait_ns;
        self.slow += more.slow;
    }
}

/// What want of memory did to one cgroup since its slot was allotted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryTotals {
    /// Stalls that have ended, by [`StallCause`].
    pub stalls: [StallTotals; StallCause::COUNT],
    pub oom_kills: u64,
}

/// Stalls of one cause. Tasks that stall at once are counted each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallTotals {
    pub count: u64,
    pub ns: u64,
}

impl MemoryTotals {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut new = *self;
        for (new, earlier) in new.stalls.iter_mut().zip(&earlier.stalls) {
            new.count -= earlier.count;
            new.ns -= earlier.ns;
        }
        new.oom_kills -= earlier.oom_kills;
        new
    }

    /// Time stalled for whatever cause.
    pub fn stalled_ns(&self) -> u64 {
        self.stalls.iter().map(|stall| stall.ns).sum()
    }
}

impl std::ops::AddAssign for MemoryTotals {
    fn add_assign(&mut self, more: Self) {
        for (sum, more) in self.stalls.iter_mut().zip(more.stalls) {
            sum.count += more.count;
            sum.ns += more.ns;
        }
        self.oom_kills += more.oom_kills;
    }
}

/// Totals of one LS group since the probes were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTotals {
    pub begun: u64,
    pub served: u64,
    pub latency_ns: u64,
    pub slow: u64,
    pub unanswered: u64,
    pub unanswered_slow: u64,
}

impl RequestTotals {
    /// Whether any may be in flight. Beginnings are read after ends, so none is overlooked.
    pub const fn any_in_flight(&self) -> bool {
        self.begun != self.served + self.unanswered
    }
}

/// What runs now and ran lately, by the CPUs' own memory. Costs a few loads per CPU, however many cgroups there are.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Slots in the CPUs' last segments, each CPU's current one included; repeated and in no order.
    recent: Vec<u32>,
    /// Of the current segments: slot and time that no switch has accounted for yet.
    unfinished: Vec<(u32, u64)>,
}

impl Running {
    /// Slots that ran lately. A cgroup that runs much is here for certain, one that runs rarely may be missing.
    pub fn recent(&self) -> &[u32] {
        &self.recent
    }

    /// Time on the CPU that `on_cpu_ns` does not hold yet, because no switch has ended it.
    pub fn unfinished_ns(&self, slot: u32) -> u64 {
        self.unfinished.iter().filter(|(running, _)| *running == slot).map(|(_, ns)| ns).sum()
    }
}

/// The mapped counters.
#[derive(Debug)]
pub struct Counters {
    pub(super) sizes: Sizes,
    pub(super) cpus: MappedArray,
    pub(super) waits: MappedArray,
    pub(super) memory: MappedArray,
    pub(super) blame: MappedArray,
    pub(super) requests: MappedArray,
    pub(super) in_flight: MappedArray,
    pub(super) objectives: MappedArray,
    pub(super) sentries: MappedArray,
    pub(super) drops: MappedArray,
    pub(super) pending: MappedArray,
}

impl Counters {
    /// Totals of one slot.
    pub fn wait(&self, slot: u32) -> WaitTotals {
        let mut sum = WaitTotals::default();
        for words in self.per_cpu(&self.waits, self.sizes.slots, slot) {
            // A slot that never ran on this CPU needs no further look: this is most of a large host.
            let switches = words[offset_of!(Wait, switches) / 8].load(Relaxed);
            if switches == 0 {
                continue;
            }
            sum.switches += switches;
            sum.on_cpu_ns += words[offset_of!(Wait, on_cpu_ns) / 8].load(Relaxed);
            // The part before the whole: it is counted after it, and must not come out larger.
            sum.slow += words[offset_of!(Wait, slow) / 8].load(Acquire);
            sum.waits += words[offset_of!(Wait, waits) / 8].load(Relaxed);
            sum.wait_ns += words[offset_of!(Wait, wait_ns) / 8].load(Relaxed);
        }
        sum
    }

    /// One slot's histogram of waits.
    pub fn wait_histogram(&self, slot: u32) -> Histogram {
        let mut to = [0; BUCKETS];
        for words in self.per_cpu(&self.waits, self.sizes.slots, slot) {
            add_counts(&words[offset_of!(Wait, histogram) / 8..], &mut to);
        }
        to
    }

    /// What want of memory did to one slot.
    pub fn memory(&self, slot: u32) -> MemoryTotals {
        let mut sum = MemoryTotals::default();
        for words in self.per_cpu(&self.memory, self.sizes.slots, slot) {
            sum.oom_kills += words[offset_of!(Memory, oom_kills) / 8].load(Relaxed);
            for (cause, stall) in sum.stalls.iter_mut().enumerate() {
                let at = (offset_of!(Memory, stalls) + cause * size_of::<Stall>()) / 8;
                stall.count += words[at + offset_of!(Stall, count) / 8].load(Relaxed);
                stall.ns += words[at + offset_of!(Stall, ns) / 8].load(Relaxed);
            }
        }
        sum
    }

    /// Totals of one LS group.
    pub fn requests(&self, victim: u32) -> RequestTotals {
        let mut sum = RequestTotals::default();
        for words in self.per_cpu(&self.requests, self.sizes.victims, victim) {
            let word = |offset: usize| &words[offset / 8];
            // Parts before the whole, as for waits.
            sum.slow += word(offset_of!(Requests, slow)).load(Acquire);
            sum.served += word(offset_of!(Requests, served)).load(Acquire);
            sum.unanswered_slow += word(offset_of!(Requests, unanswered_slow)).load(Acquire);
            sum.unanswered += word(offset_of!(Requests, unanswered)).load(Acquire);
            sum.latency_ns += word(offset_of!(Requests, latency_ns)).load(Relaxed);
            sum.begun += word(offset_of!(Requests, begun)).load(Relaxed);
        }
        sum
    }

    /// One LS group's requests in flight, by the time of their beginning.
    pub fn in_flight(&self, victim: u32) -> InFlight {
        let mut to = [0; IN_FLIGHT_BUCKETS];
        for words in self.per_cpu(&self.in_flight, self.sizes.victims, victim) {
            add_counts(words, &mut to);
        }
        to
    }

    /// One LS group's histogram of request latencies.
    pub fn request_histogram(&self, victim: u32) -> Histogram {
        let mut to = [0; BUCKETS];
        for words in self.per_cpu(&self.requests, self.sizes.victims, victim) {
            add_counts(&words[offset_of!(Requests, histogram) / 8..], &mut to);
        }
        to
    }

    /// Time that `victim` waited while `culprit` ran, in ns.
    pub fn blame_ns(&self, victim: u32, culprit: u32) -> u64 {
        let row = self.sizes.victims * self.sizes.culprits;
        self.per_cpu(&self.blame, row, victim * self.sizes.culprits + culprit)
            .map(|words| words[0].load(Relaxed))
            .sum()
    }

    /// All culprit columns.
    pub const fn culprits(&self) -> std::ops::Range<u32> {
        0..self.sizes.culprits
    }

    /// Events that the probes could not count, by cause.
    pub fn drops(&self, cause: Drop) -> u64 {
        self.per_cpu(&self.drops, Drop::COUNT, cause as u32).map(|words| words[0].load(Relaxed)).sum()
    }

    /// Times that tasks of a slot were put on a CPU. One load per CPU: tells cheaply whether there is anything new.
    pub fn switches(&self, slot: u32) -> u64 {
        let per_cpu = self.per_cpu(&self.waits, self.sizes.slots, slot);
        per_cpu.map(|words| words[offset_of!(Wait, switches) / 8].load(Relaxed)).sum()
    }

    /// What runs now. Time is the youngest segment's start: the caller itself was just switched to, so that is right
    /// within the caller's own run time and needs no conversion between clocks.
    pub fn running(&self, into: &mut Running) {
        into.recent.clear();
        into.unfinished.clear();
        for cpu in 0..self.sizes.cpus as usize {
            let words = self.cpus.element(cpu);
            let head = words[offset_of!(Cpu, head) / 8].load(Relaxed) % SEGMENTS as u64;
            for segment in 0..SEGMENTS {
                let at = (offset_of!(Cpu, segments) + segment * size_of::<Segment>()) / 8;
                let slot = Place(words[at + offset_of!(Segment, place) / 8].load(Relaxed)).slot();
                into.recent.push(slot);
                if segment as u64 == head {
                    into.unfinished.push((slot, words[at + offset_of!(Segment, since_ns) / 8].load(Relaxed)));
                }
            }
        }
        let now_ns = into.unfinished.iter().map(|(_, since_ns)| *since_ns).max().unwrap_or_default();
        into.unfinished.retain_mut(|(slot, time_ns)| {
            *time_ns = now_ns - *time_ns;
            *slot >= FIRST_SLOT
        });
    }

    /// Sets what counts as slow for a victim.
    pub fn set_objective(&self, victim: u32, objective: Objective) {
        let words = self.objectives.element(victim as usize);
        words[offset_of!(Objective, wait_ns) / 8].store(objective.wait_ns, Relaxed);
        words[offset_of!(Objective, latency_ns) / 8].store(objective.latency_ns, Relaxed);
        words[offset_of!(Objective, sampled) / 8].store(objective.sampled, Relaxed);
        words[offset_of!(Objective, counts_from_ns) / 8].store(objective.counts_from_ns, Relaxed);
    }

    /// Says that no sparse request is in flight: those whose end nobody saw would be waited for for ever.
    pub fn nothing_pending(&self) {
        self.pending.clear(0);
    }

    /// Sets how thick slow ones of a victim may come before the probes tell at once.
    pub fn set_pace(&self, victim: u32, signal: Signal, pace: Pace) {
        let words = self.sentries.element(victim as usize);
        let at = match signal {
            Signal::RunQueueWait => offset_of!(Sentry, wait),
            Signal::RequestLatency => offset_of!(Sentry, latency),
            // Told by ticks only.
            Signal::MemoryStall => return,
        } / 8;
        // The bound first: an interval alone would be exceeded by the first slow one.
        words[at + offset_of!(layout::Pace, burst_ns) / 8].store(nanoseconds(pace.burst), Relaxed);
        words[at + offset_of!(layout::Pace, interval_ns) / 8].store(nanoseconds(pace.interval), Release);
    }

    /// Forgets what a victim row's former owner counted.
    pub fn clear_victim(&self, victim: u32) {
        self.clear_requests(victim);
        for cpu in 0..self.sizes.cpus {
            let row = cpu * self.sizes.victims + victim;
            for culprit in 0..self.sizes.culprits {
                self.blame.clear((row * self.sizes.culprits + culprit) as usize);
            }
        }
        self.sentries.clear(victim as usize);
    }

    /// Forgets the requests of a victim row.
    pub fn clear_requests(&self, victim: u32) {
        for cpu in 0..self.sizes.cpus {
            let row = cpu * self.sizes.victims + victim;
            self.requests.clear(row as usize);
            self.in_flight.clear(row as usize);
        }
    }

    /// Forgets what a culprit column's former owner was charged with.
    pub fn clear_culprit(&self, culprit: u32) {
        for row in 0..self.sizes.cpus * self.sizes.victims {
            self.blame.clear((row * self.sizes.culprits + culprit) as usize);
        }
    }

    /// Victim rows that groups may have.
    pub const fn victims(&self) -> std::ops::Range<u32> {
        FIRST_VICTIM..self.sizes.victims
    }

    /// Forgets what a slot's former owner counted.
    pub fn clear_slot(&self, slot: u32) {
        for cpu in 0..self.sizes.cpus {
            self.waits.clear((cpu * self.sizes.slots + slot) as usize);
            self.memory.clear((cpu * self.sizes.slots + slot) as usize);
        }
    }

    fn per_cpu<'a>(
        &'a self,
        array: &'a MappedArray,
        stride: u32,
        element: u32,
    ) -> impl Iterator<Item = &'a [AtomicU64]> {
        (0..self.sizes.cpus).map(move |cpu| array.element((cpu * stride + element) as usize))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// These are 32-bit counts, two to a word, the lower index in the lower half (little endian, as on all hosts that
/// the agent is built for). Each count wraps at 2^32, and so does their sum over CPUs: differences stay right.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn add_counts<const N: usize>(words: &[AtomicU64], to: &mut [u32; N]) {
    for (counts, word) in to.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        let both = word.load(Relaxed);
        counts[0] = counts[0].wrapping_add(both as u32);
        counts[1] = counts[1].wrapping_add((both >> 32) as u32);
    }
}

const _: () = assert!(
    BUCKETS.is_multiple_of(2) && IN_FLIGHT_BUCKETS.is_multiple_of(2) && cfg!(target_endian = "little")
);

//! Records shared with the agent, byte for byte.
//!
//! All of them live in plain arrays that the agent maps into its memory, one element per CPU and slot (or victim), so
//! that a reader needs no system call and each element has one writing CPU. Every field is eight or four bytes wide and
//! naturally aligned, so a reader sees each of them whole.

use crate::histogram::Histogram;

/// Tasks of cgroups that no policy names, kernel threads included.
pub const SLOT_OTHER: u32 = 0;
/// The idle task: nothing ran.
pub const SLOT_IDLE: u32 = 1;
/// The first slot that the agent may give to a cgroup.
pub const FIRST_SLOT: u32 = 2;

/// No blame is kept for waits of this cgroup.
pub const NO_VICTIM: u32 = 0;
/// The first victim row that the agent may give to an LS group.
pub const FIRST_VICTIM: u32 = 1;

/// Culprit: tasks that belong to no group of the policy.
pub const CULPRIT_OTHER: u32 = 0;
/// Culprit: nobody; the CPU was idle while the task was already runnable (wake-up and idle-exit latency).
pub const CULPRIT_IDLE: u32 = 1;
/// Culprit: unknown; the wait is longer than the segments that the CPU remembers.
pub const CULPRIT_UNATTRIBUTED: u32 = 2;
/// The first culprit column that the agent may give to a group.
pub const FIRST_CULPRIT: u32 = 3;

/// Segments that each CPU remembers: how far back blame can look. Sixteen: where BE and a busy LS group take turns of 3 ms
/// and 1 ms, that is 30 ms.
pub const SEGMENTS: usize = 16;

/// Where a cgroup's counters are: slot, victim row and culprit column in one word, so that it is read and written whole.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place(pub u64);

impl Place {
    /// The place of every cgroup that no policy names.
    pub const OTHER: Self = Self::new(SLOT_OTHER, NO_VICTIM, CULPRIT_OTHER);
    /// The place of the idle task.
    pub const IDLE: Self = Self::new(SLOT_IDLE, NO_VICTIM, CULPRIT_IDLE);

    /// `victim` and `culprit` must fit 16 bits.
    #[inline(always)]
    pub const fn new(slot: u32, victim: u32, culprit: u32) -> Self {
        Self(slot as u64 | (victim as u64 & 0xffff) << 32 | (culprit as u64 & 0xffff) << 48)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn victim(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    #[inline(always)]
    pub const fn culprit(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

/// A stretch of time in which one CPU ran tasks of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// When it began, in the clock of the wait source (the run queue's clock, or ktime in the fallback).
    pub since_ns: u64,
    /// Whose tasks ran.
    pub place: Place,
}

/// What one CPU remembers of its past. Padded to whole cache lines: no two CPUs write the same one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Segments begun so far; the current one is `segments[head % SEGMENTS]`.
    pub head: u64,
    pub reserved: [u64; 7],
    pub segments: [Segment; SEGMENTS],
}

impl Cpu {
    /// The segment that goes on.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "of the remainder, nothing is lost")]
    pub const fn current(&self) -> &Segment {
        &self.segments[self.head as usize % SEGMENTS]
    }
}

/// Run-queue waits and CPU time of one cgroup on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Times that a task of the cgroup was put on the CPU.
    pub switches: u64,
    /// Time on the CPU, up to the last switch away.
    pub on_cpu_ns: u64,
    /// Waits measured. Fewer than `switches` where the kernel did not know when the wait began.
    pub waits: u64,
    /// Time waited.
    pub wait_ns: u64,
    /// Waits longer than the group's objective (see [`Objective`]).
    pub slow: u64,
    pub histogram: Histogram,
}

/// Requests served by one LS group, counted on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    /// Requests begun: first byte seen. Those neither answered nor given up are in flight, see [`InFlight`].
    pub begun: u64,
    /// Requests answered: first response byte seen.
    pub served: u64,
    /// Time from first request byte in to first response byte out, summed.
    pub latency_ns: u64,
    /// Requests answered slower than the group's objective.
    pub slow: u64,
    /// Requests whose connection ended before an answer.
    pub unanswered: u64,
    /// Those of them that were older than the group's objective by then.
    pub unanswered_slow: u64,
    pub histogram: Histogram,
}

/// Time in which requests that begin share a bucket of [`InFlight`]: 2^26 ns, 67 ms.
pub const IN_FLIGHT_SHIFT: u32 = 26;
/// Buckets of [`InFlight`]: together 8.6 s. A power of two.
pub const IN_FLIGHT_BUCKETS: usize = 128;

/// Requests of one LS group in flight, by the time of their beginning, counted on one CPU. A request is added and taken
/// away on whatever CPU sees its packets: only sums over CPUs mean anything, and they wrap. Buckets are used in turn, so
/// requests older than all of them share one with younger ones; the agent tells them apart by what was left in it.
pub type InFlight = [u32; IN_FLIGHT_BUCKETS];

/// The bucket of a request that began at `since_ns`. Always less than [`IN_FLIGHT_BUCKETS`].
#[inline(always)]
pub const fn in_flight_bucket(since_ns: u64) -> usize {
    (since_ns >> IN_FLIGHT_SHIFT) as usize % IN_FLIGHT_BUCKETS
}

/// Connections whose first request came in before they had a socket, remembered at once.
pub const EARLY_ENTRIES: u32 = 1024;

/// Tasks that may stall for memory at once.
pub const STALLING_ENTRIES: u32 = 4096;

/// Of the ring of onsets.
pub const ONSETS_BYTES: u32 = 4096;

/// Why a task has to wait until memory has been made free.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StallCause {
    /// The node is short of free pages.
    DirectReclaim = 0,
    /// A limit of the task's memory cgroup, or of one above it, is reached.
    MemcgReclaim = 1,
    /// No free pages that lie together.
    Compaction = 2,
}

impl StallCause {
    pub const COUNT: usize = 3;
    pub const ALL: [Self; Self::COUNT] = [Self::DirectReclaim, Self::MemcgReclaim, Self::Compaction];
}

/// Stalls of one cause.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// Stalls that have ended.
    pub count: u64,
    /// Their time, summed over tasks.
    pub ns: u64,
}

/// What want of memory did to one cgroup, counted on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// By [`StallCause`].
    pub stalls: [Stall; StallCause::COUNT],
    /// Tasks that the kernel chose to kill.
    pub oom_kills: u64,
    /// Fills the cache line.
    pub reserved: u64,
}

/// What counts as slow for one victim, `u64::MAX`: nothing does; and how many of its requests are looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objective {
    pub wait_ns: u64,
    pub latency_ns: u64,
    /// Requests count that begin in a slice of time whose [`slice_hash`] has none of these bits. 0: all do.
    pub sampled: u64,
    /// Requests that began before this, in ktime, do not count: they may have ended while nobody looked.
    pub counts_from_ns: u64,
}

impl Objective {
    pub const NONE: Self = Self { wait_ns: u64::MAX, latency_ns: u64::MAX, sampled: 0, counts_from_ns: 0 };
}

/// Which slices of time are sampled: a slice is a jiffy, and every bit of this is set in every second one, in no order that
/// anything else on the node could keep in step with. Fibonacci hashing (D. E. Knuth, TAOCP 3, 6.4).
pub const fn slice_hash(jiffies: u64) -> u64 {
    jiffies.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

/// How thick slow ones may come, for one signal of one victim: the generic cell rate algorithm (ITU-T I.371), which needs
/// one number per stream and no clock tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Slow ones that come this far apart are no news. 0: nobody wants to know.
    pub interval_ns: u64,
    /// How far they may run ahead of that.
    pub burst_ns: u64,
    /// When the next one would be due, in ktime. The probes' own.
    pub due_ns: u64,
}

impl Pace {
    /// Whether a slow one at `now_ns` is one too many.
    #[inline(always)]
    pub fn is_exceeded(&mut self, now_ns: u64) -> bool {
        if self.interval_ns == 0 {
            return false;
        }
        let due_ns = self.due_ns.max(now_ns) + self.interval_ns;
        let is_exceeded = due_ns > now_ns + self.burst_ns;
        // Starts over when it has been told.
        self.due_ns = if is_exceeded { now_ns } else { due_ns };
        is_exceeded
    }
}

/// Watches one victim for the onset of trouble. One cache line, touched by slow ones only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sentry {
    pub wait: Pace,
    pub latency: Pace,
    /// Nothing is told before, in ktime.
    pub quiet_until_ns: u64,
    pub reserved: u64,
}

/// The least time between two onsets of one victim: the agent is woken a hundred times per second at most.
pub const QUIET_NS: u64 = 10_000_000;

/// What a probe tells at once: slow ones came too thick.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onset {
    /// ktime.
    pub at_ns: u64,
    pub victim: u32,
    /// [`Onset::WAIT`] or [`Onset::LATENCY`].
    pub signal: u32,
}

impl Onset {
    pub const WAIT: u32 = 0;
    pub const LATENCY: u32 = 1;
}

/// Things that a probe could not count, by cause. The agent exports each of them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// The run queue's clock could not be reached from either task.
    NoClock = 0,
    /// A wait began after it ended: clocks disagree.
    NegativeWait = 1,
    /// The fallback's table of runnable tasks is full; a wait will be missing.
    RunnableTableFull = 2,
    /// No memory for a connection's state; its requests are not measured.
    NoSocketState = 3,
    /// A packet whose headers could not be read.
    Unparsable = 4,
    /// Traffic of a cgroup below one that has a probe attached, which has no place (yet).
    UnknownGroup = 5,
    /// The agent did not take earlier onsets from the ring in time; it finds out at its next tick.
    OnsetRingFull = 6,
    /// Too many tasks stall at once; a stall will be missing.
    StallTableFull = 7,
}

impl Drop {
    pub const COUNT: u32 = 8;
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NoClock,
        Self::NegativeWait,
        Self::RunnableTableFull,
        Self::NoSocketState,
        Self::Unparsable,
        Self::UnknownGroup,
        Self::OnsetRingFull,
        Self::StallTableFull,
    ];
}

const _: () = {
    assert!(size_of::<Segment>() == 16);
    assert!(size_of::<Cpu>() == 320);
    assert!(size_of::<Wait>() == 416);
    assert!(size_of::<Requests>() == 424);
    assert!(size_of::<InFlight>() == 512);
    assert!(size_of::<Memory>() == 64);
    assert!(size_of::<Objective>() == 32);
    assert!(size_of::<Sentry>() == 64);
    assert!(size_of::<Onset>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_gives_back_what_was_put_in() {
        let place = Place::new(70_000, 65_535, 12);
        assert_eq!((place.slot(), place.victim(), place.culprit()), (70_000, 65_535, 12));
        assert_eq!(Place::OTHER, Place::default(), "an empty table entry means: nobody's");
    }

    #[test]
    fn slow_ones_are_news_when_they_come_thicker_than_the_pace() {
        let pace = Pace { interval_ns: 100, burst_ns: 450, due_ns: 0 };
        let exceeded = |times: &[u64]| {
            let mut pace = pace;
            times.iter().position(|&at| pace.is_exceeded(at))
        };
        assert_eq!(exceeded(&[1000, 1001, 1002, 1003, 1004]), Some(4), "the fifth at once");
        assert_eq!(
            exceeded(&[1000, 1050, 1100, 1150, 1200, 1250, 1300, 1350, 1400]),
            Some(8),
            "twice as thick"
        );
        let at_pace: Vec<u64> = (10..1000).map(|n| n * 100).collect();
        assert_eq!(exceeded(&at_pace), None);
        assert!(!Pace::default().is_exceeded(5), "nobody wants to know");
    }
}

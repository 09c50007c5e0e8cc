//! A directory with a slot, and what was read of it last.

use std::time::Duration;

use enforcer_ebpf::histogram::{BUCKETS, Histogram};

use super::group::Group;
use crate::{
    cgroup::tree::Directory,
    kernel::{
        counters::{Counters, MemoryTotals, Running, WaitTotals},
        probes::RequestLinks,
    },
    signal::histogram::Counts,
};

/// A directory that ran within this time counts as running and is looked at in every tick.
const RUNNING: Duration = Duration::from_secs(5);

/// A directory with a slot.
#[derive(Debug)]
pub struct Counted {
    pub directory: Directory,
    slot: u32,
    totals: WaitTotals,
    /// The totals when the histogram was read last.
    reported: WaitTotals,
    histogram: LastHistogram,
    memory: MemoryTotals,
    memory_reported: MemoryTotals,
    unfinished_ns: u64,
    pub ran_at: Option<Duration>,
    /// CPUs used, averaged.
    pub cores: f64,
    pub requests: Option<RequestLinks>,
}

/// What a histogram of the probes held at the last report; room is taken when it first held anything.
#[derive(Debug, Default)]
pub struct LastHistogram(Option<Box<Histogram>>);

impl LastHistogram {
    /// Adds what came since then to `counts`.
    pub fn add_new_to(&mut self, counts: &mut Counts, now: &Histogram) {
        let last = self.0.get_or_insert_with(|| Box::new([0; BUCKETS]));
        counts.add_difference(now, last);
        last.copy_from_slice(now);
    }
}

impl Counted {
    /// One that was just found: whatever its counters hold was counted since.
    pub fn new(directory: Directory, slot: u32, requests: Option<RequestLinks>) -> Self {
        Self {
            directory,
            slot,
            totals: WaitTotals::default(),
            reported: WaitTotals::default(),
            histogram: LastHistogram::default(),
            memory: MemoryTotals::default(),
            memory_reported: MemoryTotals::default(),
            unfinished_ns: 0,
            ran_at: None,
            cores: 0.0,
            requests,
        }
    }

    /// Whether it ran lately.
    pub fn runs(&self, now: Duration) -> bool {
        self.ran_at.is_some_and(|at| now < at + RUNNING)
    }

    /// What was counted since the last reading.
    pub fn read(&mut self, counters: &Counters, running: &Running, now: Duration) -> WaitTotals {
        let unfinished_ns = running.unfinished_ns(self.slot);
        if counters.switches(self.slot) == self.totals.switches && unfinished_ns == self.unfinished_ns {
            return WaitTotals::default();
        }
        let totals = counters.wait(self.slot);
        let mut new = totals.since(&self.totals);
        // A task that no switch interrupts is on the CPU all the same. Counted once: what was added early is taken off
        // when the switch comes.
        new.on_cpu_ns = (new.on_cpu_ns + unfinished_ns).saturating_sub(self.unfinished_ns);
        (self.totals, self.unfinished_ns) = (totals, unfinished_ns);
        if new.on_cpu_ns > 0 {
            self.ran_at = Some(now);
        }
        new
    }

    /// What want of memory did to it since the last reading.
    pub fn read_memory(&mut self, counters: &Counters) -> MemoryTotals {
        let totals = counters.memory(self.slot);
        totals.since(&std::mem::replace(&mut self.memory, totals))
    }

    /// Hands over everything since the last report, the histogram included.
    pub fn report(&mut self, counters: &Counters, group: &mut Group) {
        if self.totals == self.reported {
            return;
        }
        group.waits += self.totals.since(&self.reported);
        self.reported = self.totals;
        self.histogram.add_new_to(&mut group.wait_counts, &counters.wait_histogram(self.slot));
        let memory = counters.memory(self.slot);
        group.memory += memory.since(&std::mem::replace(&mut self.memory_reported, memory));
    }
}

//! What is told twice: in total since the start, and of a recent window.

use std::time::Duration;

use crate::signal::{histogram::Counts, tally::Tally};

/// Durations of one kind: all since the start, and the recent ones.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    pub counts: Counts,
    pub sum: Duration,
    /// Slower than the objective, of all.
    pub tally: Tally,
    recent: [Recent; 2],
}

#[derive(Clone, Debug, Default)]
struct Recent {
    counts: Counts,
    tally: Tally,
}

impl Durations {
    /// Adds what came in lately.
    pub fn add(&mut self, counts: &Counts, sum: Duration, tally: Tally) {
        self.counts.add(counts);
        self.sum += sum;
        self.tally += tally;
        self.recent[0].counts.add(counts);
        self.recent[0].tally += tally;
    }

    /// Adds one.
    pub fn record(&mut self, duration: Duration) {
        let mut counts = Counts::default();
        counts.record(duration);
        self.add(&counts, duration, Tally { total: 1, slow: 0 });
    }

    /// Counts of the recent window.
    pub fn recent_counts(&self) -> Counts {
        let mut counts = self.recent[0].counts.clone();
        counts.add(&self.recent[1].counts);
        counts
    }

    /// Slow ones of the recent window.
    pub fn recent_tally(&self) -> Tally {
        let mut tally = self.recent[0].tally;
        tally += self.recent[1].tally;
        tally
    }

    pub(super) fn turn(&mut self) {
        self.recent.swap(0, 1);
        let Recent { counts, tally } = &mut self.recent[0];
        counts.clear();
        *tally = Tally::default();
    }
}

/// CPU time or blame: all since the start, and the recent one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    total_ns: u64,
    recent_ns: [u64; 2],
}

impl Time {
    pub const fn add_ns(&mut self, ns: u64) {
        self.total_ns += ns;
        self.recent_ns[0] += ns;
    }

    pub fn add(&mut self, time: Duration) {
        self.add_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub const fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns)
    }

    pub const fn recent(&self) -> Duration {
        Duration::from_nanos(self.recent_ns[0] + self.recent_ns[1])
    }

    pub(super) const fn turn(&mut self) {
        self.recent_ns = [0, self.recent_ns[0]];
    }
}

//! What is used over time: means for each pod, percentiles for the node.

use std::{collections::VecDeque, time::Duration};

use crate::units::{Amounts, whole};

/// Means reach back in steps of this.
const STEP: Duration = Duration::from_secs(10);
/// Percentiles need samples over this part of their window at least (koordlet reports none with fewer).
const COVERED: f64 = 0.5;

/// Mean use over a window, from totals that only grow: a kilobyte for five minutes.
#[derive(Clone, Debug, Default)]
pub struct Mean {
    points: VecDeque<Point>,
    newest: Option<Point>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    at: Duration,
    cpu: Duration,
    /// Memory times time, in byte seconds.
    memory: f64,
}

impl Mean {
    /// Takes in that `cpu` time was used since the last call, and that so much memory was in use meanwhile.
    pub fn add(&mut self, now: Duration, cpu: Duration, memory_bytes: u64, window: Duration) {
        let Some(last) = self.newest else {
            // What came before nobody knows how long ago.
            let first = Point { at: now, ..Point::default() };
            self.newest = Some(first);
            self.points.push_back(first);
            return;
        };
        let elapsed = now.saturating_sub(last.at);
        let point = Point {
            at: now,
            cpu: last.cpu + cpu,
            memory: last.memory + memory_bytes as f64 * elapsed.as_secs_f64(),
        };
        self.newest = Some(point);
        if self.points.back().is_none_or(|back| now >= back.at + STEP) {
            self.points.push_back(point);
        }
        // The oldest one is kept that covers the window.
        while self.points.get(1).is_some_and(|second| second.at + window <= now) {
            self.points.pop_front();
        }
    }

    /// Over the window that [`Mean::add`] was given, or since the beginning if that is shorter. `None`: nothing known yet.
    pub fn value(&self) -> Option<Amounts> {
        let (first, last) = (self.points.front()?, self.newest?);
        let seconds = last.at.saturating_sub(first.at).as_secs_f64();
        (seconds > 0.0).then(|| Amounts {
            cpu_milli: whole(last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds * 1e3),
            memory_bytes: whole((last.memory - first.memory) / seconds),
        })
    }
}

/// Samples of every second, for percentiles over windows.
#[derive(Clone, Debug)]
pub struct Samples {
    keep: Duration,
    samples: VecDeque<(Duration, Amounts)>,
}

/// What was used, by rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    pub avg: Amounts,
    pub p50: Amounts,
    pub p90: Amounts,
    pub p95: Amounts,
    pub p99: Amounts,
}

impl Samples {
    /// Keeps samples for so long: 24 bytes for each second.
    pub const fn new(keep: Duration) -> Self {
        Self { keep, samples: VecDeque::new() }
    }

    pub fn add(&mut self, now: Duration, used: Amounts) {
        self.samples.push_back((now, used));
        while self.samples.front().is_some_and(|(at, _)| *at + self.keep < now) {
            self.samples.pop_front();
        }
    }

    /// The last one.
    pub fn last(&self) -> Option<Amounts> {
        self.samples.back().map(|(_, used)| *used)
    }

    /// Over the last `window`. `None`: less than half of it is covered.
    pub fn percentiles(&self, now: Duration, window: Duration) -> Option<Percentiles> {
        let from = now.saturating_sub(window);
        let within = || self.samples.iter().filter(move |(at, _)| *at >= from);
        let covered = now.saturating_sub(within().next()?.0);
        if covered < window.mul_f64(COVERED) {
            return None;
        }
        let mut cpu: Vec<i64> = within().map(|(_, used)| used.cpu_milli).collect();
        let mut memory: Vec<i64> = within().map(|(_, used)| used.memory_bytes).collect();
        cpu.sort_unstable();
        memory.sort_unstable();
        let at =
            |share: f64| Amounts { cpu_milli: ranked(&cpu, share), memory_bytes: ranked(&memory, share) };
        Some(Percentiles {
            avg: Amounts { cpu_milli: mean(&cpu), memory_bytes: mean(&memory) },
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
        })
    }
}

/// The smallest value that covers the share.
fn ranked(sorted: &[i64], share: f64) -> i64 {
    let rank = (sorted.len() as f64 * share).ceil();
    let place = usize::try_from(whole(rank)).unwrap_or_default().clamp(1, sorted.len());
    sorted[place - 1]
}

fn mean(values: &[i64]) -> i64 {
    whole(values.iter().map(|value| *value as f64).sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WINDOW: Duration = Duration::from_mins(5);

    #[test]
    fn a_mean_forgets_what_is_older_than_its_window() {
        let mut mean = Mean::default();
        assert_eq!(mean.value(), None);
        for second in 0..=600_u32 {
            let busy = second <= 200;
            let cpu = if busy { SECOND } else { SECOND / 10 };
            mean.add(SECOND * second, cpu, if busy { 4_000 } else { 1_000 }, WINDOW);
            if second == 100 {
                assert_eq!(mean.value(), Some(Amounts { cpu_milli: 1_000, memory_bytes: 4_000 }));
            }
        }
        assert_eq!(mean.value(), Some(Amounts { cpu_milli: 100, memory_bytes: 1_000 }));
        assert!(mean.points.len() <= 32, "{}", mean.points.len());
    }

    #[test]
    fn percentiles_are_ranks_of_samples() {
        let mut samples = Samples::new(2 * WINDOW);
        for second in 1..=1_000_i64 {
            let now = SECOND * u32::try_from(second).unwrap();
            samples.add(now, Amounts { cpu_milli: second % 100 + 1, memory_bytes: 7 });
        }
        let found = samples.percentiles(SECOND * 1_000, WINDOW).unwrap();
        assert_eq!((found.p50.cpu_milli, found.p90.cpu_milli, found.p99.cpu_milli), (50, 90, 99));
        assert_eq!((found.avg.cpu_milli, found.avg.memory_bytes), (50, 7));
        assert!(samples.samples.len() <= 601);
    }

    #[test]
    fn half_of_a_window_must_be_covered() {
        let mut samples = Samples::new(WINDOW);
        for second in 1..=151 {
            samples.add(SECOND * second, Amounts::default());
            let is_enough = samples.percentiles(SECOND * second, WINDOW).is_some();
            assert_eq!(is_enough, second >= 151, "{second}");
        }
    }
}

//! What a client measures: latencies as a whole and in windows of two lengths.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Length of the windows in [`Report::windows`].
const WINDOW: Duration = Duration::from_millis(500);
/// Length of the windows in [`Report::long_windows`].
pub const LONG_WINDOW: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub requests: u64,
    /// Requests that took longer than the objective that was given.
    pub slow: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub windows: Vec<Window>,
    /// Of ten seconds each. A measurement that is shorter is one window.
    pub long_windows: Vec<Window>,
}

/// Part of it. A request is in the window in which its answer came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Window {
    /// End, in seconds after the measurement began.
    pub at_seconds: f64,
    pub requests: u64,
    /// Requests that took longer than the objective that was given.
    pub slow: u64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// The measurement.
#[derive(Debug)]
pub struct Measured {
    begin: Instant,
    slo: Option<Duration>,
    all: Recorder,
    short: Windows,
    long: Windows,
}

impl Measured {
    /// Nothing before `begin` counts.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(begin: Instant, slo: Option<Duration>) -> Result<Self> {
        Ok(Self {
            begin,
            slo,
            all: Recorder::new()?,
            short: Windows::new(begin, WINDOW)?,
            long: Windows::new(begin, LONG_WINDOW)?,
        })
    }

    /// A request was answered.
    ///
    /// # Errors
    /// Where it took centuries.
    pub fn add(&mut self, now: Instant, latency: Duration) -> Result<()> {
        self.short.close_until(now);
        self.long.close_until(now);
        if now >= self.begin {
            let ns = u64::try_from(latency.as_nanos())?.max(1);
            let is_slow = self.slo.is_some_and(|slo| latency > slo);
            for recorder in [&mut self.all, &mut self.short.current, &mut self.long.current] {
                recorder.add(ns, is_slow);
            }
        }
        Ok(())
    }

    /// The measurement is over. `unanswered`: when the requests that are still unanswered should have been sent. Those that
    /// are slow already count with the time that they have taken so far: a server that stalls must not hide them.
    ///
    /// # Errors
    /// As for [`Measured::add`].
    pub fn report(mut self, end: Instant, unanswered: impl Iterator<Item = Instant>) -> Result<Report> {
        // In the last window, not in one that would begin now.
        let last = end.checked_sub(Duration::from_nanos(1)).unwrap_or(end);
        for intended in unanswered {
            let latency = end.saturating_duration_since(intended);
            if self.slo.is_some_and(|slo| latency > slo) {
                self.add(last, latency)?;
            }
        }
        self.short.close_until(end);
        self.long.close_until(end);
        if self.long.closed.is_empty() {
            self.long.close();
        }
        Ok(Report {
            requests: self.all.latencies.len(),
            slow: self.all.slow,
            p50_us: self.all.quantile_us(0.5),
            p90_us: self.all.quantile_us(0.9),
            p99_us: self.all.quantile_us(0.99),
            max_us: self.all.latencies.max() as f64 / 1e3,
            windows: self.short.closed,
            long_windows: self.long.closed,
        })
    }
}

#[derive(Debug)]
struct Recorder {
    /// Nanoseconds, three digits, up to a minute.
    latencies: Histogram<u64>,
    slow: u64,
}

impl Recorder {
    fn new() -> Result<Self> {
        Ok(Self { latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3)?, slow: 0 })
    }

    fn add(&mut self, ns: u64, is_slow: bool) {
        self.latencies.saturating_record(ns);
        self.slow += u64::from(is_slow);
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }
}

#[derive(Debug)]
struct Windows {
    begin: Instant,
    length: Duration,
    end: Instant,
    current: Recorder,
    closed: Vec<Window>,
}

impl Windows {
    fn new(begin: Instant, length: Duration) -> Result<Self> {
        Ok(Self { begin, length, end: begin + length, current: Recorder::new()?, closed: Vec::new() })
    }

    fn close_until(&mut self, now: Instant) {
        while now >= self.end {
            self.close();
        }
    }

    fn close(&mut self) {
        self.closed.push(Window {
            at_seconds: (self.end - self.begin).as_secs_f64(),
            requests: self.current.latencies.len(),
            slow: self.current.slow,
            p50_us: self.current.quantile_us(0.5),
            p99_us: self.current.quantile_us(0.99),
        });
        self.current.latencies.reset();
        self.current.slow = 0;
        self.end += self.length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn slow_requests_are_counted_as_a_whole_and_per_window() {
        let begin = Instant::now();
        let mut measured = Measured::new(begin, Some(ms(5))).unwrap();
        for (at, latency) in [(100, 4), (200, 6), (700, 7), (10_100, 8)] {
            measured.add(begin + ms(at), ms(latency)).unwrap();
        }
        let report = measured.report(begin + ms(20_000), std::iter::empty()).unwrap();
        assert_eq!((report.requests, report.slow), (4, 3));
        let slow = |windows: &[Window]| windows.iter().map(|window| window.slow).collect::<Vec<_>>();
        assert_eq!(slow(&report.windows)[..3], [1, 1, 0]);
        assert_eq!((report.windows.len(), slow(&report.long_windows)), (40, vec![2, 1]));
    }

    #[test]
    fn a_request_that_is_never_answered_is_slow_if_it_is_overdue() {
        let begin = Instant::now();
        let measured = Measured::new(begin, Some(ms(5))).unwrap();
        let unanswered = [ms(500), ms(998)].map(|at| begin + at);
        let report = measured.report(begin + ms(1_000), unanswered.into_iter()).unwrap();
        assert_eq!((report.requests, report.slow), (1, 1));
        assert_eq!(report.windows.iter().map(|window| window.slow).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(report.long_windows.len(), 1);
    }

    #[test]
    fn what_came_before_the_beginning_does_not_count() {
        let start = Instant::now();
        let begin = start + ms(1_000);
        let mut measured = Measured::new(begin, None).unwrap();
        measured.add(start + ms(999), ms(1)).unwrap();
        let report = measured.report(begin + ms(1_000), std::iter::empty()).unwrap();
        assert_eq!((report.requests, report.slow), (0, 0));
    }
}

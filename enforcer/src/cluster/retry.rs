//! How long to wait before the API server is asked again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(250);
/// An API server that comes back finds a thousand agents waiting, and pods must be known soon after.
const LONGEST: Duration = Duration::from_secs(3);
/// Without a failure for so long, the next one is the first: longer than a wait and an attempt that fails late.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Doubles from a quarter of a second to three seconds; each time up to half as much again, so that agents that lost the
/// same server do not all come at once.
#[derive(Clone, Debug)]
pub struct Retry {
    next: Duration,
    failed_at: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { next: FIRST, failed_at: None }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let failed_before = self.failed_at.replace(Instant::now());
        if failed_before.is_some_and(|at| at.elapsed() > WELL_AFTER) {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        Some(wait + wait.mul_f64(jitter() / 2.0))
    }
}

impl Backoff for Retry {
    /// Does nothing: a watcher gives a sign of life before each list, whether that comes to anything or not. Time tells.
    fn reset(&mut self) {}
}

/// Between 0 and 1; different on every node.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1_000_000) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew_after_a_success() {
        let mut retry = Retry::default();
        let waits: Vec<Duration> = retry.by_ref().take(8).collect();
        assert!(waits[0] >= FIRST && waits[0] < 2 * FIRST, "{waits:?}");
        assert!(waits[7] >= LONGEST && waits[7] <= LONGEST + LONGEST / 2, "{waits:?}");
        // A watcher that fails again and again.
        retry.reset();
        assert!(retry.next().is_some_and(|wait| wait >= LONGEST));
        retry.failed_at = Instant::now().checked_sub(WELL_AFTER * 2);
        assert!(retry.next().is_some_and(|wait| wait < 2 * FIRST));
    }
}

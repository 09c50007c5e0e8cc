//! Percentiles from the probes' log-linear histograms.

use std::time::Duration;

use enforcer_ebpf::histogram::{BUCKETS, Histogram, bucket_of, lower_bound_ns};

/// Durations counted per bucket. Takes 0.8 kB once there is something to count: most groups of a large node are idle.
#[derive(Clone, Debug, Default)]
pub struct Counts(Option<Box<[u64; BUCKETS]>>);

impl Counts {
    fn buckets(&self) -> &[u64; BUCKETS] {
        self.0.as_deref().unwrap_or(&[0; BUCKETS])
    }

    fn buckets_mut(&mut self) -> &mut [u64; BUCKETS] {
        self.0.get_or_insert_with(|| Box::new([0; BUCKETS]))
    }

    /// Adds what was counted between two readings of one histogram, whose counts wrap at 2^32. One that was interrupted may
    /// have been put back by some.
    pub fn add_difference(&mut self, new: &Histogram, old: &Histogram) {
        if new == old {
            return;
        }
        for ((sum, new), old) in self.buckets_mut().iter_mut().zip(new).zip(old) {
            *sum += u64::try_from(new.wrapping_sub(*old).cast_signed()).unwrap_or(0);
        }
    }

    /// Counts one.
    pub fn record(&mut self, duration: Duration) {
        self.buckets_mut()[bucket_of(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))] += 1;
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        let Some(other) = &other.0 else { return };
        for (sum, more) in self.buckets_mut().iter_mut().zip(&**other) {
            *sum += more;
        }
    }

    /// So many times as many of each.
    #[must_use]
    pub fn times(&self, factor: u64) -> Self {
        Self(self.0.as_ref().map(|buckets| Box::new(buckets.map(|count| count * factor))))
    }

    pub fn total(&self) -> u64 {
        self.buckets().iter().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.buckets().iter().all(|&count| count == 0)
    }

    /// Forgets everything, and keeps the room for more.
    pub fn clear(&mut self) {
        if let Some(buckets) = &mut self.0 {
            buckets.fill(0);
        }
    }

    /// How many durations were shorter than `1 << exponent` ns; exact for exponents 10 to 33.
    pub fn below_power_of_two(&self, exponent: u32) -> u64 {
        let limit = 1 << exponent;
        (0..BUCKETS)
            .take_while(|&bucket| lower_bound_ns(bucket + 1) <= limit)
            .map(|bucket| self.buckets()[bucket])
            .sum()
    }

    /// The duration that `quantile` (0 to 1) of all are no longer than. `None` when nothing was counted.
    ///
    /// Within a bucket nothing is known, so its geometric middle is the answer with the smallest error, 12 % at most.
    /// Where the neighbouring buckets are filled too, the distribution is smooth there and interpolation comes closer;
    /// the two are mixed by how full the neighbours are.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        // The rank that numpy and hdrhistogram call "higher": the smallest duration that covers the share asked for.
        let rank = (quantile * total as f64).ceil().max(1.0);
        let mut below = 0.0;
        for (bucket, &count) in self.buckets().iter().enumerate() {
            let count = count as f64;
            if below + count >= rank {
                let share = (rank - 0.5 - below) / count;
                return Some(Duration::from_nanos(self.place_in(bucket, share)));
            }
            below += count;
        }
        unreachable!("BUG: rank {rank} of {total}")
    }

    /// The duration at `share` (0 to 1) of a bucket.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive duration below 2^34 ns"
    )]
    fn place_in(&self, bucket: usize, share: f64) -> u64 {
        if bucket == 0 || bucket == BUCKETS - 1 {
            // Open-ended: its bound is all that is known.
            return lower_bound_ns(bucket.max(1));
        }
        let (low, high) = (lower_bound_ns(bucket) as f64, lower_bound_ns(bucket + 1) as f64);
        let middle = (low * high).sqrt();
        let interpolated = low + (high - low) * share;
        // On the side where the answer lies, as many durations in the neighbour as here: smooth. None: a lone peak.
        let neighbour = if interpolated < middle { bucket - 1 } else { bucket + 1 };
        let count = |bucket: usize| self.buckets()[bucket] as f64;
        let smooth = (count(neighbour) / count(bucket) * 2.0).min(1.0);
        (middle + (interpolated - middle) * smooth) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(durations_ns: &[u64]) -> Counts {
        let mut histogram = [0; BUCKETS];
        for &ns in durations_ns {
            histogram[bucket_of(ns)] += 1;
        }
        let mut counts = Counts::default();
        counts.add_difference(&histogram, &[0; BUCKETS]);
        counts
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is a small number")]
    fn assert_close(durations_ns: &mut [u64], quantile: f64) {
        durations_ns.sort_unstable();
        let rank = (quantile * durations_ns.len() as f64).ceil().max(1.0) as usize;
        let exact = durations_ns[rank - 1] as f64;
        let found = counts(durations_ns).quantile(quantile).unwrap().as_nanos() as f64;
        let error = (found - exact).abs() / exact;
        assert!(
            error <= 0.12,
            "p{}: {found} instead of {exact}, {:.1} % off",
            quantile * 100.0,
            error * 100.0
        );
    }

    proptest! {
        #[test]
        fn equal_durations_are_told_within_twelve_percent(ns in 1_100u64..8_000_000_000) {
            for quantile in [0.01, 0.5, 0.99] {
                assert_close(&mut [ns; 100], quantile);
            }
        }

        #[test]
        fn smooth_distributions_are_told_within_twelve_percent(
            median_us in 5.0f64..50_000.0, spread in 0.05f64..1.5, quantile in 0.05f64..0.995,
        ) {
            // A log-normal by its quantile function (logistic approximation), evenly sampled.
            let mut durations: Vec<u64> = (1..2000)
                .map(|n| f64::from(n) / 2000.0)
                .map(|p| median_us * 1e-6 * (spread * (p / (1.0 - p)).ln() / 1.702).exp())
                .map(|seconds| u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap())
                .filter(|ns| (1_100..8_000_000_000).contains(ns))
                .collect();
            prop_assume!(durations.len() > 500);
            assert_close(&mut durations, quantile);
        }
    }

    #[test]
    fn nothing_counted_has_no_percentile() {
        assert_eq!(Counts::default().quantile(0.99), None);
    }

    #[test]
    fn counts_that_wrapped_between_two_readings_are_still_right() {
        let (mut old, mut new) = ([0; BUCKETS], [0; BUCKETS]);
        (old[5], new[5]) = (u32::MAX - 2, 4);
        let mut counts = Counts::default();
        counts.add_difference(&new, &old);
        assert_eq!(counts.total(), 7);
    }

    #[test]
    fn cumulative_counts_at_powers_of_two_are_exact() {
        let counts = counts(&[500, 1_500, 2_047, 2_048, 5_000, 1 << 34]);
        assert_eq!([10, 11, 12, 33].map(|exponent| counts.below_power_of_two(exponent)), [1, 3, 4, 5]);
    }
}

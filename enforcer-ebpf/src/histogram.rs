//! Log-linear histograms of durations: four equal steps per octave.
//!
//! The widest step is 25 %, so the geometric middle of a bucket is within 12 % of every value in it.

/// Durations below `1 << FIRST_OCTAVE` ns (1.024 us) share bucket 0.
pub const FIRST_OCTAVE: u32 = 10;
/// Octaves that are told apart: up to 2^33 ns (8.6 s). Longer ones share the last bucket.
pub const OCTAVES: u32 = 23;
/// Buckets in all: one below, four per octave, one above.
pub const BUCKETS: usize = 2 + 4 * OCTAVES as usize;

/// Counts per bucket. A count wraps at 2^32 per CPU; readers take differences with `wrapping_sub`.
pub type Histogram = [u32; BUCKETS];

/// The bucket of a duration of `ns` nanoseconds. Always less than [`BUCKETS`].
#[inline(always)]
pub const fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = ns.ilog2();
    if octave >= FIRST_OCTAVE + OCTAVES {
        return BUCKETS - 1;
    }
    // The two bits below the leading one are the step within the octave.
    let step = (ns >> (octave - 2)) & 3;
    (1 + (octave - FIRST_OCTAVE) * 4) as usize + step as usize
}

/// The smallest duration of `bucket`, in ns. `BUCKETS` is accepted too, so that a bucket ends where the next one starts.
pub const fn lower_bound_ns(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let place = bucket as u64 - 1;
    let octave = FIRST_OCTAVE as u64 + place / 4;
    (4 + place % 4) << (octave - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_starts_where_the_one_before_ends() {
        for bucket in 1..BUCKETS {
            let start = lower_bound_ns(bucket);
            assert_eq!(bucket_of(start), bucket, "first value of bucket {bucket}");
            assert_eq!(bucket_of(start - 1), bucket - 1, "last value before bucket {bucket}");
        }
    }

    #[test]
    fn the_ends_of_the_range_have_a_bucket() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_middle_of_a_bucket_is_within_twelve_percent_of_all_its_values() {
        for bucket in 1..BUCKETS - 1 {
            let (low, high) = (lower_bound_ns(bucket) as f64, lower_bound_ns(bucket + 1) as f64);
            let middle = (low * high).sqrt();
            assert!((middle - low) / low <= 0.12, "bucket {bucket}");
            assert!((high - middle) / high <= 0.12, "bucket {bucket}");
        }
    }
}

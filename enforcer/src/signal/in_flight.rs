//! Requests that wait for an answer: how many, and for how long.
//!
//! The probes count them by the time of their beginning, in buckets that are used in turn and come round every 8.6 s. What
//! was left in a bucket when it came round is remembered here, so that a request keeps growing old for as long as it takes.

use std::time::Duration;

use enforcer_ebpf::layout::{self, IN_FLIGHT_BUCKETS, IN_FLIGHT_SHIFT};
use serde::{Deserialize, Serialize};

/// A request that has waited for so long belongs to a connection that vanished without a word, or to a protocol in which
/// nobody answers. It no longer counts as in flight.
pub const WRITTEN_OFF_AFTER: Duration = Duration::from_mins(10);

/// Periods after the present one that have a bucket already: requests go on beginning while the buckets are read.
const AHEAD: u64 = 8;
const BUCKETS: u64 = IN_FLIGHT_BUCKETS as u64;

/// Requests of a group in flight at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    pub requests: u64,
    /// Those that have waited for longer than the objective.
    pub overdue: u64,
    /// How long the oldest has waited at least: up to 67 ms less than it has. `None`: none waits.
    pub oldest: Option<Duration>,
}

/// One look at the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub in_flight: InFlight,
    /// No overdue request began later than this.
    pub last_overdue_ns: Option<u64>,
    /// Requests written off since the first look.
    pub written_off: u64,
}

/// The memory of one group's buckets.
#[derive(Clone, Debug)]
pub struct Ages {
    buckets: [Bucket; IN_FLIGHT_BUCKETS],
    written_off: u64,
    is_busy: bool,
}

/// One bucket: of the requests counted in it, some are written off, some are left from earlier rounds, the rest began in
/// its present period. An end says nothing of the beginning, so the youngest are taken to end first.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    period: u64,
    /// Counted at the last look.
    count: u32,
    written_off: u32,
    left: u32,
    /// When those that are left began; the earliest, where several rounds left some.
    left_period: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { buckets: [Bucket::default(); IN_FLIGHT_BUCKETS], written_off: 0, is_busy: false }
    }
}

impl Ages {
    /// Whether anything was counted at the last look, so that the next one must not be left out.
    pub const fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Stands for a look at empty buckets, unless [`Self::is_busy`].
    pub fn look_at_nothing(&self) -> Look {
        Look { written_off: self.written_off, ..Look::default() }
    }

    /// Looks at the buckets, which were read after `now_ns`, in the clock of the probes.
    pub fn look(&mut self, counts: &layout::InFlight, now_ns: u64, objective: Option<Duration>) -> Look {
        let newest = (now_ns >> IN_FLIGHT_SHIFT) + AHEAD;
        let age_of = |period: u64| Duration::from_nanos(now_ns.saturating_sub(end_of(period)));
        let mut look = Look::default();
        for (index, (bucket, &count)) in (0..).zip(self.buckets.iter_mut().zip(counts)) {
            // Read one CPU after the other: an end may be seen before its beginning.
            let count = u32::try_from(count.cast_signed()).unwrap_or(0);
            let period = newest.saturating_sub(newest.wrapping_sub(index) % BUCKETS);
            bucket.turn(period, count);
            if bucket.left > 0 && age_of(bucket.left_period) >= WRITTEN_OFF_AFTER {
                self.written_off += u64::from(bucket.left);
                bucket.written_off += std::mem::take(&mut bucket.left);
            }
            for (requests, period) in [(bucket.left, bucket.left_period), (bucket.young(), period)] {
                let age = age_of(period);
                if requests > 0 {
                    look.in_flight.requests += u64::from(requests);
                    look.in_flight.oldest = look.in_flight.oldest.max(Some(age));
                }
                if requests > 0 && objective.is_some_and(|objective| objective < age) {
                    look.in_flight.overdue += u64::from(requests);
                    look.last_overdue_ns = look.last_overdue_ns.max(Some(end_of(period)));
                }
            }
        }
        self.is_busy = self.buckets.iter().any(|bucket| bucket.count > 0);
        look.written_off = self.written_off;
        look
    }
}

impl Bucket {
    fn turn(&mut self, period: u64, count: u32) {
        if self.period != period {
            if self.left == 0 {
                self.left_period = self.period;
            }
            // After a late look, younger ones may have begun already: only what was seen before is certainly old.
            self.left = self.count.saturating_sub(self.written_off);
            self.period = period;
        }
        self.count = count;
        self.written_off = self.written_off.min(count);
        self.left = self.left.min(count - self.written_off);
    }

    const fn young(&self) -> u32 {
        self.count - self.written_off - self.left
    }
}

/// No request of a period began later than this.
const fn end_of(period: u64) -> u64 {
    (period + 1) << IN_FLIGHT_SHIFT
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::layout::in_flight_bucket;

    use super::*;

    const MS: u64 = 1_000_000;
    const START_NS: u64 = 3_600_000 * MS;
    const PERIOD_NS: u64 = 1 << IN_FLIGHT_SHIFT;
    const OBJECTIVE: Duration = Duration::from_millis(5);

    /// What the probes would count, and a look ten times per second.
    struct Group {
        counts: layout::InFlight,
        ages: Ages,
        now_ns: u64,
    }

    impl Group {
        fn new() -> Self {
            Self { counts: [0; IN_FLIGHT_BUCKETS], ages: Ages::default(), now_ns: START_NS }
        }

        fn begin(&mut self) -> u64 {
            self.counts[in_flight_bucket(self.now_ns)] += 1;
            self.now_ns
        }

        fn end(&mut self, since_ns: u64) {
            let bucket = &mut self.counts[in_flight_bucket(since_ns)];
            *bucket = bucket.wrapping_sub(1);
        }

        fn look(&mut self) -> Look {
            self.ages.look(&self.counts, self.now_ns, Some(OBJECTIVE))
        }

        /// Time passes while requests of 20 ms come and go.
        fn pass(&mut self, time: Duration) -> Look {
            let until_ns = self.now_ns + u64::try_from(time.as_nanos()).unwrap();
            while self.now_ns < until_ns {
                for _ in 0..5 {
                    let since_ns = self.begin();
                    self.now_ns += 20 * MS;
                    self.end(since_ns);
                }
                self.look();
            }
            self.look()
        }
    }

    fn is_within_a_period(oldest: Option<Duration>, age_ns: u64) -> bool {
        let (oldest, age) = (oldest.unwrap(), Duration::from_nanos(age_ns));
        oldest <= age && age <= oldest + Duration::from_nanos(PERIOD_NS)
    }

    #[test]
    fn a_request_is_in_flight_from_its_beginning_and_grows_old() {
        let mut group = Group::new();
        assert_eq!(group.look().in_flight, InFlight::default());
        let since_ns = group.begin();
        let fresh = group.look();
        assert_eq!((fresh.in_flight.requests, fresh.in_flight.overdue), (1, 0));
        for seconds in [1, 5, 8, 9, 20, 60, 500] {
            group.pass(Duration::from_nanos(since_ns + seconds * 1_000 * MS - group.now_ns));
            let look = group.look();
            assert_eq!((look.in_flight.requests, look.in_flight.overdue), (1, 1), "after {seconds} s");
            assert!(is_within_a_period(look.in_flight.oldest, group.now_ns - since_ns), "{look:?}");
        }
        group.end(since_ns);
        assert_eq!(group.look(), group.ages.look_at_nothing());
        assert!(!group.ages.is_busy());
    }

    #[test]
    fn looks_at_nothing_may_be_left_out() {
        let mut group = Group::new();
        let since_ns = group.begin();
        group.pass(Duration::from_secs(1));
        group.end(since_ns);
        group.look();
        for rounds in [1, 2, 70] {
            group.now_ns += PERIOD_NS * BUCKETS * rounds;
            let since_ns = group.begin();
            let look = group.look().in_flight;
            assert_eq!((look.requests, look.oldest), (1, Some(Duration::ZERO)));
            group.end(since_ns);
            group.look();
        }
    }

    #[test]
    fn overdue_is_said_within_a_period_of_the_objective_and_never_before() {
        for offset in (0..PERIOD_NS).step_by(9_999_999) {
            let mut group = Group::new();
            group.now_ns += offset;
            let since_ns = group.begin();
            group.now_ns = since_ns + u64::try_from(OBJECTIVE.as_nanos()).unwrap();
            assert_eq!(group.look().in_flight.overdue, 0, "offset {offset}");
            group.now_ns += PERIOD_NS + 1;
            assert_eq!(group.look().in_flight.overdue, 1, "offset {offset}");
        }
    }

    #[test]
    fn several_generations_wait_in_one_bucket() {
        let mut group = Group::new();
        let first_ns = group.begin();
        group.pass(Duration::from_nanos(PERIOD_NS * BUCKETS));
        group.now_ns = first_ns + PERIOD_NS * BUCKETS;
        let second_ns = group.begin();
        assert_eq!(in_flight_bucket(first_ns), in_flight_bucket(second_ns));
        let look = group.pass(Duration::from_secs(3));
        assert_eq!(look.in_flight.requests, 2);
        assert!(is_within_a_period(look.in_flight.oldest, group.now_ns - first_ns), "{look:?}");
        group.end(second_ns);
        let look = group.look();
        assert!(is_within_a_period(look.in_flight.oldest, group.now_ns - first_ns), "{look:?}");
        group.end(first_ns);
        assert_eq!(group.look().in_flight, InFlight::default());
    }

    #[test]
    fn what_never_ends_is_written_off_and_may_end_all_the_same() {
        let mut group = Group::new();
        let since_ns = group.begin();
        let look = group.pass(WRITTEN_OFF_AFTER.saturating_sub(Duration::from_secs(1)));
        assert_eq!((look.in_flight.requests, look.written_off), (1, 0));
        let look = group.pass(Duration::from_secs(2));
        assert_eq!((look.in_flight, look.written_off), (InFlight::default(), 1));
        assert!(group.ages.is_busy(), "its end may still come");
        let look = group.pass(Duration::from_mins(1));
        assert_eq!((look.in_flight, look.written_off), (InFlight::default(), 1), "once is enough");
        group.end(since_ns);
        group.look();
        let other_ns = group.begin();
        assert_eq!(group.look().in_flight.requests, 1, "the bucket counts as ever");
        group.end(other_ns);
        assert_eq!(group.look().in_flight.requests, 0);
    }

    #[test]
    fn a_late_look_makes_no_young_request_old() {
        let mut group = Group::new();
        group.look();
        // Nobody looked for so long that buckets came round several times.
        group.now_ns += PERIOD_NS * BUCKETS * 3 + 77;
        group.begin();
        let look = group.look();
        assert_eq!((look.in_flight.requests, look.in_flight.oldest), (1, Some(Duration::ZERO)));
    }

    #[test]
    fn an_end_that_is_seen_before_its_beginning_counts_for_nothing() {
        let mut group = Group::new();
        group.counts[in_flight_bucket(START_NS)] = u32::MAX;
        assert_eq!(group.look().in_flight, InFlight::default());
    }

    #[test]
    fn what_begins_while_the_buckets_are_read_is_young() {
        let mut group = Group::new();
        group.counts[in_flight_bucket(START_NS + PERIOD_NS * AHEAD)] = 1;
        assert_eq!(group.look().in_flight.oldest, Some(Duration::ZERO));
    }
}

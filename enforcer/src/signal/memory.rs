//! Want of memory: how much of the time a group stalls for it, and who is likely to use what it lacks.

use std::time::Duration;

use crate::model::GroupId;

use super::tally::Tally;
use crate::units::Share;

/// Makes observations of stalled time, one for each millisecond.
///
/// The tests that decide whether an objective is missed ask whether more than an allowed share (1 %) of observations is
/// slow. A group may be promised another share of the time, so stalled time counts in units of its promise:
///
/// ```text
/// total = elapsed ms
/// slow  = min(stalled, elapsed) ms × allowed / promised, at most total
/// ```
///
/// Exactly the promised share gives exactly the allowed share of slow ones. What is less than a millisecond is kept for
/// the next observation, so that many small stalls add up. Tasks that stall at once count each: for a group with many
/// threads that is more than the time in which some task stalled, never less.
#[derive(Clone, Copy, Debug)]
pub struct StallCounter {
    /// Slow time per stalled time.
    weight: f64,
    /// Not yet counted, in ms.
    total_left: f64,
    slow_left: f64,
}

impl StallCounter {
    /// Nothing observed yet. `allowed`: the share of slow observations that keeps an objective.
    pub fn new(promised: Share, allowed: f64) -> Self {
        Self { weight: allowed / promised.ratio(), total_left: 0.0, slow_left: 0.0 }
    }

    /// What `stalled` of `elapsed` time amounts to.
    pub fn observe(&mut self, elapsed: Duration, stalled: Duration) -> Tally {
        let elapsed_ms = elapsed.as_secs_f64() * 1e3;
        let slow_ms = (stalled.min(elapsed).as_secs_f64() * 1e3 * self.weight).min(elapsed_ms);
        let total = whole(&mut self.total_left, elapsed_ms);
        let slow = whole(&mut self.slow_left, slow_ms);
        Tally { total, slow: slow.min(total) }
    }
}

/// Adds `more` to what is left over, and takes the whole part.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds of one tick")]
fn whole(left: &mut f64, more: f64) -> u64 {
    *left += more;
    let whole = left.floor();
    *left -= whole;
    whole as u64
}

/// What changed in one group's memory within a second. `None`: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Intake {
    /// By how much it grew; negative: it shrank.
    pub grown_bytes: Option<f64>,
    /// What the kernel took from it to make room. It took as much in again as it did not shrink.
    pub reclaimed_bytes: Option<f64>,
    /// What had been taken from it and was needed again.
    pub refaulted_bytes: Option<f64>,
    /// Times that a limit of the group itself was reached.
    pub limit_hits: Option<f64>,
}

impl Intake {
    /// Memory that it took in: what it grew by, and what it replaced of what was taken from it. `None`: unknown.
    fn taken_bytes(&self) -> Option<f64> {
        let taken = self.grown_bytes? + self.reclaimed_bytes.unwrap_or_default();
        Some(taken.max(0.0))
    }
}

/// How long a group stalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalled {
    /// Because a limit was reached, its own or one above it.
    pub at_a_limit: Duration,
    /// Because the node was short, or its memory in pieces.
    pub node_short: Duration,
}

/// Less than this per second is noise, and nobody is named for it.
const NOTABLE_BYTES: f64 = 1024.0 * 1024.0;

/// Who is likely to use the memory that `victim` was made to reclaim for: an index of `intakes`, which may be the victim's own.
///
/// A victim that stalled mostly at a limit, and whose own limit was reached, has itself to blame. Otherwise it is the group
/// that took most memory in meanwhile. `None`: nobody stalled, nobody took anything notable, or too little is known.
/// Likely, not certain: the kernel keeps no account of whom it reclaimed for.
pub fn likely_user(victim: GroupId, stalled: Stalled, intakes: &[(GroupId, Intake)]) -> Option<GroupId> {
    if stalled == Stalled::default() {
        return None;
    }
    let own = intakes.iter().find(|(group, _)| *group == victim)?.1;
    let own_limit = own.limit_hits.is_some_and(|hits| hits > 0.0);
    if own_limit && stalled.at_a_limit >= stalled.node_short {
        return Some(victim);
    }
    let taken = intakes.iter().filter_map(|(group, intake)| Some((*group, intake.taken_bytes()?)));
    let most = taken.max_by(|(_, a), (_, b)| a.total_cmp(b));
    most.filter(|(_, bytes)| *bytes >= NOTABLE_BYTES).map(|(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: f64 = 0.01;
    const TICK: Duration = Duration::from_millis(100);
    const MIB: f64 = 1024.0 * 1024.0;

    fn share_counted(promised: Share, stalled_us: u64) -> f64 {
        let mut counter = StallCounter::new(promised, ALLOWED);
        let mut sum = Tally::default();
        for _ in 0..1000 {
            sum += counter.observe(TICK, Duration::from_micros(stalled_us));
        }
        assert!(sum.total.abs_diff(100_000) <= 1, "{sum:?}");
        sum.share().unwrap()
    }

    #[test]
    fn the_promised_share_counts_as_the_allowed_one() {
        for (promised, stalled_us, expected) in [
            (Share::percent(1), 1_000, 0.01),
            (Share::percent(1), 100, 0.001),
            (Share::percent(5), 5_000, 0.01),
            (Share { millionths: 5_000 }, 500, 0.01),
            (Share { millionths: 5_000 }, 1_500, 0.03),
        ] {
            let found = share_counted(promised, stalled_us);
            assert!((found - expected).abs() < 1e-4, "{promised} {stalled_us} us: {found}");
        }
    }

    #[test]
    fn no_more_is_slow_than_there_is_time() {
        assert!((share_counted(Share::percent(1), 400_000) - 1.0).abs() < 1e-4, "four tasks at once");
        assert!((share_counted(Share { millionths: 100 }, 50_000) - 1.0).abs() < 1e-4);
        let tally = StallCounter::new(Share::percent(1), ALLOWED).observe(Duration::ZERO, TICK);
        assert_eq!(tally, Tally::default());
    }

    fn intake(grown_mib: f64, reclaimed_mib: f64) -> Intake {
        Intake {
            grown_bytes: Some(grown_mib * MIB),
            reclaimed_bytes: Some(reclaimed_mib * MIB),
            ..Intake::default()
        }
    }

    #[test]
    fn the_group_that_took_most_is_named() {
        let node_short = Stalled { node_short: TICK, ..Stalled::default() };
        let at_a_limit = Stalled { at_a_limit: TICK, ..Stalled::default() };
        let own_limit = Intake { limit_hits: Some(3.0), ..intake(0.0, 5.0) };
        let unknown = Intake::default();
        for (what, stalled, intakes, expected) in [
            ("grew most", node_short, vec![intake(0.0, 1.0), intake(2.0, 0.0), intake(50.0, 0.0)], Some(2)),
            ("stays as large, and streams", node_short, vec![intake(4.0, 0.0), intake(0.0, 90.0)], Some(1)),
            ("shrank by what was taken", node_short, vec![intake(0.0, 0.0), intake(-90.0, 90.0)], None),
            ("itself grew most", node_short, vec![intake(90.0, 0.0), intake(2.0, 0.0)], Some(0)),
            ("its own limit", at_a_limit, vec![own_limit, intake(50.0, 0.0)], Some(0)),
            ("a limit above both", at_a_limit, vec![intake(0.0, 5.0), intake(50.0, 0.0)], Some(1)),
            ("its own limit, but the node is short", node_short, vec![own_limit, intake(50.0, 0.0)], Some(1)),
            ("noise", node_short, vec![intake(0.1, 0.0), intake(0.2, 0.0)], None),
            ("nobody stalled", Stalled::default(), vec![intake(0.0, 0.0), intake(90.0, 0.0)], None),
            ("nothing is known", node_short, vec![unknown, unknown], None),
        ] {
            let intakes: Vec<_> = (0..).map(GroupId).zip(intakes).collect();
            assert_eq!(likely_user(GroupId(0), stalled, &intakes), expected.map(GroupId), "{what}");
        }
    }
}

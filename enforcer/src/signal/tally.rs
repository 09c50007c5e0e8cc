//! How sure is it that too many are slow?
//!
//! "p99 at most T" means that at most 1 % are slower than T. The probes count both, so no percentile need be estimated:
//! k slow of n is a binomial sample, and these are the standard answers to what it shows.

/// The share of slow requests (or waits) that a p99 objective allows.
pub const ALLOWED: f64 = 0.01;
/// One-sided bounds: 95 % sure to be met, 99 % sure to be missed.
const Z_MET: f64 = 1.645;
const Z_MISSED: f64 = 2.326;

/// Of `total`, `slow` were slower than the objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    pub total: u64,
    pub slow: u64,
}

impl Tally {
    /// The share that was slow; `None` when there was nothing.
    pub fn share(self) -> Option<f64> {
        (self.total > 0).then(|| self.slow.min(self.total) as f64 / self.total as f64)
    }

    /// Wilson score interval of the slow share at `z` standard deviations (E. B. Wilson, 1927). Right for small counts,
    /// unlike the normal approximation. With nothing counted, nothing is known: `(0, 1)`.
    pub fn wilson(self, z: f64) -> (f64, f64) {
        let Some(share) = self.share() else { return (0.0, 1.0) };
        let n = self.total as f64;
        let scale = 1.0 + z * z / n;
        let centre = (share + z * z / (2.0 * n)) / scale;
        let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt() / scale;
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }

    /// Whether an objective is met, with certainty.
    pub fn is_surely_met(self) -> bool {
        self.wilson(Z_MET).1 < ALLOWED
    }

    /// Whether it is missed, with certainty.
    pub fn is_surely_missed(self) -> bool {
        self.wilson(Z_MISSED).0 > ALLOWED
    }

    /// Half its weight.
    #[must_use]
    pub const fn halved(self) -> Self {
        Self { total: self.total / 2, slow: self.slow / 2 }
    }

    /// Those that were not slow. The probes count the two one after the other, so a reading may catch one more slow than
    /// there are.
    pub const fn fast(self) -> u64 {
        self.total.saturating_sub(self.slow)
    }

    /// How many standard deviations the slow share of `self` lies above that of `other` (pooled two-proportion test).
    /// Zero when either is empty or nothing was slow.
    pub fn z_above(self, other: Self) -> f64 {
        let (Some(mine), Some(theirs)) = (self.share(), other.share()) else { return 0.0 };
        let (n, m) = (self.total as f64, other.total as f64);
        let pooled = (self.slow + other.slow) as f64 / (n + m);
        let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
        if deviation > 0.0 { (mine - theirs) / deviation } else { 0.0 }
    }
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { total: self.total + more.total, slow: self.slow + more.slow }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        *self = *self + more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_agrees_with_published_values() {
        // Newcombe (1998), table I: 81 of 263 and 15 of 148 at 95 %.
        let (low, high) = Tally { total: 263, slow: 81 }.wilson(1.959_964);
        assert!((low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4, "{low} {high}");
        let (low, high) = Tally { total: 148, slow: 15 }.wilson(1.959_964);
        assert!((low - 0.0624).abs() < 1e-4 && (high - 0.1605).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn nothing_counted_says_nothing() {
        let nothing = Tally::default();
        assert_eq!(nothing.wilson(2.0), (0.0, 1.0));
        assert!(nothing.z_above(Tally { total: 100, slow: 5 }).abs() < f64::EPSILON);
    }

    #[test]
    fn a_clear_difference_has_many_standard_deviations() {
        let off = Tally { total: 1000, slow: 50 };
        let on = Tally { total: 1000, slow: 10 };
        assert!((5.0..5.5).contains(&off.z_above(on)), "{}", off.z_above(on));
        assert!(on.z_above(off) < -5.0);
    }
}

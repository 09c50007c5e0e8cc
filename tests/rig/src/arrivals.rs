//! When requests are to be sent: a Poisson process whose rate is constant or changes over time.

use std::time::Duration;

/// How the rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    #[default]
    Constant,
    /// Ten seconds at the rate, ten at the peak rate, and so on.
    Square,
    /// Two seconds at the peak rate in every ten.
    Crowd,
    /// Evenly from the rate to the peak rate, from the beginning to the end.
    Ramp,
}

/// The rate over time.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Profile {
    /// Requests per second.
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// How the rate changes.
    #[arg(long, value_enum, default_value_t = Shape::Constant)]
    pub shape: Shape,
    /// Greatest rate, where it changes.
    #[arg(long, default_value_t = 1_000.0)]
    pub peak_rate: f64,
}

/// Seconds between two steps of a square wave.
const SQUARE_SECONDS: f64 = 10.0;
/// Seconds from one flash crowd to the next, and when in them it comes and goes.
const CROWD_EVERY_SECONDS: f64 = 10.0;
const CROWD_FROM_SECONDS: f64 = 6.0;
const CROWD_TO_SECONDS: f64 = 8.0;

impl Profile {
    pub const fn constant(rate: f64) -> Self {
        Self { rate, shape: Shape::Constant, peak_rate: rate }
    }

    /// Requests per second at a time after the beginning of a load that lasts `total`.
    fn rate_at(&self, at: Duration, total: Duration) -> f64 {
        let at = at.as_secs_f64();
        let to_peak = match self.shape {
            Shape::Constant => 0.0,
            Shape::Square => f64::from(at % (2.0 * SQUARE_SECONDS) >= SQUARE_SECONDS),
            Shape::Crowd => {
                let phase = at % CROWD_EVERY_SECONDS;
                f64::from((CROWD_FROM_SECONDS..CROWD_TO_SECONDS).contains(&phase))
            }
            Shape::Ramp => (at / total.as_secs_f64()).min(1.0),
        };
        self.rate + (self.peak_rate - self.rate) * to_peak
    }

    fn greatest(&self) -> f64 {
        if self.shape == Shape::Constant { self.rate } else { self.rate.max(self.peak_rate) }
    }
}

/// The arrivals of one load, in order.
#[derive(Clone, Debug)]
pub struct Arrivals {
    profile: Profile,
    total: Duration,
    random: fastrand::Rng,
    next: Duration,
}

impl Arrivals {
    pub fn new(profile: Profile, total: Duration, seed: u64) -> Self {
        Self { profile, total, random: fastrand::Rng::with_seed(seed), next: Duration::ZERO }
    }

    /// Time of the next one, after the beginning.
    pub const fn next(&self) -> Duration {
        self.next
    }

    /// Goes on to the one after it.
    ///
    /// A changing rate is had by thinning: arrivals at the greatest rate, each kept with the probability that the rate is of
    /// it, are exactly a Poisson process of that rate (Lewis and Shedler, 1979).
    pub fn advance(&mut self) {
        let greatest = self.profile.greatest();
        loop {
            // Exponential gaps make a Poisson process.
            self.next += Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() / greatest);
            let is_kept = self.profile.shape == Shape::Constant
                || self.random.f64() * greatest < self.profile.rate_at(self.next, self.total);
            if is_kept {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arrivals per second in a span of a load of 40 s.
    fn rate(shape: Shape, from: u64, to: u64) -> f64 {
        let profile = Profile { rate: 200.0, shape, peak_rate: 700.0 };
        let mut arrivals = Arrivals::new(profile, Duration::from_secs(40), 3);
        let mut count = 0.0;
        while arrivals.next() < Duration::from_secs(to) {
            count += f64::from(arrivals.next() >= Duration::from_secs(from));
            arrivals.advance();
        }
        count / (to - from) as f64
    }

    fn assert_about(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.1, "{found} where {expected} was expected");
    }

    #[test]
    fn a_constant_rate_is_the_rate() {
        assert_about(rate(Shape::Constant, 0, 40), 200.0);
    }

    #[test]
    fn a_square_wave_changes_every_ten_seconds() {
        assert_about(rate(Shape::Square, 0, 10), 200.0);
        assert_about(rate(Shape::Square, 10, 20), 700.0);
        assert_about(rate(Shape::Square, 20, 30), 200.0);
    }

    #[test]
    fn a_crowd_lasts_two_seconds() {
        assert_about(rate(Shape::Crowd, 10, 16), 200.0);
        assert_about(rate(Shape::Crowd, 16, 18), 700.0);
        assert_about(rate(Shape::Crowd, 18, 26), 200.0);
    }

    #[test]
    fn a_ramp_ends_at_its_peak() {
        assert_about(rate(Shape::Ramp, 0, 40), 450.0);
        assert_about(rate(Shape::Ramp, 38, 40), 687.5);
    }
}

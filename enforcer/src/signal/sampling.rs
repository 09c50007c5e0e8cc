//! How many of a group's requests need be looked at?
//!
//! What is said of a p99 rests on the slow ones of a second. Where there are very many requests, a part of them says as
//! much, and looking at all would cost the servers some percent of what they can serve.

/// More than so many per second are not looked at: two hundred slow ones where 1 % is.
const ENOUGH_HZ: f64 = 20_000.0;
/// The smallest part is one of so many.
const FACTOR_MAX: u32 = 64;
/// A larger part is taken only when it leaves so much room, so that a rate that wavers changes nothing.
const ROOM: f64 = 0.4;

/// One of so many requests is looked at, by slices of time: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling(u32);

impl Default for Sampling {
    fn default() -> Self {
        Self::ALL
    }
}

impl Sampling {
    /// Every one.
    pub const ALL: Self = Self(1);

    pub const fn factor(self) -> u32 {
        self.0
    }

    /// As the probes want it: bits that must not be set.
    pub const fn mask(self) -> u64 {
        self.0 as u64 - 1
    }

    /// What to do at this rate, of all requests, after this.
    #[must_use]
    pub fn at(self, rate_hz: f64) -> Self {
        let seen_hz = |factor: u32| rate_hz / f64::from(factor);
        let mut factor = self.0;
        while factor < FACTOR_MAX && seen_hz(factor) > ENOUGH_HZ {
            factor *= 2;
        }
        while factor > 1 && seen_hz(factor / 2) < ENOUGH_HZ * ROOM {
            factor /= 2;
        }
        Self(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enough_is_looked_at_and_not_more() {
        let mut sampling = Sampling::default();
        for (rate_hz, factor) in [
            (1_000.0, 1),
            (20_000.0, 1),
            (21_000.0, 2),
            (265_000.0, 16),
            (140_000.0, 16),
            (60_000.0, 8),
            (9_000.0, 2),
            (7_000.0, 1),
            (1e9, 64),
            (0.0, 1),
        ] {
            sampling = sampling.at(rate_hz);
            assert_eq!(sampling.factor(), factor, "{rate_hz}");
        }
    }
}

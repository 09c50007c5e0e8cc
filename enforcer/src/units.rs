//! Quantities with their units.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// CPU time per time, in thousandths of one CPU, as Kubernetes counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCores(pub u32);

impl MilliCores {
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// Rounds down: a limit may be a touch too tight, never too loose. Negative and NaN become zero.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is meant"
    )]
    pub fn from_cores(cores: f64) -> Self {
        Self((cores * 1000.0) as u32)
    }
}

impl std::fmt::Display for MilliCores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}m", self.0)
    }
}

/// CPU in thousandths of one and memory in bytes. May be negative on the way to a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

impl Amounts {
    /// The greater of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.with(other, i64::max)
    }

    /// Without the other, but not below zero.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.with(other, |mine, theirs| mine.saturating_sub(theirs).max(0))
    }

    fn with(self, other: Self, each: fn(i64, i64) -> i64) -> Self {
        Self {
            cpu_milli: each(self.cpu_milli, other.cpu_milli),
            memory_bytes: each(self.memory_bytes, other.memory_bytes),
        }
    }
}

impl std::ops::Add for Amounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, i64::saturating_add)
    }
}

impl std::iter::Sum for Amounts {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), std::ops::Add::add)
    }
}

/// Without what is behind the point; the nearest there is for what is out of range, zero for NaN.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, which is meant")]
pub const fn whole(number: f64) -> i64 {
    number as i64
}

/// As `whole`, of what is never negative: zero if it is.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is meant")]
pub const fn whole_unsigned(number: f64) -> u64 {
    number as u64
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share {
    pub millionths: u32,
}

impl Share {
    /// So many percent.
    pub const fn percent(percent: u32) -> Self {
        Self { millionths: percent * 10_000 }
    }

    /// From 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.millionths) / 1e6
    }

    /// The nearest there is; NaN becomes zero.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a million")]
    pub fn from_ratio(ratio: f64) -> Self {
        Self { millionths: (ratio.clamp(0.0, 1.0) * 1e6).round() as u32 }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", f64::from(self.millionths) / 1e4)
    }
}

/// A text that is no share.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share: write percent, such as 1% or 0.5%")]
pub struct NotShare(String);

impl FromStr for Share {
    type Err = NotShare;

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a million")]
    fn from_str(text: &str) -> Result<Self, NotShare> {
        let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        let share = percent.map(|percent| Self { millionths: (percent * 1e4).round() as u32 });
        share.ok_or_else(|| NotShare(text.to_owned()))
    }
}

/// A text that is no CPU quantity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no CPU quantity: write cores (0.5) or thousandths of one (500m)")]
pub struct NotCpu(String);

impl FromStr for MilliCores {
    type Err = NotCpu;

    fn from_str(text: &str) -> Result<Self, NotCpu> {
        let bad = || NotCpu(text.to_owned());
        if let Some(milli) = text.strip_suffix('m') {
            return milli.parse().map(Self).map_err(|_| bad());
        }
        let cores: f64 = text.parse().map_err(|_| bad())?;
        let fits = (0.0..1e6).contains(&cores);
        fits.then(|| Self::from_cores(cores + 0.000_05)).ok_or_else(bad)
    }
}

/// So many times, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Factor(pub u32);

impl Factor {
    pub fn times(self, number: f64) -> f64 {
        number * f64::from(self.0) / 1000.0
    }
}

impl std::fmt::Display for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// A text that is no factor.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no factor: write a number such as 1.5")]
pub struct NoFactor(String);

impl FromStr for Factor {
    type Err = NoFactor;

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range checked")]
    fn from_str(text: &str) -> Result<Self, NoFactor> {
        let factor = text.parse().ok().filter(|factor| (0.0..1e6).contains(factor));
        factor
            .map(|factor: f64| Self((factor * 1000.0).round() as u32))
            .ok_or_else(|| NoFactor(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_written_in_percent() {
        for (text, millionths) in [("1%", 10_000), ("0.5%", 5_000), ("2.5 %", 25_000), ("100%", 1_000_000)] {
            assert_eq!(text.parse(), Ok(Share { millionths }), "{text}");
        }
        for text in ["", "1", "0.01", "-1%", "101%", "NaN%", "one%"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
        assert_eq!(Share { millionths: 5_000 }.to_string(), "0.5%");
    }

    #[test]
    fn cpu_is_written_in_cores_or_milli_cores() {
        for (text, expected) in
            [("0.5", Some(500)), ("500m", Some(500)), ("2", Some(2000)), ("0.29", Some(290))]
        {
            assert_eq!(text.parse().ok(), expected.map(MilliCores), "{text}");
        }
        for text in ["", "-1", "1.5m", "NaN", "two", "1e9"] {
            assert!(text.parse::<MilliCores>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_factor_is_a_number() {
        assert_eq!("1.5".parse(), Ok(Factor(1500)));
        for text in ["", "-1", "NaN", "twice", "1e9"] {
            assert!(text.parse::<Factor>().is_err(), "{text}");
        }
        assert!((Factor(1500).times(2.0) - 3.0).abs() < 1e-9);
    }
}

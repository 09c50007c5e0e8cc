//! A median with its range.

use serde::Serialize;

/// A median with the least and the greatest value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of one value at least.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min: values[0], max: values[values.len() - 1] }
    }

    /// In another unit.
    #[must_use]
    pub fn scaled(self, by: f64) -> Self {
        Self { median: self.median * by, min: self.min * by, max: self.max * by }
    }
}

/// With two decimals, or as many as are asked for.
impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        write!(f, "{:.decimals$} [{:.decimals$} {:.decimals$}]", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert!((Spread::of([9.0, 1.0, 5.0]).median - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_spread_shows_as_many_decimals_as_are_asked_for() {
        let spread = Spread { median: 2.5, min: 1.0, max: 4.0 };
        assert_eq!(format!("{spread} {spread:.1}"), "2.50 [1.00 4.00] 2.5 [1.0 4.0]");
    }
}

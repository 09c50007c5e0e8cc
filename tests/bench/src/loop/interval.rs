//! How sure one is of a difference between two shares of slow requests, and of a ratio of BE work. Pure.

use serde::Serialize;

use super::record::Cell;

/// A difference of shares, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub shares: f64,
    pub low: f64,
    pub high: f64,
    /// Pairs of windows that it comes from.
    pub windows: usize,
}

/// How much more BE got done, as a ratio, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// Pairs of rounds that it comes from.
    pub rounds: usize,
}

/// 97.5 % quantiles of Student's t, by degrees of freedom from one on; beyond, the last one is a little too wide.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// What one policy and another did in the same window of the same round.
struct Pair {
    requests: [f64; 2],
    slow: [f64; 2],
}

/// Share of slow requests of the first policy minus that of the second, from the rounds of each.
///
/// Requests that are slow come in bursts, so they are no independent draws. Windows of ten seconds are long beside a burst
/// and are taken as the independent units (batch means: Law, Simulation Modeling and Analysis, 5th ed., 9.5.3). Windows with
/// the same round and place have the same arrivals and stand in pairs. Each share is a ratio of two sums; its error is that of
/// the residuals (Cochran, Sampling Techniques, 3rd ed., 6.3), and the interval is Student's. `None`: fewer than two pairs.
pub fn difference<'a>(
    first: impl Iterator<Item = &'a Cell>,
    second: impl Iterator<Item = &'a Cell>,
) -> Option<Difference> {
    let pairs: Vec<Pair> = of_same_rounds(first, second)
        .flat_map(|(cell, other)| cell.outcome.windows.iter().zip(&other.outcome.windows))
        .map(|(first, second)| Pair {
            requests: [first.requests, second.requests].map(|requests| requests as f64),
            slow: [first.slow, second.slow].map(|slow| slow as f64),
        })
        .collect();
    of_pairs(&pairs)
}

/// BE work under the first policy in parts of that under the second, from the rounds of each.
///
/// Rounds stand in pairs, for the host's pace drifts between them; the mean of the ratios' logarithms has Student's interval,
/// so that it does not matter which of the two is on top. `None`: fewer than two pairs.
pub fn ratio<'a>(
    first: impl Iterator<Item = &'a Cell>,
    second: impl Iterator<Item = &'a Cell>,
) -> Option<Ratio> {
    let logarithms: Vec<f64> = of_same_rounds(first, second)
        .filter(|(cell, other)| cell.outcome.be_work > 0.0 && other.outcome.be_work > 0.0)
        .map(|(cell, other)| (cell.outcome.be_work / other.outcome.be_work).ln())
        .collect();
    of_logarithms(&logarithms)
}

/// Cells of the one and the other side, round by round.
fn of_same_rounds<'a>(
    first: impl Iterator<Item = &'a Cell>,
    second: impl Iterator<Item = &'a Cell>,
) -> impl Iterator<Item = (&'a Cell, &'a Cell)> {
    let second: Vec<&Cell> = second.collect();
    first
        .filter_map(move |cell| Some((cell, *second.iter().find(|other| other.key.round == cell.key.round)?)))
}

fn of_logarithms(logarithms: &[f64]) -> Option<Ratio> {
    let freedom = logarithms.len().checked_sub(1).filter(|freedom| *freedom > 0)?;
    let rounds = logarithms.len() as f64;
    let mean = logarithms.iter().sum::<f64>() / rounds;
    let squares: f64 = logarithms.iter().map(|logarithm| (logarithm - mean).powi(2)).sum();
    let half = student(freedom) * (squares / (rounds * freedom as f64)).sqrt();
    let [mean, low, high] = [mean, mean - half, mean + half].map(f64::exp);
    Some(Ratio { mean, low, high, rounds: logarithms.len() })
}

/// With so many degrees of freedom, 1 at least.
fn student(freedom: usize) -> f64 {
    STUDENT[(freedom - 1).min(STUDENT.len() - 1)]
}

fn of_pairs(pairs: &[Pair]) -> Option<Difference> {
    let freedom = pairs.len().checked_sub(1).filter(|freedom| *freedom > 0)?;
    let windows = pairs.len() as f64;
    let requests = [0, 1].map(|side| pairs.iter().map(|pair| pair.requests[side]).sum::<f64>());
    if requests.iter().any(|requests| *requests <= 0.0) {
        return None;
    }
    let share = [0, 1].map(|side| pairs.iter().map(|pair| pair.slow[side]).sum::<f64>() / requests[side]);
    let residual = |pair: &Pair, side: usize| {
        (pair.slow[side] - share[side] * pair.requests[side]) * windows / requests[side]
    };
    let squares: f64 = pairs.iter().map(|pair| (residual(pair, 0) - residual(pair, 1)).powi(2)).sum();
    let error = (squares / (windows * freedom as f64)).sqrt();
    let shares = share[0] - share[1];
    let half = student(freedom) * error;
    Some(Difference { shares, low: shares - half, high: shares + half, windows: pairs.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(slow: &[[f64; 2]]) -> Vec<Pair> {
        slow.iter().map(|&slow| Pair { requests: [1_000.0; 2], slow }).collect()
    }

    #[test]
    fn a_difference_is_that_of_the_shares_and_its_interval_is_students() {
        // Differences of 1, 2, 3 and 2 points: mean 2, standard error 0.408, t of three degrees of freedom 3.182.
        let found = of_pairs(&pairs(&[[20.0, 10.0], [30.0, 10.0], [35.0, 5.0], [20.0, 0.0]])).unwrap();
        assert!((found.shares - 0.02).abs() < 1e-12);
        assert!((found.high - (0.02 + 3.182 * 0.004_082_48)).abs() < 1e-6, "{found:?}");
        assert!((found.low + found.high - 0.04).abs() < 1e-12);
    }

    #[test]
    fn what_hits_both_alike_does_not_widen_the_interval() {
        let found = of_pairs(&pairs(&[[20.0, 10.0], [510.0, 500.0], [10.0, 0.0]])).unwrap();
        assert!(found.high - found.low < 1e-12, "{found:?}");
    }

    #[test]
    fn windows_with_more_requests_weigh_more() {
        let pairs = [
            Pair { requests: [100.0; 2], slow: [0.0, 0.0] },
            Pair { requests: [900.0; 2], slow: [90.0, 0.0] },
        ];
        assert!((of_pairs(&pairs).unwrap().shares - 0.09).abs() < 1e-12);
    }

    #[test]
    fn one_window_says_nothing_about_its_error() {
        assert_eq!(of_pairs(&pairs(&[[20.0, 10.0]])), None);
        assert_eq!(of_logarithms(&[0.1]), None);
    }

    #[test]
    fn a_ratio_is_the_geometric_mean_and_its_interval_is_students() {
        // Half and twice as much cancel out: logarithms of -0.693 and 0.693, standard error 0.693, t of one degree 12.706.
        let found = of_logarithms(&[0.5_f64.ln(), 2.0_f64.ln()]).unwrap();
        assert!((found.mean - 1.0).abs() < 1e-12, "{found:?}");
        assert!((found.high.ln() - 12.706 * 2.0_f64.ln()).abs() < 1e-9, "{found:?}");
        assert!((found.low * found.high - 1.0).abs() < 1e-9, "{found:?}");
    }
}

//! What the probes counted, as the agent exports it.

use anyhow::{Context as _, Result};
use enforcer_rig::agent::Agent;

const NAME: &str = "enforcer_request_duration_seconds_bucket{group=\"ls\"";

/// Upper bounds in seconds and how many were at most that long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(Vec<(f64, u64)>);

impl Histogram {
    /// As it stands now.
    pub fn of(agent: &mut Agent) -> Result<Self> {
        Self::parse(&agent.text("/metrics")?)
    }

    fn parse(metrics: &str) -> Result<Self> {
        let bucket = |line: &str| -> Option<Result<(f64, u64)>> {
            let (bound, count) = line.strip_prefix(NAME)?.split_once("le=\"")?.1.split_once("\"} ")?;
            let parsed = || anyhow::Ok((bound.replace("+Inf", "inf").parse()?, count.trim().parse()?));
            Some(parsed().with_context(|| format!("`{line}` is no bucket")))
        };
        Ok(Self(metrics.lines().filter_map(bucket).collect::<Result<_>>()?))
    }

    /// What came after `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            before.0.iter().find(|(other, _)| other.total_cmp(&bound).is_eq()).map_or(0, |(_, count)| *count)
        };
        Self(self.0.iter().map(|&(bound, count)| (bound, count - earlier(bound))).collect())
    }

    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// By interpolation within its bucket, as Prometheus does it. `None`: nothing was counted.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.count() as f64;
        let place = self.0.iter().position(|(_, count)| *count > 0 && *count as f64 >= rank)?;
        let (low, below) = place.checked_sub(1).map_or((0.0, 0), |place| self.0[place]);
        let (high, upto) = self.0[place];
        let high = if high.is_finite() { high } else { low };
        let part = (rank - below as f64) / (upto - below).max(1) as f64;
        Some((low + (high - low) * part) * 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: [u64; 3]) -> Histogram {
        let bounds = ["0.001", "0.002", "+Inf"];
        let lines = bounds.iter().zip(counts);
        let lines: Vec<String> =
            lines.map(|(bound, count)| format!("{NAME},le=\"{bound}\"}} {count}")).collect();
        Histogram::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let before = histogram([10, 10, 10]);
        let since = histogram([60, 110, 110]).since(&before);
        assert_eq!(since.count(), 100);
        assert_eq!(since.quantile_us(0.25), Some(500.0));
        assert_eq!(since.quantile_us(0.99), Some(1_980.0));
        assert_eq!(before.since(&before).quantile_us(0.5), None);
    }
}

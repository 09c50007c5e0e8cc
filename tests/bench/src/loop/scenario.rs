//! What happens on the node: which antagonist, and how much the LS server has to do meanwhile.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, bail};
use enforcer_rig::{
    antagonist::Antagonist,
    arrivals::{Profile, Shape},
};
use serde::{Deserialize, Serialize};

use super::record::Record;

/// Of the LS server, in percent of what the node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LsLoad {
    Constant(u32),
    /// 20 and 70 % in turns of ten seconds.
    Square,
    /// 20 %, and 80 % for two seconds in every ten.
    Crowd,
    /// From 20 to 80 %.
    Ramp,
}

/// Load that changes starts here.
const LOW_PERCENT: u32 = 20;

impl LsLoad {
    pub const ALL: [Self; 6] =
        [Self::Constant(20), Self::Constant(50), Self::Constant(80), Self::Square, Self::Crowd, Self::Ramp];

    pub const fn is_constant(self) -> bool {
        matches!(self, Self::Constant(_))
    }

    /// The greatest load. Its SLO is the cell's: a service keeps one promise all day.
    pub const fn peak_percent(self) -> u32 {
        match self {
            Self::Constant(percent) => percent,
            Self::Square => 70,
            Self::Crowd | Self::Ramp => 80,
        }
    }

    /// Requests per second over time, on a node that serves `capacity_hz`.
    pub fn profile(self, capacity_hz: f64) -> Profile {
        let rate = |percent: u32| capacity_hz * f64::from(percent) / 100.0;
        let shape = match self {
            Self::Constant(percent) => return Profile::constant(rate(percent)),
            Self::Square => Shape::Square,
            Self::Crowd => Shape::Crowd,
            Self::Ramp => Shape::Ramp,
        };
        Profile { rate: rate(LOW_PERCENT), shape, peak_rate: rate(self.peak_percent()) }
    }
}

impl fmt::Display for LsLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(percent) => write!(f, "{percent}"),
            Self::Square => f.write_str("square"),
            Self::Crowd => f.write_str("crowd"),
            Self::Ramp => f.write_str("ramp"),
        }
    }
}

impl FromStr for LsLoad {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "square" => Self::Square,
            "crowd" => Self::Crowd,
            "ramp" => Self::Ramp,
            percent => match percent.parse() {
                Ok(percent @ 1..=100) => Self::Constant(percent),
                _ => bail!("{text:?} is no load: say a percentage, square, crowd or ramp"),
            },
        })
    }
}

impl TryFrom<String> for LsLoad {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl From<LsLoad> for String {
    fn from(load: LsLoad) -> Self {
        load.to_string()
    }
}

/// One antagonist at one load, as `memory-stream@50`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scenario {
    pub be: Antagonist,
    pub load: LsLoad,
}

impl Scenario {
    pub fn all() -> Vec<Self> {
        let of = |be: Antagonist| LsLoad::ALL.map(|load| Self { be, load });
        Antagonist::ALL.into_iter().flat_map(of).collect()
    }

    /// Those that something is known about.
    pub fn of(record: &Record) -> Vec<Self> {
        let mut known: Vec<Self> = record
            .cells
            .iter()
            .filter_map(|cell| Some(Self { be: cell.key.be?, load: cell.key.load }))
            .collect();
        known.sort_unstable();
        known.dedup();
        known
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.be.name(), self.load)
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (be, load) = text.split_once('@').context("a scenario looks like memory-stream@50")?;
        let be = Antagonist::ALL.into_iter().find(|known| known.name() == be);
        Ok(Self { be: be.with_context(|| format!("{text:?} names no antagonist"))?, load: load.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_read_as_it_is_written() {
        for scenario in Scenario::all() {
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        for wrong in ["memory-stream", "memory-stream@", "memory-stream@0", "nothing@50"] {
            assert!(wrong.parse::<Scenario>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn loads_are_percentages_of_what_the_node_serves() {
        let square = LsLoad::Square.profile(1_000.0);
        assert_eq!((square.rate, square.peak_rate), (200.0, 700.0));
        assert_eq!(LsLoad::Constant(50).profile(1_000.0), Profile::constant(500.0));
    }
}

//! What was measured, as a JSON file that is rewritten after every cell, so that a run can be resumed.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::antagonist::Antagonist;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{policy::Policy, scenario::LsLoad};

/// What must be the same for cells to be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub warm_up_seconds: u32,
    pub seconds: u32,
    /// The SLO is so many times the p99 of LS alone.
    pub slo_factor: f64,
    pub be_floor_milli_cores: u32,
    pub cpus: usize,
    pub kernel: String,
    /// Hash of all programs that take part: the agent, what it is tried on, and this one.
    pub programs: String,
}

/// Which cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `None` for LS alone.
    pub be: Option<Antagonist>,
    pub load: LsLoad,
    pub policy: Policy,
    pub round: usize,
}

/// What came of it, the first seconds left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub requests: u64,
    /// Slower than the SLO.
    pub slow: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of ten seconds each.
    pub windows: Vec<Window>,
    /// Of half a second each: requests, and how many were slow.
    pub half_seconds: Vec<(u64, u64)>,
    /// Units per second.
    pub be_work: f64,
    pub be_cores: f64,
    /// Of everybody else on the node, the client included.
    pub other_cores: f64,
    /// In enforcer's cells.
    pub agent: Option<AgentAccount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub requests: u64,
    pub slow: u64,
    pub p99_us: f64,
}

/// What the agent told of itself in the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentAccount {
    pub cores: f64,
    pub resident_bytes: u64,
    /// Whether it has held BE back at any time.
    pub held_back: bool,
    /// The last reason that it gave.
    pub explanation: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    #[serde(flatten)]
    pub key: Key,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The file's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub settings: Settings,
    /// What the node serves with LS alone.
    pub capacity_hz: Option<f64>,
    /// By load in percent.
    pub slo_us: BTreeMap<u32, f64>,
    /// Summaries and verdicts, made of the cells.
    pub results: Value,
    pub cells: Vec<Cell>,
}

impl Record {
    pub fn new(settings: Settings) -> Self {
        Self { settings, capacity_hz: None, slo_us: BTreeMap::new(), results: Value::Null, cells: Vec::new() }
    }

    /// What the file holds, or an empty record if there is none.
    pub fn load(path: &Path, settings: Settings) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Self::new(settings)),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let cure = "name another file, or begin anew with --fresh";
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no record of this benchmark: {cure}", path.display()))?;
        ensure!(
            record.settings == settings,
            "{} holds a run with other settings ({:?}, now {settings:?}): {cure}",
            path.display(),
            record.settings
        );
        Ok(record)
    }

    /// Writes the file as a whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let new = path.with_added_extension("new");
        let write = || -> Result<()> {
            fs::write(&new, serde_json::to_string(self)? + "\n")?;
            Ok(fs::rename(&new, path)?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn has(&self, key: Key) -> bool {
        self.cells.iter().any(|cell| cell.key == key)
    }

    /// All rounds of a cell.
    pub fn rounds(
        &self,
        be: Option<Antagonist>,
        load: LsLoad,
        policy: Policy,
    ) -> impl Iterator<Item = &Cell> {
        self.cells
            .iter()
            .filter(move |cell| cell.key.be == be && cell.key.load == load && cell.key.policy == policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            warm_up_seconds: 5,
            seconds: 20,
            slo_factor: 1.5,
            be_floor_milli_cores: 100,
            cpus: 2,
            kernel: "6.1".into(),
            programs: "1".into(),
        }
    }

    #[test]
    fn a_record_is_resumed_only_with_the_same_settings() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loop.json");
        let mut record = Record::load(&path, settings()).unwrap();
        let key = Key {
            be: Some(Antagonist::CpuSpin),
            load: LsLoad::Square,
            policy: Policy::usual_static(20),
            round: 1,
        };
        record.slo_us.insert(50, 1234.5);
        record.cells.push(Cell { key, outcome: Outcome { be_work: 0.1, ..Outcome::default() } });
        record.save(&path).unwrap();

        let read = Record::load(&path, settings()).unwrap();
        assert!(read.has(key) && !read.has(Key { round: 2, ..key }));
        assert_eq!((&read.cells[0].outcome, &read.slo_us), (&record.cells[0].outcome, &record.slo_us));
        let other = Record::load(&path, Settings { seconds: 10, ..settings() });
        assert!(other.unwrap_err().to_string().contains("--fresh"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

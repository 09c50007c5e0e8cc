//! As much of the agent's `/v1/status` as demos show.

use serde::Deserialize;

/// One look at it.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub explanation: String,
    pub uptime_seconds: f64,
    pub groups: Vec<Group>,
    pub agent_cpu_seconds: Option<f64>,
    pub agent_resident_bytes: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Group {
    pub name: String,
    pub class: String,
    pub requests: Option<Durations>,
    pub blame_seconds_total: Vec<(String, f64)>,
    /// Whatever it is held back with.
    pub restraint: Option<serde_json::Value>,
    pub limit_cores: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Durations {
    pub p99_seconds: Option<f64>,
    pub p99_seconds_total: Option<f64>,
}

impl Status {
    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

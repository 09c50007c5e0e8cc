//! What the node offers to batch work.

use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::Cluster;
use serde::Serialize;

/// For the agent to see that the node is idle: it lends by what was used in the last minutes.
const PATIENCE: Duration = Duration::from_mins(3);

/// The node's allocatable batch resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lent {
    pub cores: f64,
    pub bytes: f64,
}

impl Lent {
    /// Waits until batch pods that ask for so many cores can be scheduled.
    pub fn wait_for(cluster: &Cluster, cores: f64) -> Result<()> {
        let mut lent = Self::default();
        let what = format!("{cores} cores are lent");
        let waited = cluster.wait_for(&what, PATIENCE, || {
            lent = Self::now(cluster)?;
            Ok(lent.cores >= cores)
        });
        waited.with_context(|| {
            format!("only {:.2} cores are lent: keep the machine quiet, or choose a lower --rate or a greater --reclaim", lent.cores)
        })
    }

    /// As the API server has it now. What is not offered is zero.
    pub fn now(cluster: &Cluster) -> Result<Self> {
        let node = cluster.ask_json(&["get", "node", &cluster.node])?;
        let amount = |resource: &str| {
            let text = node["status"]["allocatable"][resource].as_str().unwrap_or("0");
            quantity(text).with_context(|| format!("{resource}: {text} is no quantity"))
        };
        Ok(Self {
            cores: amount("kubernetes.io/batch-cpu")? / 1e3,
            bytes: amount("kubernetes.io/batch-memory")?,
        })
    }
}

/// A quantity as Kubernetes writes large ones: 1143, 1k, 9653086Ki.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(text[..digits].parse::<f64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!(
            ["1143", "1k", "2Ki", "x", "1x"].map(quantity),
            [Some(1143.0), Some(1e3), Some(2048.0), None, None]
        );
    }
}

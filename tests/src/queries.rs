//! What dashboard and alerts ask Prometheus for.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::sources::root;

const FILES: [(&str, usize); 2] = [("dashboard.json", 40), ("alerts.yaml", 10)];

/// One of these.
#[derive(Clone, Debug)]
pub struct Query {
    /// The file that it is in.
    pub file: &'static str,
    /// `PromQL`, or Grafana's `label_values(…)`.
    pub text: String,
}

/// Where the chart keeps them.
fn directory() -> PathBuf {
    root().join("daemonset/chart/enforcer/files")
}

/// All of them.
///
/// # Errors
/// Where a file cannot be read, or holds fewer than it should.
pub fn all() -> Result<Vec<Query>> {
    let mut all = Vec::new();
    for (file, at_least) in FILES {
        let path = directory().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut found = Vec::new();
        // JSON is YAML.
        collect(&serde_saphyr::from_str(&text).context(file)?, &mut found);
        ensure!(found.len() >= at_least, "{file} has {} queries only", found.len());
        all.extend(found.into_iter().map(|text| Query { file, text }));
    }
    Ok(all)
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(
                ["expr", "query"].iter().filter_map(|key| map.get(*key)?.as_str().map(str::to_owned)),
            );
            map.values().for_each(|value| collect(value, found));
        }
        Value::Array(all) => all.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// Everything in a text that looks like a metric of ours.
pub fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("enforcer_") || word.starts_with("process_"))
        .collect()
}

//! `enforcer explain batch`: what is lent to batch work, term by term.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::{
    api::core::v1::{Node, Pod as ApiPod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::core::ObjectList;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::client::fetch;
use crate::{
    cluster::{
        config::ColocationConfig,
        lend::{Lent, answer},
        objects::NodeMetricStatus,
        pod::Pod,
        protocol::COLOCATION_CONFIG,
    },
    decision::batch::{Batch, CalculatePolicy, Terms},
};

/// Kubernetes objects in files, in YAML or JSON.
#[derive(Clone, Debug)]
pub struct Files {
    pub node: PathBuf,
    /// A list of pods; none if missing.
    pub pods: Option<PathBuf>,
    /// A `NodeMetric`.
    pub metrics: PathBuf,
    /// `slo-controller-config`, or the value of its key `colocation-config`; Koordinator's defaults, switched on, if missing.
    pub strategy: Option<PathBuf>,
    /// When it is. Default: when the `NodeMetric` was reported.
    pub now: Option<Timestamp>,
}

/// Prints what a running agent lends.
///
/// # Errors
/// Where no agent answers, or it knows of no cluster.
pub fn of_agent(agent: SocketAddr, json: bool) -> Result<()> {
    let lent: Option<Lent> =
        fetch(agent, "/v1/batch").context("is the agent part of a cluster (--node NAME)?")?;
    let Some(lent) = lent else {
        bail!("the agent has not worked out yet what it lends: ask again in some seconds");
    };
    print(&lent, json)
}

/// Prints what would be lent by these files.
///
/// # Errors
/// For files that cannot be read, each with its name.
pub fn of_files(files: &Files, json: bool) -> Result<()> {
    let node: Node = read(&files.node)?;
    let pods: Vec<ApiPod> = match &files.pods {
        Some(path) => read::<ObjectList<ApiPod>>(path)?.items,
        None => Vec::new(),
    };
    let pods = pods.iter().map(Pod::of).collect::<Result<Vec<_>, _>>()?;
    let metric: Reported = read(&files.metrics)?;
    let config = match &files.strategy {
        Some(path) => strategy(path)?,
        None => {
            ColocationConfig::of(&[(COLOCATION_CONFIG.to_owned(), r#"{"enable":true}"#.to_owned())].into())?
        }
    };
    let status: NodeMetricStatus = metric.status.unwrap_or_default();
    let now =
        files.now.map(Time).or_else(|| status.update_time.clone()).unwrap_or(Time(Timestamp::UNIX_EPOCH));
    let answer = answer(&config.strategy(&node)?, &node, &pods, &status, &now, |inputs| inputs)?;
    print(&Lent::new(answer.offer(), &answer), json)
}

/// What is needed of a `NodeMetric`; its spec, which people leave out, is not.
#[derive(Deserialize)]
struct Reported {
    status: Option<NodeMetricStatus>,
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("{} does not hold what it should, in YAML or JSON", path.display()))
}

/// A whole `ConfigMap`, or what stands under its key.
fn strategy(path: &Path) -> Result<ColocationConfig> {
    let value: Value = read(path)?;
    let text = match value.get("data") {
        Some(data) => data.get(COLOCATION_CONFIG).and_then(Value::as_str).map(str::to_owned),
        None => Some(value.to_string()),
    };
    let data: BTreeMap<String, String> =
        text.into_iter().map(|text| (COLOCATION_CONFIG.to_owned(), text)).collect();
    ColocationConfig::of(&data).with_context(|| format!("{}", path.display()))
}

/// What `--json` prints. `None`: nothing is lent.
#[derive(Serialize)]
struct Printed<'a> {
    batch_cpu_milli: Option<i64>,
    batch_memory_bytes: Option<i64>,
    terms: Option<&'a Batch>,
    why_nothing: Option<&'a str>,
}

fn print(lent: &Lent, json: bool) -> Result<()> {
    if json {
        let printed = Printed {
            batch_cpu_milli: lent.offered.map(|offered| offered.cpu_milli),
            batch_memory_bytes: lent.offered.map(|offered| offered.memory_bytes),
            terms: lent.terms.as_ref(),
            why_nothing: lent.why_nothing.as_deref(),
        };
        println!("{}", serde_json::to_string_pretty(&printed)?);
        return Ok(());
    }
    if let Some(why) = &lent.why_nothing {
        println!("nothing is lent: {why}");
    }
    if let Some(terms) = &lent.terms {
        print!("{}", table(terms));
        if let Some(offered) = lent.offered.filter(|offered| *offered != terms.offered()) {
            println!(
                "\nThe node's status still offers {} and {}: small changes wait.",
                cores(offered.cpu_milli),
                gib(offered.memory_bytes)
            );
        }
    }
    Ok(())
}

/// As kubernetes.io/batch-cpu counts it.
fn cores(milli: i64) -> String {
    format!("{milli}m")
}

fn gib(bytes: i64) -> String {
    format!("{:.3}Gi", bytes as f64 / (1_u64 << 30) as f64)
}

const fn policy(policy: CalculatePolicy) -> &'static str {
    match policy {
        CalculatePolicy::Usage => "usage",
        CalculatePolicy::Request => "request",
        CalculatePolicy::MaxUsageRequest => "maxUsageRequest",
    }
}

/// What is subtracted carries a minus, what is only shown is indented.
fn table(Batch { cpu, memory }: &Batch) -> String {
    let mut text = String::new();
    let mut row = |what: &str, cpu: String, memory: String| {
        writeln!(text, "{what:<52}{cpu:>12}{memory:>16}").expect("BUG: writing to a string");
    };
    let both = |row: &mut dyn FnMut(&str, String, String), what: &str, of: fn(&Terms) -> i64| {
        row(what, cores(of(cpu)), gib(of(memory)));
    };
    row("", "CPU".to_owned(), "memory".to_owned());
    both(&mut row, "capacity", |terms| terms.capacity);
    let percent = |terms: &Terms| format!("{} %", terms.reclaim_threshold_percent);
    row("  of which may be in use (reclaim threshold)", percent(cpu), percent(memory));
    both(&mut row, "- safety margin", |terms| terms.safety_margin);
    both(&mut row, "  reserved by kubelet", |terms| terms.reserved_by_kubelet);
    both(&mut row, "  reserved by annotation", |terms| terms.reserved_by_annotation);
    both(&mut row, "  used by the system", |terms| terms.system_used);
    both(&mut row, "  used by host applications", |terms| terms.host_applications_used);
    both(&mut row, "- system: used or reserved, whichever is more", |terms| terms.system_used_or_reserved);
    both(&mut row, "  requested by pods before batch", |terms| terms.high_priority_request);
    both(&mut row, "  used by pods before batch", |terms| terms.high_priority_used);
    both(&mut row, "  the greater of both, pod by pod", |terms| terms.high_priority_max_used_request);
    both(&mut row, "  among that: reported, and gone since", |terms| terms.dangling_used);
    let unknown = |terms: &Terms| format!("{} pods", terms.pods_without_metric);
    row("  not reported yet, counted by request", unknown(cpu), unknown(memory));
    row(
        "- pods before batch, by the policy",
        policy(cpu.policy).to_owned(),
        policy(memory.policy).to_owned(),
    );
    both(&mut row, "- their peaks of one second, beyond the mean", |terms| terms.peaks);
    both(&mut row, "- withheld while LS suffers", |terms| terms.held_back);
    both(&mut row, "= by the policy", |terms| match terms.policy {
        CalculatePolicy::Usage => terms.by_usage,
        CalculatePolicy::Request => terms.by_request,
        CalculatePolicy::MaxUsageRequest => terms.by_max_usage_request,
    });
    let most = |terms: &Terms, show: fn(i64) -> String| terms.at_most.map_or_else(|| "-".to_owned(), show);
    row("  at most (batch threshold)", most(cpu, cores), most(memory, gib));
    let ratio = |terms: &Terms| {
        terms.cpu_normalization_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
    };
    row("x CPU normalization", ratio(cpu), ratio(memory));
    both(&mut row, "- given out by other systems", |terms| terms.third_party);
    both(&mut row, "= offered to batch", |terms| terms.batch);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up_for_a_reader() {
        let cpu = Terms {
            capacity: 2_000,
            reclaim_threshold_percent: 60,
            safety_margin: 800,
            system_used_or_reserved: 100,
            high_priority_used: 300,
            by_usage: 800,
            batch: 800,
            ..Terms::default()
        };
        let text = table(&Batch { cpu, memory: Terms { capacity: 3 << 29, ..Terms::default() } });
        assert!(text.contains("capacity") && text.contains("2000m") && text.contains("1.500Gi"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            text.lines().last().is_some_and(|line| line.starts_with("= offered") && line.contains("800m")),
            "{text}"
        );
    }
}

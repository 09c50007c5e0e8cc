//! How soon pods and their directories find each other, and what stands in the latter.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::PodQos;
use enforcer_rig::cluster::{Cluster, install::GENEROUS};
use serde_json::{Value, json};

use crate::{
    citizen::{Citizen, STANDALONE},
    pod::{Pod, Spec, wait_for},
};

/// Pods at once: half of what a node takes.
const WAVE: usize = 40;

/// `ENFORCER_TEST_PODS` starts, 20 if that is not set.
pub fn within_a_second() -> Result<()> {
    let cluster = Cluster::running()?;
    let starts: usize = std::env::var("ENFORCER_TEST_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut citizen = Citizen::start(&cluster, "join", STANDALONE, GENEROUS)?;
    for first in (0..starts).step_by(WAVE) {
        wave(&mut citizen, first, WAVE.min(starts - first))?;
    }
    let joined = Joined::of(&citizen)?;
    println!(
        "{starts} pods, {} directories: p50 within {:.3} s, p99 within {:.3} s",
        joined.total,
        joined.quantile(0.5),
        joined.quantile(0.99)
    );
    // Every pod's own directory, its sandbox's and its container's.
    ensure!(joined.total >= 3.0 * starts as f64, "{} directories of {starts} pods", joined.total);
    ensure!(joined.quantile(0.99) <= 1.0, "{joined:?}");
    Ok(())
}

/// Starts pods of all classes and waits until the agent counts each one's container.
fn wave(citizen: &mut Citizen<'_>, first: usize, pods: usize) -> Result<()> {
    let cluster = citizen.cluster;
    let classes = [PodQos::Guaranteed, PodQos::Burstable, PodQos::BestEffort];
    let names: Vec<(String, PodQos)> =
        (first..first + pods).map(|n| (format!("join-{n}"), classes[n % classes.len()])).collect();
    let objects: Vec<Value> =
        names.iter().map(|(name, qos)| Spec::of_qos(*qos).object(name, &["pause"])).collect();
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }))?;
    let running =
        names.iter().map(|(name, qos)| Pod::made(cluster, name, *qos)).collect::<Result<Vec<_>>>()?;
    let whole = if cluster.is_v2()? { 3 } else { 6 };
    citizen.agent.wait_for("all containers are counted", |agent| {
        let groups = agent.status()?.groups;
        let counted = |pod: &Pod<'_>| {
            groups.iter().any(|group| group.name == format!("default/{}", pod.name) && group.cgroups >= whole)
        };
        Ok(running.iter().all(counted))
    })
}

/// How long directories waited until they were counted, as the agent's histogram has it.
#[derive(Debug)]
struct Joined {
    /// Upper end in seconds, and how many waited no longer.
    buckets: Vec<(f64, f64)>,
    total: f64,
}

impl Joined {
    fn of(citizen: &Citizen<'_>) -> Result<Self> {
        let (_, metrics) = citizen.agent.get("/metrics")?;
        let bucket = |line: &str| {
            let (le, count) =
                line.strip_prefix("enforcer_cgroup_join_seconds_bucket{le=\"")?.split_once("\"} ")?;
            Some((le.parse().ok()?, count.parse().ok()?))
        };
        let buckets = metrics.lines().filter_map(bucket).collect();
        Ok(Self { buckets, total: citizen.agent.metric("enforcer_cgroup_join_seconds_count")? })
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let enough = self.buckets.iter().find(|(_, count)| *count >= quantile * self.total);
        enough.map_or(f64::INFINITY, |(le, _)| *le)
    }
}

/// What batch pods ask for is in the files of the container and of the pod.
pub fn specs_are_in_force() -> Result<()> {
    let cluster = Cluster::running()?;
    let citizen = Citizen::start(&cluster, "specs", STANDALONE, GENEROUS)?;
    wait_for("batch resources are offered", || {
        Ok(citizen.offered("kubernetes.io/batch-cpu")?.is_some_and(|cpu| cpu >= 700))
    })?;
    let amount = |cpu: &str, memory: &str| json!({ "kubernetes.io/batch-cpu": cpu, "kubernetes.io/batch-memory": memory });
    let resources = json!({ "requests": amount("500", "256Mi"), "limits": amount("500", "256Mi") });
    let pod = Pod::start(&cluster, "batch", &Spec::batch(resources), &["pause"])?;
    let value = |controller: &str, file: &str, container: bool| {
        let mut directory = cluster.directory(controller, &pod.path())?;
        if container {
            directory.push(&pod.container);
        }
        let text = fs::read_to_string(directory.join(file));
        anyhow::Ok(text.with_context(|| format!("no {file} in {}", directory.display()))?.trim().to_owned())
    };
    for container in [true, false] {
        let expected: Vec<(&str, &str, &str)> = if cluster.is_v2()? {
            // 512 shares, by the runtimes' current conversion (runc 1.3.2 and crun 1.23).
            vec![
                ("cpu", "cpu.weight", "59"),
                ("cpu", "cpu.max", "50000 100000"),
                ("memory", "memory.max", "268435456"),
            ]
        } else {
            vec![
                ("cpu", "cpu.shares", "512"),
                ("cpu", "cpu.cfs_quota_us", "50000"),
                ("memory", "memory.limit_in_bytes", "268435456"),
            ]
        };
        for (controller, file, expected) in expected {
            let mut found = String::new();
            wait_for(&format!("{file} is {expected}"), || {
                found = value(controller, file, container)?;
                Ok(found == expected)
            })
            .with_context(|| format!("it is {found}; {}", citizen.log()))?;
            println!("{} {file} = {found}", if container { "container" } else { "pod" });
        }
    }
    // Whoever sets something else is overruled, and at the end the owner's value is back.
    let shares = cluster.directory("cpu", &pod.path())?.join(&pod.container).join("cpu.shares");
    if shares.exists() {
        fs::write(&shares, "2")?;
        wait_for(
            "what somebody else wrote is put right",
            || Ok(fs::read_to_string(&shares)?.trim() == "512"),
        )
        .with_context(|| citizen.log())?;
    }
    Ok(())
}

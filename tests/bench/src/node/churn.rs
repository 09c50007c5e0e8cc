//! Very many pods that come and go, on a node without a kubelet: their directories are made here.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use enforcer_rig::{
    cluster::Cluster,
    sandbox::{Group, Sandbox},
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Args, start_agent, wait_for_pods, watch};
use crate::objects::{Objects, pod};

const NODE: &str = "enforcer-bench-churn";

pub fn run(args: &Args, cluster: &Cluster) -> Result<Value> {
    eprintln!("making {} pods", args.pods);
    let sandbox = Sandbox::new("enforcer-bench")?;
    let objects = Objects::of(cluster)?;
    objects.make_nodes([NODE.to_owned()].into_iter())?;
    let mut population = Population::new(&sandbox, &objects, args.pods)?;
    let directory = tempfile::Builder::new().prefix("enforcer-bench-").tempdir()?;
    // A sandbox and a container, in two hierarchies, and some that are being removed.
    let limits = format!(
        "limits:\n  pods: {0}\n  victims: {1}\n  cgroups: {2}\n",
        args.pods * 2,
        args.pods * 3 / 4,
        args.pods * 8
    );
    let mut agent = start_agent(cluster, NODE, directory.path(), &limits)?;
    wait_for_pods(&mut agent, args.pods)?;
    eprintln!(
        "{} pods, {} come or go per second: watching the agent for {} s",
        args.pods, args.changes, args.seconds
    );
    let ends = AtomicBool::new(false);
    let (figures, changes) = thread::scope(|scope| {
        let changing = scope.spawn(|| population.change(args.changes, &ends));
        let figures = watch(&mut agent, args.seconds);
        ends.store(true, Relaxed);
        (figures, changing.join())
    });
    let changes = changes.map_err(|_| anyhow::anyhow!("BUG: whoever changes pods panicked"))??;
    let mut figures = figures?;
    figures["changes_per_second"] = json!(changes);
    agent.end(None)?;
    Ok(figures)
}

/// All pods that there are, oldest first.
struct Population<'a> {
    objects: &'a Objects,
    /// Below it lies what kubelet's root is elsewhere.
    root: Group,
    pods: VecDeque<Member>,
    made: usize,
}

struct Member {
    name: String,
    /// Children first.
    directories: Vec<PathBuf>,
}

impl<'a> Population<'a> {
    fn new(sandbox: &Sandbox, objects: &'a Objects, count: usize) -> Result<Self> {
        let root = sandbox.memory_group("kubepods", 1024)?;
        for directory in root.directories() {
            fs::create_dir_all(directory.join("burstable"))?;
            fs::create_dir_all(directory.join("besteffort"))?;
        }
        let mut population = Self { objects, root, pods: VecDeque::new(), made: count };
        let all = (0..count).map(object).collect::<Result<Vec<_>>>()?;
        for made in objects.make_pods(all)? {
            population.run(&made)?;
        }
        Ok(population)
    }

    /// What kubelet and the runtime would do.
    fn run(&mut self, pod: &Pod) -> Result<()> {
        let name = pod.metadata.name.clone().context("a pod without a name")?;
        let uid = pod.metadata.uid.as_ref().context("a pod without a UID")?;
        let is_batch =
            pod.metadata.labels.as_ref().is_some_and(|labels| labels["koordinator.sh/qosClass"] == "BE");
        let class = if is_batch { "besteffort" } else { "burstable" };
        // Any 64 hexadecimal digits do.
        let id = |first: char| format!("{first}{:0>63}", uid.replace('-', ""));
        let mut directories = Vec::new();
        for root in self.root.directories() {
            let directory = root.join(class).join(format!("pod{uid}"));
            for child in [directory.join(id('a')), directory.join(id('c'))] {
                fs::create_dir_all(&child).with_context(|| format!("cannot make {}", child.display()))?;
                directories.push(child);
            }
            directories.push(directory);
        }
        self.pods.push_back(Member { name: name.clone(), directories });
        self.objects.set_pod_status(
            &name,
            &json!({
                "phase": "Running",
                "qosClass": if is_batch { "BestEffort" } else { "Burstable" },
                "containerStatuses": [{
                    "name": "main", "image": "none", "imageID": "", "ready": true, "restartCount": 0,
                    "containerID": format!("containerd://{}", id('c')), "state": { "running": {} },
                }],
            }),
        )
    }

    /// One goes, one comes, by turns, so many per second, until it ends. Returns how many it really were.
    fn change(&mut self, per_second: u32, ends: &AtomicBool) -> Result<f64> {
        let begun = Instant::now();
        let mut changes = 0u32;
        while !ends.load(Relaxed) {
            if changes.is_multiple_of(2) {
                let oldest = self.pods.pop_front().context("no pod is left")?;
                self.objects.delete_pod(&oldest.name)?;
                oldest.remove()?;
            } else {
                let made = self.objects.make_pods(vec![object(self.made)?])?;
                self.made += 1;
                self.run(made.first().context("BUG: one pod was made")?)?;
            }
            changes += 1;
            let next = begun + Duration::from_secs(1) * changes / per_second.max(1);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(f64::from(changes) / begun.elapsed().as_secs_f64())
    }
}

impl Member {
    fn remove(&self) -> Result<()> {
        for directory in &self.directories {
            fs::remove_dir(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        Ok(())
    }
}

/// LS and batch by turns.
fn object(place: usize) -> Result<Pod> {
    let name = format!("{NODE}-{place}");
    let is_batch = place.is_multiple_of(2);
    let (class, resources) = if is_batch {
        let amount = json!({ "kubernetes.io/batch-cpu": "500", "kubernetes.io/batch-memory": "256Mi" });
        ("BE", json!({ "requests": amount, "limits": amount }))
    } else {
        ("LS", json!({ "requests": { "cpu": "10m", "memory": "16Mi" } }))
    };
    let mut spec = json!({ "containers": [{ "name": "main", "image": "none", "resources": resources }] });
    if is_batch {
        spec["priorityClassName"] = json!("koord-batch");
    }
    pod(&name, NODE, &json!({ "koordinator.sh/qosClass": class }), &spec)
}

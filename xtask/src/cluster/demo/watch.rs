//! Follows the machine, the batch pods and the agent during a phase.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use enforcer_rig::{client::Report, cluster::Cluster, sandbox::cpu_time};
use serde::Serialize;

use super::{lent::Lent, machine::Ticks, stage::Measured};
use crate::demo::status::Status;

/// kubelet's directory for pods without cpu and memory, which batch pods are to it. It goes on counting when a pod ends.
const BATCH_PODS: &str = "kubepods/besteffort";

/// One of these.
#[derive(Debug)]
pub struct Watch {
    begun: Instant,
    cpus: usize,
    batch_pods: PathBuf,
    points: Vec<Point>,
    explanation: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    at_seconds: f64,
    machine: Ticks,
    be_cpu_seconds: f64,
    hold: Option<Hold>,
}

/// What the agent does to BE.
#[derive(Clone, Copy, Debug)]
struct Hold {
    is_held_back: bool,
    limit_cores: Option<f64>,
}

/// Half a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// After the measurement began.
    pub at_seconds: f64,
    pub node_cores: f64,
    pub be_cores: f64,
    /// What quotas of the agent's leave those pods that have one.
    pub limit_cores: Option<f64>,
}

impl Watch {
    /// Begins now.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let v2 = cluster.cgroups()?.into_iter().next().context("no cgroup hierarchy is mounted")?;
        let mut watch = Self {
            begun: Instant::now(),
            cpus: std::thread::available_parallelism()?.get(),
            batch_pods: v2.join(BATCH_PODS),
            points: Vec::new(),
            explanation: None,
        };
        watch.look(None)?;
        Ok(watch)
    }

    /// Looks. `status`: what the agent says, where one runs.
    pub fn look(&mut self, status: Option<Status>) -> Result<()> {
        self.points.push(Point {
            at_seconds: self.begun.elapsed().as_secs_f64(),
            machine: Ticks::now()?,
            be_cpu_seconds: self.be_cpu_time()?.as_secs_f64(),
            hold: status.as_ref().map(Hold::of),
        });
        self.explanation = status.map(|status| status.explanation);
        Ok(())
    }

    /// None before there was a batch pod.
    fn be_cpu_time(&self) -> Result<Duration> {
        if self.batch_pods.exists() { cpu_time(&self.batch_pods) } else { Ok(Duration::ZERO) }
    }

    /// All of it since `warm_up`, in seconds.
    pub fn measured(
        self,
        client: Report,
        lent: Lent,
        warm_up: f64,
        excerpt: Option<String>,
    ) -> Result<Measured> {
        let counted: Vec<Point> =
            self.points.iter().copied().filter(|point| point.at_seconds >= warm_up - 0.1).collect();
        let (first, last) = (counted.first().context("no look")?, counted.last().context("no look")?);
        let holds: Vec<Hold> = counted.iter().filter_map(|point| point.hold).collect();
        let held_back = holds.iter().filter(|hold| hold.is_held_back).count();
        let whole = self.sample(first, last, warm_up);
        Ok(Measured {
            client,
            node_cores: whole.node_cores,
            be_cores: whole.be_cores,
            lent,
            held_back_ratio: (!holds.is_empty()).then(|| held_back as f64 / holds.len() as f64),
            explanation: self.explanation.clone(),
            samples: counted.windows(2).map(|pair| self.sample(&pair[0], &pair[1], warm_up)).collect(),
            excerpt,
        })
    }

    fn sample(&self, from: &Point, to: &Point, warm_up: f64) -> Sample {
        Sample {
            at_seconds: to.at_seconds - warm_up,
            node_cores: to.machine.cores_since(from.machine, self.cpus),
            be_cores: (to.be_cpu_seconds - from.be_cpu_seconds) / (to.at_seconds - from.at_seconds),
            limit_cores: to.hold.and_then(|hold| hold.limit_cores),
        }
    }
}

impl Hold {
    fn of(status: &Status) -> Self {
        let batch = || status.groups.iter().filter(|group| group.class == "BE");
        let limits: Vec<f64> = batch().filter_map(|group| group.limit_cores).collect();
        Self {
            is_held_back: batch().any(|group| group.restraint.is_some()),
            limit_cores: (!limits.is_empty()).then(|| limits.iter().sum()),
        }
    }
}

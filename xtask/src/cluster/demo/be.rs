//! The best-effort work: real Spark, or a bad neighbour of the rig's.

use anyhow::{Context as _, Result};
use clap::{ValueEnum, builder::PossibleValue};
use enforcer_rig::{
    antagonist::Antagonist,
    cluster::{Cluster, WORKLOAD_IMAGE},
};
use serde_json::json;

use super::{
    objects::{BATCH_NAMESPACE, Pod},
    spark::{Distribution, Job},
};

/// Of an antagonist's pod.
const ANTAGONIST: &str = "app=demo-be";

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Be {
    Spark,
    Builtin(Antagonist),
}

impl ValueEnum for Be {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Spark, Self::Builtin(Antagonist::MemoryStream), Self::Builtin(Antagonist::CpuSpin)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Spark => Some(PossibleValue::new("spark").help("Spark: transitive closure of a graph")),
            Self::Builtin(antagonist) => antagonist.to_possible_value(),
        }
    }
}

impl Be {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spark => "spark",
            Self::Builtin(antagonist) => antagonist.name(),
        }
    }

    /// What LS is promised, times its p99 alone. The streamer hurts by a little more than that; what the others do must stay
    /// within the promise of Koordinator's tutorial, or squeezing would be a bug.
    pub const fn promise(self) -> f64 {
        match self {
            Self::Builtin(Antagonist::MemoryStream) => 1.25,
            Self::Spark | Self::Builtin(_) => 2.0,
        }
    }

    /// What its pods request, in cores.
    pub const CORES: f64 = 0.7;

    /// The labels of its pods.
    pub const fn selector(self) -> &'static str {
        match self {
            Self::Spark => Job::PODS,
            Self::Builtin(_) => ANTAGONIST,
        }
    }
}

/// Some that runs. It is deleted when dropped.
#[derive(Debug)]
pub enum Work<'a> {
    Spark(Job<'a>),
    Antagonist(AntagonistPod<'a>),
}

impl<'a> Work<'a> {
    /// Starts it, and waits until it runs. `spark`: where that is from, if it is Spark.
    pub fn start(be: Be, cluster: &'a Cluster, spark: Option<&Distribution>) -> Result<Self> {
        match be {
            Be::Spark => Ok(Self::Spark(Job::submit(cluster, spark.context("BUG: no Spark")?)?)),
            Be::Builtin(antagonist) => Ok(Self::Antagonist(AntagonistPod::start(cluster, antagonist)?)),
        }
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&self) -> Result<bool> {
        match self {
            Self::Spark(job) => job.is_running(),
            Self::Antagonist(pod) => pod.is_running(),
        }
    }
}

/// A batch pod with an antagonist on every CPU.
#[derive(Debug)]
pub struct AntagonistPod<'a> {
    cluster: &'a Cluster,
}

impl<'a> AntagonistPod<'a> {
    fn start(cluster: &'a Cluster, antagonist: Antagonist) -> Result<Self> {
        let threads = std::thread::available_parallelism()?.to_string();
        let (label, value) = ANTAGONIST.split_once('=').context("BUG: no label")?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": antagonist.name(),
                "namespace": BATCH_NAMESPACE,
                "labels": { label: value, "koordinator.sh/qosClass": "BE" },
            },
            "spec": {
                "priorityClassName": "koord-batch",
                "schedulerName": "koord-scheduler",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": WORKLOAD_IMAGE,
                    "imagePullPolicy": "Never",
                    "args": ["antagonist", antagonist.name(), "--threads", threads],
                    // As much as Spark's pods ask for, and without a limit as they are.
                    "resources": {
                        "requests": { "kubernetes.io/batch-cpu": "700", "kubernetes.io/batch-memory": "1Gi" },
                        "limits": { "kubernetes.io/batch-memory": "1Gi" },
                    },
                }],
            },
        });
        // Before it is known whether it runs: it may come later.
        let pod = Self { cluster };
        Pod::make(cluster, &object, BATCH_NAMESPACE, ANTAGONIST)?;
        Ok(pod)
    }

    fn is_running(&self) -> Result<bool> {
        let pods = Pod::all(self.cluster, BATCH_NAMESPACE, ANTAGONIST)?;
        Ok(pods.iter().any(|pod| pod.phase == "Running"))
    }
}

impl Drop for AntagonistPod<'_> {
    fn drop(&mut self) {
        if let Err(err) = Pod::delete_all(self.cluster, BATCH_NAMESPACE, ANTAGONIST) {
            println!("the antagonist's pod stays: {err:#}");
        }
    }
}

//! What was asked for: the groups, their classes and objectives.

mod file;
mod kubernetes;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    cgroup::pattern::Pattern,
    model::{Learned, Levers, Signal},
    units::{Factor, MilliCores, Share},
};

pub use self::kubernetes::{Eviction, Kubernetes, Mode, Suppression, slo_of_annotation};

/// The commented example that `enforcer agent --print-policy` prints.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// What a group is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Latency-sensitive: may be promised something.
    LS,
    /// Best-effort: may be held back.
    BE,
    /// Keeps the node going: measured, and neither.
    SYSTEM,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LS => "LS",
            Self::BE => "BE",
            Self::SYSTEM => "SYSTEM",
        })
    }
}

/// Shorter objectives are below what the histograms can tell, longer ones above it.
pub const OBJECTIVE: std::ops::RangeInclusive<Duration> = Duration::from_micros(10)..=Duration::from_secs(8);

/// A smaller share is below what one tick can tell, and a larger one promises nothing.
pub const STALLED: std::ops::RangeInclusive<Share> = Share { millionths: 100 }..=Share::percent(50);
/// What may be learned of it. A group that never stalls without BE is promised the least: what comes on top within a second
/// is a millisecond then, which is a stall or two.
pub const LEARNED_STALL: std::ops::RangeInclusive<Share> = Share { millionths: 1_000 }..=*STALLED.end();

/// What an LS group was promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slo {
    /// At most 1 % of requests take longer from their first byte to their response's first byte.
    pub request_latency_p99: Option<Duration>,
    /// At most 1 % of waits are longer from runnable to running.
    pub run_queue_wait_p99: Option<Duration>,
    /// At most so much of the time tasks stall until memory has been made free.
    pub memory_stall: Option<Share>,
    /// The objective is to be learned: so many times what it is without BE. Until that is known there is none.
    pub request_latency_auto: Option<Factor>,
    pub run_queue_wait_auto: Option<Factor>,
    pub memory_stall_auto: Option<Factor>,
}

/// What was promised of one signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// At most 1 % take longer.
    P99(Duration),
    /// At most so much of the time.
    Share(Share),
}

impl Promise {
    /// What was learned of one signal.
    pub fn learned(learned: Learned, signal: Signal) -> Option<Self> {
        match signal {
            Signal::RequestLatency => learned.request_latency.map(Self::P99),
            Signal::RunQueueWait => learned.run_queue_wait.map(Self::P99),
            Signal::MemoryStall => learned.memory_stall.map(Self::Share),
        }
    }

    /// In seconds, where it is a duration.
    pub fn seconds(self) -> Option<f64> {
        match self {
            Self::P99(duration) => Some(duration.as_secs_f64()),
            Self::Share(_) => None,
        }
    }
}

impl Slo {
    /// What was promised of one signal.
    pub fn promise(self, signal: Signal) -> Option<Promise> {
        match signal {
            Signal::RequestLatency => self.request_latency_p99.map(Promise::P99),
            Signal::RunQueueWait => self.run_queue_wait_p99.map(Promise::P99),
            Signal::MemoryStall => self.memory_stall.map(Promise::Share),
        }
    }

    /// The duration that was promised of one signal.
    pub fn threshold(self, signal: Signal) -> Option<Duration> {
        match self.promise(signal)? {
            Promise::P99(threshold) => Some(threshold),
            Promise::Share(_) => None,
        }
    }

    /// What is to be learned of one signal.
    pub const fn auto(self, signal: Signal) -> Option<Factor> {
        match signal {
            Signal::RequestLatency => self.request_latency_auto,
            Signal::RunQueueWait => self.run_queue_wait_auto,
            Signal::MemoryStall => self.memory_stall_auto,
        }
    }

    /// Promises what was learned of one signal.
    pub fn set(&mut self, signal: Signal, learned: Promise) {
        match (signal, learned) {
            (Signal::RequestLatency, Promise::P99(p99)) => self.request_latency_p99 = Some(p99),
            (Signal::RunQueueWait, Promise::P99(p99)) => self.run_queue_wait_p99 = Some(p99),
            (Signal::MemoryStall, Promise::Share(share)) => self.memory_stall = Some(share),
            _ => debug_assert!(false, "{learned:?} is no objective of {signal}"),
        }
    }
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    /// What groups of the same kind share, such as the pods of a job: they are tried and held back together, and what is
    /// learned of one holds for the next.
    pub workload: String,
    pub class: Class,
    /// Empty for a pod, whose directories are known by its UID.
    #[serde(skip)]
    pub patterns: Vec<Pattern>,
    /// Empty for all but LS.
    pub slo: Slo,
    /// CPU that a BE group keeps under any squeeze; unused for others.
    pub floor: MilliCores,
    /// What a BE group may be held back with, where it works; unused for others.
    pub levers: Levers,
}

impl Group {
    /// Whether its requests are measured, and who ran while it waited. That takes a row in the probes' tables: a pod has one
    /// only if something is promised to it.
    pub fn is_victim(&self) -> bool {
        self.class == Class::LS && (!self.patterns.is_empty() || self.slo != Slo::default())
    }
}

/// A checked policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub groups: Vec<Group>,
    /// For the pods of a node that Kubernetes manages.
    pub kubernetes: Kubernetes,
    /// Directories that can be told apart at once.
    pub cgroups_max: u32,
    /// What agent, guardian and probes may cost, of the node's CPU time.
    pub overhead: Share,
    /// CPUs of the node that it was checked for.
    pub cpus: u32,
}

/// What is wrong with a policy, where, and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}; `enforcer agent --print-policy` prints an example")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}:{line}: {what}")]
    Wrong { path: PathBuf, line: u64, what: String },
}

/// Reads the text of a policy.
///
/// # Errors
/// [`Error::Unreadable`].
pub fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })
}

impl Policy {
    /// Checks the text of a policy that came from `path`, for a node with `cpus` CPUs.
    ///
    /// # Errors
    /// [`Error::Wrong`], naming the line and the cure.
    pub fn parse(text: &str, path: &Path, cpus: u32) -> Result<Self, Error> {
        file::parse(text, cpus).map_err(|file::Wrong { line, what }| Error::Wrong {
            path: path.to_owned(),
            line,
            what,
        })
    }
}

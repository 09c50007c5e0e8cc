//! What the agent knows at one moment.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    signal::{in_flight::InFlight, tally::Tally},
    units::{MilliCores, Share},
};

/// Which group. Places of groups that went are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub usize);

/// One look at the node. Groups are in their places; `None` means unknown, never zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since the agent started.
    pub taken_at: Duration,
    /// Share of the node's CPU time that the hypervisor gave to others since the last snapshot.
    pub steal: Option<f64>,
    /// CPUs that the cluster's operators leave BE, by use; `None`: no such rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub be_cores_max: Option<f64>,
    pub groups: Vec<GroupSnapshot>,
    /// Who ran while LS groups waited for a CPU since they were asked last; told only of those that had slow ones lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blame: Vec<Blame>,
}

impl Snapshot {
    /// A group's part. One that is not there says nothing.
    pub fn group(&self, id: GroupId) -> &GroupSnapshot {
        static NOTHING: GroupSnapshot = GroupSnapshot {
            cpu_cores: None,
            cpu_waits: None,
            requests: None,
            in_flight: None,
            waits: None,
            memory_stalls: None,
            memory_bytes: None,
            memory_user: None,
            throttled: None,
            one_in: None,
            levers: Levers(0),
            learned: Learned { request_latency: None, run_queue_wait: None, memory_stall: None },
        };
        self.groups.get(id.0).unwrap_or(&NOTHING)
    }
}

/// Time that tasks of one group waited for a CPU while somebody ran there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blame {
    pub victim: GroupId,
    pub culprit: Culprit,
    pub waited: Duration,
}

/// Who ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Culprit {
    Group(GroupId),
    /// Tasks that belong to no group of the policy.
    Other,
    /// Nobody: the CPU was on its way out of idle.
    Idle,
    /// The wait was longer than the CPU's memory.
    Unattributed,
}

/// One group since the last snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    /// CPUs' worth of time used. `None`: no cgroup of the group exists, or none could be given a slot.
    pub cpu_cores: Option<f64>,
    /// Tasks that waited for a CPU, on average; a wait counts when it ends. `None`: as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_waits: Option<f64>,
    /// Requests answered or overdue, and how many of them slower than the objective. `None`: not measured, or nothing
    /// promised.
    pub requests: Option<Tally>,
    /// Where only a part of the requests are looked at, and counted: one of so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_in: Option<u32>,
    /// Requests that wait for an answer. `None`: not measured.
    #[serde(default)]
    pub in_flight: Option<InFlight>,
    /// Waits for a CPU, likewise.
    pub waits: Option<Tally>,
    /// Milliseconds, and how many of them tasks were stalled for want of memory, in units of the objective: see
    /// [`crate::signal::memory::StallCounter`]. `None`: not measured, or nothing promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_stalls: Option<Tally>,
    /// Memory in use, when it was looked at last. `None`: the group has no directory with a memory controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// LS groups: who is likely to use the memory that it stalled for in the last second. `None`: it did not, or nobody
    /// stands out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_user: Option<GroupId>,
    /// Share of the last second in which the group's own quota kept it from running. `None`: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<f64>,
    /// What the group can be held back with.
    #[serde(default, skip_serializing_if = "Levers::is_none")]
    pub levers: Levers,
    /// The objectives that the policy leaves to be learned.
    #[serde(default, skip_serializing_if = "Learned::is_none")]
    pub learned: Learned,
}

/// What counts as slow, or as too much, as far as it was learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_latency: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_queue_wait: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_stall: Option<Share>,
}

impl Learned {
    pub const fn is_none(&self) -> bool {
        self.request_latency.is_none() && self.run_queue_wait.is_none() && self.memory_stall.is_none()
    }
}

/// Levers that work on a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Levers(u8);

impl Levers {
    #[must_use]
    pub const fn with(self, lever: Lever) -> Self {
        Self(self.0 | 1 << lever as u8)
    }

    /// All of them.
    pub const ALL: Self = Self((1 << Lever::ALL.len()) - 1);

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub const fn has(self, lever: Lever) -> bool {
        self.0 & 1 << lever as u8 != 0
    }

    pub const fn is_none(&self) -> bool {
        self.0 == 0
    }
}

/// What an objective is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    RequestLatency,
    RunQueueWait,
    MemoryStall,
}

impl Signal {
    pub const ALL: [Self; 3] = [Self::RequestLatency, Self::RunQueueWait, Self::MemoryStall];

    /// A fixed word for metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::RequestLatency => "request_latency",
            Self::RunQueueWait => "run_queue_wait",
            Self::MemoryStall => "memory_stall",
        }
    }

    /// What the group's snapshot says of it.
    pub const fn of(self, group: &GroupSnapshot) -> Option<Tally> {
        match self {
            Self::RequestLatency => group.requests,
            Self::RunQueueWait => group.waits,
            Self::MemoryStall => group.memory_stalls,
        }
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RequestLatency => "request latency",
            Self::RunQueueWait => "run-queue wait",
            Self::MemoryStall => "memory stall",
        })
    }
}

/// How thick slow ones may come before it is news at once: one per `interval`, and so much ahead of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub interval: Duration,
    pub burst: Duration,
}

/// The kernel's bounds of a period, in us (`max_cfs_runtime` and friends in kernel/sched/core.c).
pub const PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// The smallest quota that the kernel accepts, in us.
pub const QUOTA_MIN_US: u64 = 1_000;

/// So many microseconds of CPU time per period; no quota: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLimit {
    pub quota_us: Option<u64>,
    pub period_us: u64,
}

impl CpuLimit {
    /// A mean of so much CPU, in periods of `period_us`, within the kernel's bounds.
    pub fn of(mean: MilliCores, period_us: u64) -> Self {
        let period_us = period_us.clamp(*PERIOD_US.start(), *PERIOD_US.end());
        let quota_us = (u64::from(mean.0) * period_us / 1000).max(QUOTA_MIN_US);
        Self { quota_us: Some(quota_us), period_us }
    }

    /// CPUs' worth of time, `None` without a limit.
    pub fn cores(self) -> Option<f64> {
        Some(self.quota_us? as f64 / self.period_us as f64)
    }
}

impl std::fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.quota_us {
            Some(quota_us) => write!(f, "{quota_us} {}", self.period_us),
            None => write!(f, "max {}", self.period_us),
        }
    }
}

/// A way to restrain BE, quickest to undo first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lever {
    /// Stops the group within microseconds. For tens of milliseconds only: a stopped task may hold what LS waits for.
    Freeze,
    /// Runs only where nobody else wants the CPU.
    Idle,
    /// A mean of CPU time.
    Quota,
    /// Fewer CPUs.
    Cpuset,
    /// Less memory: what is above is reclaimed, and tasks that want more are slowed down.
    Memory,
}

impl Lever {
    pub const ALL: [Self; 5] = [Self::Freeze, Self::Idle, Self::Quota, Self::Cpuset, Self::Memory];

    /// A fixed word for metric labels and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Idle => "idle",
            Self::Quota => "quota",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
        }
    }
}

/// What holds one BE group back. By default nothing does: it has what its owner gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restraint {
    #[serde(skip_serializing_if = "is_false")]
    pub frozen: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub idle: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<CpuLimit>,
    /// Runs on so many CPUs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Uses so many bytes of memory only, shared equally by its directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Restraint {
    /// Only a quota.
    pub const fn quota(limit: CpuLimit) -> Self {
        Self { frozen: false, idle: false, quota: Some(limit), cpus: None, memory_high: None }
    }

    /// Whether a lever is pulled.
    pub const fn uses(&self, lever: Lever) -> bool {
        match lever {
            Lever::Freeze => self.frozen,
            Lever::Idle => self.idle,
            Lever::Quota => self.quota.is_some(),
            Lever::Cpuset => self.cpus.is_some(),
            Lever::Memory => self.memory_high.is_some(),
        }
    }

    /// Whether it takes CPU or memory away for longer than a moment, whoever else wants that or not.
    pub const fn takes_something(&self) -> bool {
        self.quota.is_some() || self.memory_high.is_some()
    }

    /// CPUs' worth of time that the quota leaves; `None` without one.
    pub fn cores(&self) -> Option<f64> {
        self.quota?.cores()
    }
}

/// A word that names no lever.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no lever: freeze, idle, quota, cpuset and memory are")]
pub struct NoLever(String);

impl std::str::FromStr for Lever {
    type Err = NoLever;

    fn from_str(text: &str) -> Result<Self, NoLever> {
        let found = Self::ALL.into_iter().find(|lever| lever.label() == text);
        found.ok_or_else(|| NoLever(text.to_owned()))
    }
}

impl std::fmt::Display for Restraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.frozen {
            parts.push("frozen".to_owned());
        }
        if self.idle {
            parts.push("idle".to_owned());
        }
        parts.extend(self.cores().map(|cores| format!("{cores:.2} cores")));
        parts.extend(self.cpus.map(|cpus| format!("on {cpus} CPUs")));
        parts.extend(self.memory_high.map(|bytes| format!("{} MiB", bytes >> 20)));
        f.write_str(&if parts.is_empty() { "free".to_owned() } else { parts.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milli_cores_become_a_quota_within_the_kernels_bounds() {
        for (milli_cores, period_us, expected) in [
            (200, 1_000_000, "200000 1000000"),
            (1_500, 100_000, "150000 100000"),
            (1, 100_000, "1000 100000"),
            (100, 5_000_000, "100000 1000000"),
        ] {
            assert_eq!(CpuLimit::of(MilliCores(milli_cores), period_us).to_string(), expected);
        }
    }
}

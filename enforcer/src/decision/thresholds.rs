//! When BE is held back or evicted by use, as the cluster's operators decided.

use std::time::Duration;

/// By use. Defaults are Koordinator's (`pkg/util/sloconfig/nodeslo_config.go`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Nothing below acts without it.
    pub enable: bool,
    /// Of the node's CPUs, in percent: LS, the system and BE together may use so much.
    pub cpu_suppress_percent: i64,
    /// What BE keeps of them.
    pub cpu_suppress_min_percent: Option<i64>,
    /// Of the node's memory, in percent: from the first on BE is evicted until the second is reached.
    pub memory_evict_percent: i64,
    pub memory_evict_lower_percent: i64,
    /// Of the CPU that BE requests, in percent: less than the first gets it evicted until it is the second. `None`: off.
    pub satisfaction: Option<Satisfaction>,
}

/// When BE gets too little of the CPU that it was lent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Satisfaction {
    pub lower_percent: i64,
    pub upper_percent: i64,
    /// BE uses so much of what it is allowed, or wants no more.
    pub usage_percent: i64,
    pub window: Duration,
    /// What it is allowed is the node's batch-cpu rather than its real limit.
    pub by_allocatable: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            enable: false,
            cpu_suppress_percent: 65,
            cpu_suppress_min_percent: None,
            memory_evict_percent: 70,
            memory_evict_lower_percent: 68,
            satisfaction: None,
        }
    }
}

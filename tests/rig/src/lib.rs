//! Workloads and cgroups to try enforcer on: a latency-sensitive server, an open-loop client, antagonists, and a corner of
//! the cgroup tree that is removed afterwards; and what all who use them need to run them and to show what was measured.
//!
//! Shares no code with what it measures, on purpose.

pub mod address;
pub mod agent;
pub mod antagonist;
pub mod arrivals;
pub mod cast;
pub mod client;
pub mod cluster;
pub mod cpuset;
pub mod hierarchy;
pub mod interrupt;
pub mod loss;
pub mod measured;
pub mod page;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod spread;
pub mod wait;
pub mod work;

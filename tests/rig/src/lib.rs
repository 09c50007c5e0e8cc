//! Workloads and cgroups to try enforcer on: a latency-sensitive server, an open-loop client, antagonists, and a corner of
//! the cgroup tree that is removed afterwards.
//!
//! Shares no code with what it measures, on purpose.

pub mod address;
pub mod antagonist;
pub mod client;
pub mod process;
pub mod protocol;
pub mod sandbox;
pub mod server;
pub mod work;

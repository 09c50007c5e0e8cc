//! enforcer lets batch work (best-effort, BE) use what latency-sensitive services (LS) leave idle, without hurting them.
//!
//! ```text
//! kernel --> signal --> decision --> actuation --> report
//!    ^                                  |
//!    +-------- the next snapshot -------+         cgroup --> which directory is whose
//! ```
//!
//! The modules, in reading order; no stage knows the name of a stage to its right. See ARCHITECTURE.md.
#![deny(unsafe_code)]
// Denied where it matters: see clippy.toml.

pub mod agent;
pub mod guardian;
pub mod preflight;
pub mod record;
pub mod urgency;

pub mod clock;

pub mod cgroup;
pub mod kernel;

pub mod model;
pub mod places;
pub mod policy;
pub mod units;

pub mod signal;

pub mod cluster;

pub mod admission;

pub mod decision;

pub mod actuation;

pub mod report;

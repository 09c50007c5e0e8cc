//! The kernel side, as seen from user space: host facts, the loaded probes, their counters.

pub mod btf;
pub mod cost;
pub mod counters;
mod mapped;
pub mod onsets;
pub mod probes;
pub mod slots;
pub mod support;

//! What the probes cost, by the kernel's own statistics.
//!
//! While they are on, every run of every BPF program of the node takes some ten nanoseconds longer: switch them on for
//! moments only.

use std::{os::fd::OwnedFd, time::Duration};

use aya::sys::{Stats, enable_stats};

use super::probes::Probes;

/// The kernel's statistics, on until dropped.
#[derive(Debug)]
pub struct Statistics(#[expect(dead_code, reason = "on while open")] OwnedFd);

impl Statistics {
    /// Switches them on.
    ///
    /// # Errors
    /// What the kernel says, in words: it wants 5.8 and `CAP_SYS_ADMIN`.
    pub fn on() -> Result<Self, String> {
        enable_stats(Stats::RunTime).map(Self).map_err(|err| err.io_error.to_string())
    }
}

/// Time that one program ran while statistics were on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTime {
    pub program: String,
    pub time: Duration,
}

impl Probes {
    /// Of all programs that are loaded.
    pub fn run_times(&self) -> Vec<RunTime> {
        let programs = self.programs();
        let known = programs.filter_map(|(name, program)| {
            Some(RunTime { program: name.to_owned(), time: program.info().ok()?.run_time() })
        });
        known.collect()
    }
}

//! What the agent itself costs.

use std::time::Duration;

use prometheus::proto::MetricFamily;

use super::sample::{counter, gauge, sample};

/// What the agent itself costs, from `/proc/self`.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub open_fds: u64,
    /// Seconds since the epoch.
    pub started_at: u64,
}

impl Process {
    /// This process now; unknown figures are missing rather than zero.
    pub fn read() -> Option<Self> {
        let me = procfs::process::Process::myself().ok()?;
        let stat = me.stat().ok()?;
        let ticks = procfs::ticks_per_second();
        Some(Self {
            cpu: Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks as f64),
            resident_bytes: stat.rss * procfs::page_size(),
            open_fds: me.fd_count().ok()? as u64,
            started_at: procfs::boot_time_secs().ok()? + stat.starttime / ticks,
        })
    }
}

/// The metrics that every exporter has.
pub fn families(process: &Process) -> [MetricFamily; 4] {
    [
        counter(
            "process_cpu_seconds_total",
            "CPU time that the agent used",
            [sample([], process.cpu.as_secs_f64())],
        ),
        gauge(
            "process_resident_memory_bytes",
            "Memory that the agent holds",
            [sample([], process.resident_bytes as f64)],
        ),
        gauge("process_open_fds", "Files that the agent has open", [sample([], process.open_fds as f64)]),
        gauge(
            "process_start_time_seconds",
            "When the agent started, since the epoch",
            [sample([], process.started_at as f64)],
        ),
    ]
}

//! How much of the node's time did the hypervisor give to others?

use procfs::{CurrentSI as _, KernelStats};

/// Differences of the `cpu` line of `/proc/stat`. Its resolution is 10 ms per CPU.
#[derive(Debug, Default)]
pub struct StealMeter {
    last: Option<(u64, u64)>,
}

impl StealMeter {
    /// The share stolen since the last call. `None` at the first, and where it cannot be told.
    pub fn read(&mut self) -> Option<f64> {
        let cpu = KernelStats::current().ok()?.total;
        let stolen = cpu.steal?;
        let all = cpu.user
            + cpu.nice
            + cpu.system
            + cpu.idle
            + cpu.iowait.unwrap_or_default()
            + cpu.irq.unwrap_or_default()
            + cpu.softirq.unwrap_or_default()
            + stolen;
        let (last_stolen, last_all) = self.last.replace((stolen, all))?;
        let elapsed = all.checked_sub(last_all).filter(|&ticks| ticks > 0)?;
        Some(stolen.saturating_sub(last_stolen) as f64 / elapsed as f64)
    }
}

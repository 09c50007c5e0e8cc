//! How busy the whole machine is.

use std::fs;

use anyhow::{Context as _, Result};

/// CPU time of all CPUs since boot, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    busy: u64,
    total: u64,
}

impl Ticks {
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::of(&text).context("/proc/stat is not understood")
    }

    fn of(text: &str) -> Option<Self> {
        let all = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times = all.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        // Time of guests is part of the user's.
        let &[user, nice, system, idle, io_wait, irq, soft_irq, steal, ..] = &times[..] else { return None };
        let busy = user + nice + system + irq + soft_irq;
        Some(Self { busy, total: busy + idle + io_wait + steal })
    }

    /// Cores that were busy from `earlier` on, of so many.
    pub fn cores_since(self, earlier: Self, cpus: usize) -> f64 {
        let share = (self.busy - earlier.busy) as f64 / (self.total - earlier.total).max(1) as f64;
        share * cpus as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_busy_while_it_is_neither_idle_nor_robbed() {
        let ticks = |text: &str| Ticks::of(text).unwrap();
        let earlier = ticks("cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 2\n");
        let later = ticks("cpu  140 0 110 830 10 0 0 10 70 0\n");
        assert!((later.cores_since(earlier, 2) - 1.0).abs() < 1e-9);
        assert_eq!(Ticks::of("cpu0 1 2 3\n"), None);
    }
}

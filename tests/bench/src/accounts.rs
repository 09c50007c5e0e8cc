//! Who used how much CPU time, by the kernel's accounts.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::sandbox::Group;

/// CPU time used so far, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Accounts {
    at: Instant,
    node: f64,
    ls: f64,
    be: f64,
}

/// CPU time used in a while, in cores.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// How long the while was.
    pub seconds: f64,
    pub node: f64,
    pub ls: f64,
    pub be: f64,
}

impl Accounts {
    pub fn read(ls: &Group, be: &Group) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            node: node_seconds(&fs::read_to_string("/proc/stat")?)?,
            ls: ls.cpu_time()?.as_secs_f64(),
            be: be.cpu_time()?.as_secs_f64(),
        })
    }

    pub fn usage_since(self, last: Self) -> Usage {
        let seconds = (self.at - last.at).as_secs_f64();
        Usage {
            seconds,
            node: (self.node - last.node) / seconds,
            ls: (self.ls - last.ls) / seconds,
            be: (self.be - last.be) / seconds,
        }
    }
}

impl Usage {
    /// By whoever is in neither group. The accounts are not read at the same instant and may not add up.
    pub fn others(self) -> f64 {
        (self.node - self.ls - self.be).max(0.0)
    }
}

/// User, nice, system, irq and softirq time of all CPUs.
fn node_seconds(stat: &str) -> Result<f64> {
    let line =
        stat.lines().find_map(|line| line.strip_prefix("cpu ")).context("/proc/stat has no cpu line")?;
    let ticks: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() >= 7, "/proc/stat has {} columns only", ticks.len());
    let used = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
    Ok(used / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_used() {
        let hz = rustix::param::clock_ticks_per_second() as f64;
        let stat = "cpu  10 20 30 9999 9999 40 50 9999 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert!((node_seconds(stat).unwrap() - 150.0 / hz).abs() < 1e-9);
    }
}

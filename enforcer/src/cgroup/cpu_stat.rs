//! How long a directory's own quota kept it from running: `cpu.stat`.

use std::{fs, path::Path, time::Duration};

use super::hierarchy::{Hierarchy, Mounts};

/// Time throttled since the directory was made, summed over CPUs. `None`: no quota can be set there, or it went.
pub fn throttled(hierarchy: Hierarchy, directory: &Path) -> Option<Duration> {
    parse(hierarchy, &fs::read_to_string(directory.join("cpu.stat")).ok()?)
}

/// CPU time used by everything at and below a path. `None`: unknown.
pub fn used(mounts: &Mounts, path: &Path) -> Option<Duration> {
    if let Some(v2) = &mounts.v2
        && let Ok(text) = fs::read_to_string(v2.join(path).join("cpu.stat"))
        && let Some(usec) = text.lines().find_map(|line| line.strip_prefix("usage_usec "))
    {
        return usec.trim().parse().ok().map(Duration::from_micros);
    }
    let v1 = mounts.v1_cpu.as_ref()?.join(path).join("cpuacct.usage");
    fs::read_to_string(v1).ok()?.trim().parse().ok().map(Duration::from_nanos)
}

fn parse(hierarchy: Hierarchy, text: &str) -> Option<Duration> {
    let (key, unit): (&str, fn(u64) -> Duration) = match hierarchy {
        Hierarchy::V2 => ("throttled_usec ", Duration::from_micros),
        Hierarchy::V1Cpu | Hierarchy::V1Cpuset | Hierarchy::V1Memory => {
            ("throttled_time ", Duration::from_nanos)
        }
    };
    let number = text.lines().find_map(|line| line.strip_prefix(key))?;
    number.trim().parse().ok().map(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_has_its_own_unit() {
        let v1 = "nr_periods 7\nnr_throttled 3\nthrottled_time 2500000\n";
        assert_eq!(parse(Hierarchy::V1Cpu, v1), Some(Duration::from_micros(2_500)));
        let v2 = "usage_usec 9\nthrottled_usec 2500\nnr_bursts 0\n";
        assert_eq!(parse(Hierarchy::V2, v2), Some(Duration::from_micros(2_500)));
        assert_eq!(parse(Hierarchy::V2, "usage_usec 9\n"), None, "no controller");
    }
}

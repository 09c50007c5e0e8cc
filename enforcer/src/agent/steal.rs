//! How much of the node's time did the hypervisor give to others?

use std::{fs::File, os::unix::fs::FileExt as _, time::Duration};

/// Differences of the first line of `/proc/stat`. Its resolution is 10 ms per CPU.
///
/// Read by hand: a parser of the whole file, which has a line per CPU and a number per interrupt, would cost more than
/// the rest of the tick.
#[derive(Debug, Default)]
pub struct StealMeter {
    file: Option<File>,
    last: Option<Ticks>,
    read_at: Duration,
    share: Option<f64>,
}

/// Over shorter stretches the counters' resolution would make one tick of theirs look like half of the node.
const STRETCH: Duration = Duration::from_millis(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    stolen: u64,
    all: u64,
}

impl StealMeter {
    /// The share stolen lately. `None` at the first call, and where it cannot be told.
    pub fn read(&mut self, now: Duration) -> Option<f64> {
        if now >= self.read_at + STRETCH {
            self.read_at = now;
            self.share = self.look();
        }
        self.share
    }

    /// The share stolen since the last look.
    fn look(&mut self) -> Option<f64> {
        if self.file.is_none() {
            self.file = Some(File::open("/proc/stat").ok()?);
        }
        let mut start = [0; 256];
        let length = self.file.as_ref()?.read_at(&mut start, 0).ok()?;
        let ticks = parse(std::str::from_utf8(&start[..length]).ok()?)?;
        let last = self.last.replace(ticks)?;
        let elapsed = ticks.all.checked_sub(last.all).filter(|&elapsed| elapsed > 0)?;
        Some(ticks.stolen.saturating_sub(last.stolen) as f64 / elapsed as f64)
    }
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guest time is part of user time.
fn parse(stat: &str) -> Option<Ticks> {
    let (line, _) = stat.split_once('\n')?;
    let mut all = 0;
    let mut stolen = None;
    for (place, number) in line.strip_prefix("cpu ")?.split_ascii_whitespace().take(8).enumerate() {
        let ticks: u64 = number.parse().ok()?;
        all += ticks;
        if place == 7 {
            stolen = Some(ticks);
        }
    }
    Some(Ticks { stolen: stolen?, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_number() {
        let stat = "cpu  120658 10 20448 803649 1512 5 291 112 7 0\ncpu0 1 2 3\n";
        assert_eq!(parse(stat), Some(Ticks { stolen: 112, all: 946_685 }));
        assert_eq!(parse("cpu  1 2 3 4\n"), None, "kernels before 2.6.11 have no steal");
    }
}

//! What can be seen of a BE group from outside: what limits it, and what it uses.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use enforcer_rig::{sandbox::Group, work::monotonic};

/// The files of a group, kept open.
pub struct Watch {
    /// Where a limit would show.
    limits: Vec<File>,
    usage: File,
}

/// One look.
pub struct Look {
    pub at: Duration,
    pub limits: String,
    /// CPU time used so far.
    pub used: Duration,
}

impl Watch {
    pub fn new(be: &Group) -> Result<Self> {
        let v2 = be.v2_directory().context("no v2 hierarchy to see CPU time in")?;
        let limits = be.lever_files().iter().map(|path| open(path)).collect::<Result<_>>()?;
        Ok(Self { limits, usage: open(&v2.join("cpu.stat"))? })
    }

    pub fn look(&self) -> Result<Look> {
        let mut limits = String::new();
        for file in &self.limits {
            limits.push_str(&read(file)?);
        }
        // Afterwards: who is interrupted in between must not date a limit too early.
        let at = monotonic();
        let stat = read(&self.usage)?;
        let microseconds = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let used = Duration::from_micros(microseconds.context("cpu.stat has no usage_usec")?.parse()?);
        Ok(Look { at, limits, used })
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read(file: &File) -> Result<String> {
    let mut bytes = [0; 512];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

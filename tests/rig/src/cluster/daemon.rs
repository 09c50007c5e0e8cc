//! A process that goes on when whoever started it ends.
//!
//! It is told from a later process with the same id by when it started, so that nobody else's process is ever ended.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

use crate::process::is_readable;

/// For a process to end. One that waits for a disk takes a while even to be killed.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_UP: Duration = Duration::from_millis(100);

/// One of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    pub name: String,
    /// What it runs, so that it can be started again.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub pid: u32,
    /// Ticks of the kernel's clock between its start and the process's.
    pub started_ticks: u64,
}

impl Daemon {
    /// The process that has this id now, and runs this.
    ///
    /// # Errors
    /// Where there is none.
    pub fn of(name: &str, program: PathBuf, arguments: Vec<String>, pid: u32) -> Result<Self> {
        let started_ticks = started_ticks(pid).with_context(|| format!("{name} has ended at once"))?;
        Ok(Self { name: name.to_owned(), program, arguments, pid, started_ticks })
    }

    /// Whether it still runs. One that is stopped does.
    pub fn is_running(&self) -> bool {
        started_ticks(self.pid) == Some(self.started_ticks)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where it has ended, or the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.open()?.with_context(|| format!("{} has ended", self.name))?;
        pidfd_send_signal(&process, signal).with_context(|| self.about(signal))
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// Where it does not.
    pub fn terminate(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Ends it without asking.
    ///
    /// # Errors
    /// Where the kernel refuses, or does not end it.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Ends it, unless it has ended.
    fn end(&self, signal: Signal) -> Result<()> {
        let Some(process) = self.open()? else { return Ok(()) };
        pidfd_send_signal(&process, signal).with_context(|| self.about(signal))?;
        let until = Instant::now() + PATIENCE;
        // Another signal, such as a second Ctrl-C, cuts each look short.
        while !is_readable(&process, LOOK_UP)? {
            ensure!(Instant::now() < until, "{} outlives {signal:?} by {PATIENCE:?}", self.name);
        }
        Ok(())
    }

    /// `None`: it has ended.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{} is no process id", self.pid))?;
        // Opened before it is looked at: whatever has its id later, the descriptor stays with the process that was seen.
        let process = pidfd_open(pid, PidfdFlags::empty());
        Ok(process.ok().filter(|_| self.is_running()))
    }

    fn about(&self, signal: Signal) -> String {
        format!("cannot send {signal:?} to {} (process {})", self.name, self.pid)
    }
}

/// When a process started. `None`: it has ended, even if nobody has waited for it yet.
fn started_ticks(pid: u32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// From the text of /proc/PID/stat. The second field, the name, may hold anything.
fn parse(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let has_ended = matches!(fields.next()?, "Z" | "X");
    // The third field was just taken; this is the 22nd.
    let started = fields.nth(18)?.parse().ok()?;
    (!has_ended).then_some(started)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_start_is_found_whatever_the_name_is() {
        let rest = "1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 8615 2 3";
        assert_eq!(parse(&format!("7 (sleep) S {rest}")), Some(8615));
        assert_eq!(parse(&format!("7 (a) S 1 (b) ) R {rest}")), Some(8615));
        assert_eq!(parse(&format!("7 (sleep) Z {rest}")), None);
    }

    #[test]
    fn one_is_ended_and_another_with_its_id_is_let_be() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let daemon = Daemon::of("sleep", "sleep".into(), vec!["60".to_owned()], child.id()).unwrap();
        let other = Daemon { started_ticks: daemon.started_ticks + 1, ..daemon.clone() };
        other.kill().unwrap();
        assert!(!other.is_running() && daemon.is_running());
        daemon.signal(Signal::STOP).unwrap();
        assert!(daemon.is_running());
        daemon.kill().unwrap();
        assert!(!daemon.is_running());
        daemon.kill().unwrap();
        assert!(daemon.signal(Signal::CONT).is_err());
        child.wait().unwrap();
    }
}

//! `enforcer guardian`: puts the owners' values back when the agent cannot.
//!
//! The agent holds a lock on the journal for as long as it lives, and renews a lease at every tick. Where the lock is
//! free, the agent has died in whatever way: what it left is restored, as its own next start would. Where the lease was
//! not renewed in time, the agent hangs or was stopped: its limits are taken back over its head, and it is told.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    actuation::{
        journal::{self, Journal, Restored},
        lease::Lease,
    },
    cgroup::hierarchy::Mounts,
    clock,
};

/// How often the guardian looks.
const LOOK: Duration = Duration::from_millis(50);

/// What the guardian was told on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub cgroup_root: PathBuf,
    pub state_dir: PathBuf,
    /// An agent that begins no tick for so long hangs.
    pub watchdog: Duration,
    /// End with the first agent, after having restored what it left.
    pub once: bool,
}

/// Guards until it is ended, or with `once` until the agent has. On SIGTERM and SIGINT it ends with the agent, too: whoever ends
/// both at once, as kubelet does with a pod's containers, must not be left with the limits of an agent that did not make it.
///
/// # Errors
/// Where the state directory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(guard(options))
}

/// If memory runs out, others are to be killed before the one who puts things right. Needs `CAP_SYS_RESOURCE`.
fn be_killed_last() {
    const FILE: &str = "/proc/self/oom_score_adj";
    if let Err(err) = std::fs::write(FILE, "-900") {
        tracing::debug!(%err, "{FILE} stays as it is: the guardian may be killed for want of memory");
    }
}

async fn guard(options: &Options) -> Result<()> {
    be_killed_last();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut once = options.once;
    let mounts = Mounts::below(&options.cgroup_root)?;
    std::fs::create_dir_all(&options.state_dir)
        .with_context(|| format!("cannot make {}", options.state_dir.display()))?;
    let lease = Lease::open(&options.state_dir)?;
    // The beat after which nothing was heard any more, once that was acted upon.
    let mut last_words = None;
    loop {
        if once && !options.state_dir.is_dir() {
            // Whoever took it away has no use for a new one, and nothing is written down any more.
            return Ok(());
        }
        match Journal::open(&options.state_dir) {
            Ok(mut journal) => {
                report("the agent died", journal.restore(&mounts)?);
                if once {
                    return Ok(());
                }
            }
            Err(journal::Error::Busy(_)) => {
                let beat = lease.beat()?;
                let is_late = clock::monotonic().saturating_sub(beat) > options.watchdog;
                if is_late && last_words != Some(beat) {
                    last_words = Some(beat);
                    lease.revoke()?;
                    report("the agent hangs", journal::restore_over_its_head(&options.state_dir, &mounts)?);
                }
            }
            Err(err) => return Err(err.into()),
        }
        tokio::select! {
            _ = terminate.recv() => once = true,
            _ = interrupt.recv() => once = true,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn report(why: &str, restored: Restored) {
    if restored.written > 0 {
        tracing::warn!(limits = restored.written, "{why}: its limits were taken off");
    }
    for err in restored.errors {
        tracing::error!(%err, "{why}, and a limit could not be restored; `enforcer restore` tries again");
    }
}

/// A guardian that the agent started for itself.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts one in a process group of its own, out of reach of a terminal's Ctrl-C.
    ///
    /// # Errors
    /// Where no process can be started.
    pub fn start(cgroup_root: &Path, state_dir: &Path, watchdog: Duration) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["guardian", "--once", "--watchdog", &humantime::format_duration(watchdog).to_string()]);
        command.arg("--cgroup-root").arg(cgroup_root).arg("--state-dir").arg(state_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().context("cannot start the guardian")?;
        Ok(Self { child })
    }

    /// Whether it is there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guardian {
    /// The agent has restored everything by now.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

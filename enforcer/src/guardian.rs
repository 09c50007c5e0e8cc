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
        lease::{GuardianCost, Lease},
    },
    cgroup::hierarchy::Mounts,
    clock,
};

/// How often the guardian looks.
const LOOK: Duration = Duration::from_millis(50);
/// How often it puts back what an agent that hangs has in force.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it tells what it costs.
const TELL: Duration = Duration::from_secs(1);

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

/// If memory runs out, the kernel is not to kill the one who puts things right. Needs `CAP_SYS_RESOURCE`.
///
/// Anything above the minimum would do most of the time only: the kernel passes over a process that it has killed already a
/// moment before that one's memory is free (`exit_mmap` sets `MMF_OOM_SKIP` before `tlb_finish_mmu`), and kills the next one.
fn never_be_killed_for_memory() {
    const FILE: &str = "/proc/self/oom_score_adj";
    if let Err(err) = std::fs::write(FILE, "-1000") {
        tracing::debug!(%err, "{FILE} stays as it is: the guardian may be killed for want of memory");
    }
}

async fn guard(options: &Options) -> Result<()> {
    never_be_killed_for_memory();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut is_told_to_end = false;
    let mut watch = Watch::new(options)?;
    // Want of memory, for instance, passes: whoever ends for it restores nothing.
    let mut failure = String::new();
    loop {
        let once = options.once || is_told_to_end;
        if once && !options.state_dir.is_dir() {
            // Whoever took it away has no use for a new one, and nothing is written down any more.
            return Ok(());
        }
        let failed = match watch.look() {
            Ok(Found::Dead(Ok(()))) if once => return Ok(()),
            // Nobody is left who could make it worse, and whoever told it may not wait for ever.
            Ok(Found::Dead(Err(err))) if is_told_to_end => return Err(err),
            Ok(Found::Dead(restored)) => restored.err(),
            Ok(Found::Alive) => None,
            Err(err) => Some(err),
        };
        let failed = failed.map_or_else(String::new, |err| format!("{err:#}"));
        if failed != failure && !failed.is_empty() {
            tracing::error!("{failed}; trying again");
        }
        failure = failed;
        tokio::select! {
            _ = terminate.recv() => is_told_to_end = true,
            _ = interrupt.recv() => is_told_to_end = true,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// What one look found.
enum Found {
    /// The journal had no owner: whether what was left in it is restored.
    Dead(Result<()>),
    Alive,
}

/// The agent, as seen from outside.
struct Watch<'a> {
    options: &'a Options,
    mounts: Mounts,
    lease: Lease,
    /// The beat after which nothing was heard any more, and when that was last acted upon.
    last_words: Option<(Duration, Duration)>,
    since: Duration,
    tell_at: Duration,
}

impl<'a> Watch<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let mounts = Mounts::below(&options.cgroup_root)?;
        std::fs::create_dir_all(&options.state_dir)
            .with_context(|| format!("cannot make {}", options.state_dir.display()))?;
        let lease = Lease::open(&options.state_dir)?;
        Ok(Self {
            options,
            mounts,
            lease,
            last_words: None,
            since: clock::monotonic(),
            tell_at: Duration::ZERO,
        })
    }

    /// Looks, and puts right what is to be.
    fn look(&mut self) -> Result<Found> {
        match Journal::open(&self.options.state_dir) {
            Ok(mut journal) => {
                let restored = journal.restore(&self.mounts).map_err(Into::into);
                return Ok(Found::Dead(restored.and_then(|restored| report("the agent died", restored))));
            }
            Err(journal::Error::Busy(_)) => {}
            Err(err @ journal::Error::Garbled { .. }) => return Ok(Found::Dead(Err(err.into()))),
            Err(err) => return Err(err.into()),
        }
        let (beat, now) = (self.lease.beat()?, clock::monotonic());
        self.tell_cost(now);
        if now.saturating_sub(beat) <= self.options.watchdog {
            return Ok(Found::Alive);
        }
        let acted_at = self.last_words.filter(|(words, _)| *words == beat).map(|(_, acted_at)| acted_at);
        // Stopped within a tick and let go on for a moment, it wrote the rest of that tick: no new beat tells of it.
        if acted_at.is_none_or(|acted_at| now >= acted_at + AGAIN) {
            if acted_at.is_none() {
                self.lease.revoke()?;
            }
            report(
                "the agent hangs",
                journal::restore_over_its_head(&self.options.state_dir, &self.mounts)?,
            )?;
            self.last_words = Some((beat, now));
        }
        Ok(Found::Alive)
    }

    /// For the agent's budget: nothing depends on it.
    fn tell_cost(&mut self, now: Duration) {
        if now < self.tell_at {
            return;
        }
        self.tell_at = now + TELL;
        let cost = GuardianCost { since: self.since, cpu: clock::cpu_time() };
        if let Err(err) = self.lease.tell_cost(cost, now) {
            tracing::debug!(%err, "what the guardian costs is not told");
        }
    }
}

/// Says what was done; fails with what was not.
fn report(why: &str, restored: Restored) -> Result<()> {
    if restored.written > 0 {
        tracing::warn!(limits = restored.written, "{why}: its limits were taken off");
    }
    let count = restored.errors.len();
    let first = restored.errors.into_iter().next();
    first.map_or(Ok(()), |err| {
        Err(err).context(format!("{why}, and {count} of its limits could not be restored"))
    })
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

    /// Ends it: there is nothing left to restore. Otherwise it sees the agent's end, and ends when all is restored.
    pub fn dismiss(mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

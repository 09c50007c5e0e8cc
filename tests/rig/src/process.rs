//! Child processes that do not outlive their parent.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use crate::{interrupt, sandbox::Group};

/// How long to wait for output before looking whether to go on.
const LOOK_UP: Duration = Duration::from_millis(200);
/// A server that has said nothing for so long does not start.
const SILENT: Duration = Duration::from_mins(1);

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name} ({command:?})"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where the child reads from. Its standard input must be piped.
    ///
    /// # Errors
    /// Where it was taken already.
    pub fn input(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("BUG: standard input is not piped")
    }

    /// The first line that the child prints, such as the address it listens on. Its standard output must be piped.
    ///
    /// # Errors
    /// Where the child ends, prints nothing for a minute, or this process is to end.
    pub fn first_line(&mut self) -> Result<String> {
        let output = self.child.stdout.take().context("BUG: standard output is not piped")?;
        let until = Instant::now() + SILENT;
        while !is_readable(&output, LOOK_UP)? {
            interrupt::check()?;
            ensure!(Instant::now() < until, "{} has said nothing for {SILENT:?}", self.name);
        }
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended before it said anything: {:?}", self.name, self.child.wait()?);
        }
        Ok(line.trim().to_owned())
    }

    /// Waits for the child to end by itself and returns what it printed. Its standard output must be piped.
    ///
    /// # Errors
    /// Where it fails.
    pub fn output(mut self) -> Result<String> {
        let output = self.child.stdout.take().context("BUG: standard output is not piped")?;
        let text = std::io::read_to_string(output)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} failed: {status}", self.name);
        Ok(text)
    }

    /// Calls `see` with each line that the child prints, without the white space at its end, and with `None` a few times
    /// per second in which it prints nothing, until it ends or `see` fails. Its standard output must be piped.
    ///
    /// # Errors
    /// What `see` says.
    pub fn each_line(&mut self, mut see: impl FnMut(Option<&str>) -> Result<()>) -> Result<ExitStatus> {
        let mut output = self.child.stdout.take().context("BUG: standard output is not piped")?;
        // Bytes, because a console prints what it likes.
        let mut text = Vec::new();
        loop {
            if !is_readable(&output, LOOK_UP)? {
                see(None)?;
                continue;
            }
            let begun = text.len();
            text.resize(begun + 4096, 0);
            let read = output.read(&mut text[begun..])?;
            text.truncate(begun + read);
            if read == 0 && !text.is_empty() {
                // The last line, which nothing ended.
                text.push(b'\n');
            }
            while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                see(Some(String::from_utf8_lossy(&line).trim_end()))?;
            }
            if read == 0 {
                return Ok(self.child.wait()?);
            }
        }
    }

    /// Whether the child still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.ended(), Ok(None))
    }

    /// How the child ended, if it has.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where the child has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks the child to end and waits for it, for at most `patience`.
    ///
    /// # Errors
    /// Where it does not.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        // One that has ended has no id any more.
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::TERM).ok();
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("{} did not end within {patience:?} of SIGTERM", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already: nothing to do.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether there is something to read, or will be within `patience`, which a signal cuts short.
pub(crate) fn is_readable(from: impl AsFd, patience: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(&from, PollFlags::IN)];
    let patience = Timespec::try_from(patience)?;
    match poll(&mut fds, Some(&patience)) {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}

/// A program of this project, which is built beside the running one (or in the parent of its directory, for tests).
///
/// # Errors
/// Where it is not there.
pub fn built(program: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let mut directories = me.ancestors().skip(1).take(2).map(|directory| directory.join(program));
    directories
        .find(|path| path.exists())
        .with_context(|| format!("no `{program}` beside {}: run `cargo xtask build`", me.display()))
}

/// A program of a Debian package. Servers lie where only root's PATH leads.
///
/// # Errors
/// Where it is not installed.
pub fn installed(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut files = directories.map(|directory| directory.join(program));
    files
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed: run `cargo xtask setup` as root"))
}

/// The `workload` command.
///
/// # Errors
/// Where it is missing.
pub fn workload() -> Result<Command> {
    Ok(Command::new(built("workload")?))
}

/// Output to read, errors to see.
pub fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped())
}

/// The `workload` command, in a group's cgroups.
///
/// # Errors
/// Where `workload` is missing.
pub fn workload_in(group: &Group) -> Result<Command> {
    let mut command = workload()?;
    for directory in group.directories() {
        command.arg("--cgroup").arg(directory);
    }
    Ok(command)
}

/// Runs `program`, in a group's cgroups if one is given, ending it when the parent ends.
///
/// # Errors
/// Where `workload` is missing.
pub fn exec_in(group: Option<&Group>, death: Signal, program: &Path) -> Result<Command> {
    let mut command = group.map_or_else(workload, workload_in)?;
    command.args(["--on-parent-death", if death == Signal::TERM { "term" } else { "kill" }]);
    command.arg("exec").arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_seen_even_a_last_one_that_nothing_ends() {
        let mut shell = Command::new("sh");
        shell.args(["-c", r"printf 'one\n\ntwo \r\n three'; exit 3"]);
        let mut process = Process::start("a shell", piped(&mut shell)).unwrap();
        let mut lines = Vec::new();
        let status = process.each_line(|line| {
            lines.extend(line.map(str::to_owned));
            Ok(())
        });
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(lines, ["one", "", "two", " three"]);
    }
}

//! Starting the cluster's daemons, and starting them again under a running cluster.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Cluster, daemon::Daemon};
use crate::wait;

/// How often to look whether something has happened.
const LOOK_UP: Duration = Duration::from_millis(200);
/// Lines of a daemon's log that are shown when it has ended by itself.
const LAST_WORDS: usize = 5;

impl Cluster {
    /// Starts a daemon, which logs to /var/log/NAME.log, and records it.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(&mut self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        let daemon = self.spawn(name, program, arguments)?;
        match self.daemons.iter_mut().find(|daemon| daemon.name == name) {
            Some(place) => *place = daemon,
            None => self.daemons.push(daemon),
        }
        self.record()
    }

    /// Asks a daemon to end, and starts it again once it has. The running cluster's record is kept right.
    ///
    /// # Errors
    /// Where it does not end, or cannot be started.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.start_again(name, Daemon::terminate)
    }

    /// Ends a daemon without asking, and starts it again. The running cluster's record is kept right.
    ///
    /// # Errors
    /// Where it cannot be ended or started.
    pub fn crash(&mut self, name: &str) -> Result<()> {
        self.start_again(name, Daemon::kill)
    }

    fn start_again(&mut self, name: &str, end: impl FnOnce(&Daemon) -> Result<()>) -> Result<()> {
        let daemon = self.daemon(name)?.clone();
        end(&daemon)?;
        self.start(name, &daemon.program, &daemon.arguments)
    }

    /// Asks a daemon to end, and forgets it.
    ///
    /// # Errors
    /// Where there is no such daemon, or it does not end.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        self.daemon(name)?.terminate()?;
        self.daemons.retain(|daemon| daemon.name != name);
        self.record()
    }

    /// One of `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `containerd` and `kubelet`.
    ///
    /// # Errors
    /// Where there is no such daemon.
    pub fn daemon(&self, name: &str) -> Result<&Daemon> {
        let daemon = self.daemons.iter().find(|daemon| daemon.name == name);
        daemon.with_context(|| format!("the cluster has no {name}"))
    }

    /// Waits for something that the daemons are to bring about.
    ///
    /// # Errors
    /// Where it does not come, or a daemon ends.
    pub fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        wait::until(what, patience, LOOK_UP, || {
            if is_so()? {
                return Ok(true);
            }
            if let Some(ended) = self.daemons.iter().find(|daemon| !daemon.is_running()) {
                bail!(
                    "{} has ended by itself; its last words:\n{}",
                    ended.name,
                    self.last_words(&ended.name)
                );
            }
            Ok(false)
        })
    }

    fn spawn(&self, name: &str, program: &Path, arguments: &[String]) -> Result<Daemon> {
        let log = File::options().create(true).append(true).open(self.log(name));
        let log = log.with_context(|| format!("no log for {name}"))?;
        let inside = self.command_among_daemons(program)?;
        let mut command = Command::new(&self.workload);
        command.arg("--cgroup").arg(&self.daemons_cgroup).args(["--on-parent-death", "none", "exec"]);
        command.arg(inside.get_program()).arg("--").args(inside.get_args()).args(arguments);
        // A proxy or a kubeconfig that somebody has set for himself is not meant for these.
        command.env_clear().env("PATH", path_variable()?).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for the chore, not for what it starts.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name} ({command:?})"))?;
        Daemon::of(name, program.to_owned(), arguments.to_vec(), child.id())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.paths.tree.join("log").join(format!("{name}.log"))
    }

    fn last_words(&self, name: &str) -> String {
        let log = fs::read(self.log(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

/// Containerd finds runc along it, and CNI plugins find ip and iptables, which lie where only root's PATH leads.
fn path_variable() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let roots = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    Ok(std::env::join_paths(std::env::split_paths(&path).chain(roots))?)
}

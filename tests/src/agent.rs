//! A running agent, and the scene that it runs in.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer::report::status::Status;
use enforcer_rig::{
    agent::spawn,
    process::{Process, built},
    wait,
};

/// Until something that should happen is given up on. Generous: virtual machines without hardware support are slow.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// An agent with files of its own.
#[derive(Debug)]
pub struct Agent {
    pub process: Process,
    pub address: SocketAddr,
    directory: PathBuf,
}

/// A directory for an agent's policy, journal and log, removed when dropped.
#[derive(Debug)]
pub struct Files(PathBuf);

impl Files {
    /// # Errors
    /// Where it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("enforcer-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a policy and returns its path.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn policy(&self, text: &str) -> Result<PathBuf> {
        self.write("policy.yaml", text)
    }

    /// What agents logged so far.
    ///
    /// # Errors
    /// Where there is no log.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.0.join("log"))?)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The `enforcer` command.
///
/// # Errors
/// Where it is not built.
pub fn enforcer() -> Result<Command> {
    Ok(Command::new(built("enforcer")?))
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn start(files: &Files, policy: &str, more: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(files, policy, more)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(files: &Files, policy: &str, more: &[&str]) -> Result<Self> {
        let log = files.path().join("log");
        let (process, address) = spawn(&built("enforcer")?, files.path(), policy, Some(&log), more)?;
        Ok(Self { process, address, directory: files.path().to_owned() })
    }

    /// Waits for the first look at the node.
    ///
    /// # Errors
    /// Where it does not come.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.wait_for("the agent is ready", |agent| {
            Ok(agent.get("/readyz").is_ok_and(|(code, _)| code == 200))
        })
    }

    /// Fetches a page: status code and body.
    ///
    /// # Errors
    /// Where nobody answers.
    pub fn get(&self, path: &str) -> Result<(i32, String)> {
        let answer = minreq::get(format!("http://{}{path}", self.address)).with_timeout(10).send()?;
        Ok((answer.status_code, answer.as_str()?.to_owned()))
    }

    /// What the agent sees.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn status(&self) -> Result<Status> {
        let (_, text) = self.get("/v1/status")?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A metric's value, by its name as in the text format: with its labels where it has some.
    ///
    /// # Errors
    /// Where there is no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, metrics) = self.get("/metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no metric {name} in\n{metrics}"))?.parse()?)
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// Where it does not come to be so, or the agent ends.
    pub fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        wait::until(what, PATIENCE, wait::LOOK, || {
            if is_so(self)? {
                return Ok(true);
            }
            if !self.process.is_running() {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                bail!("the agent ended while waiting until {what}; its log:\n{log}");
            }
            Ok(false)
        })
    }

    /// Ends the agent as Kubernetes would.
    ///
    /// # Errors
    /// Where it fails or takes too long.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(PATIENCE).context("SIGTERM")?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}

//! The agent as a process.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::{
    address,
    process::{Process, exec_in},
    sandbox::{Group, Sandbox},
    wait,
};

/// Until something listens or is ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent. It is asked to end when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    address: SocketAddr,
}

/// A policy for the groups `ls` and `be` of a sandbox.
pub fn policy(sandbox: &Sandbox, slo: Option<Duration>, floor_milli_cores: u32) -> String {
    let promise = slo.map_or(String::new(), |slo| {
        format!("  slo: {{ requestLatency: {{ p99: {}us }} }}\n", slo.as_micros())
    });
    format!(
        "groups:\n- name: ls\n  class: LS\n  cgroups: [{path}/ls]\n{promise}\
         - name: be\n  class: BE\n  cgroups: [{path}/be]\n  floor: {floor_milli_cores}m\n",
        path = sandbox.path(),
    )
}

/// Starts one with a policy, and tells where it will listen. Its policy and state are in `directory`. It logs to the end of
/// `log`, or to standard error.
///
/// # Errors
/// Where it cannot be started.
pub fn spawn(
    program: &Path,
    directory: &Path,
    policy: &str,
    log: Option<&Path>,
    arguments: &[&str],
) -> Result<(Process, SocketAddr)> {
    let policy_path = directory.join("policy.yaml");
    fs::write(&policy_path, policy).with_context(|| format!("cannot write {}", policy_path.display()))?;
    let address = address::free()?;
    let mut command = exec_in(None, Signal::TERM, program)?;
    command.args(["agent", "--listen", &address.to_string(), "--policy"]).arg(&policy_path);
    command.arg("--state-dir").arg(directory.join("state")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(log) = log {
        command.stderr(fs::File::options().create(true).append(true).open(log)?);
    }
    Ok((Process::start("the agent", &mut command)?, address))
}

impl Agent {
    /// Starts one as [`spawn`] does, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(
        program: &Path,
        directory: &Path,
        policy: &str,
        log: Option<&Path>,
        arguments: &[&str],
    ) -> Result<Self> {
        let (process, address) = spawn(program, directory, policy, log, arguments)?;
        let mut agent = Self { process, address };
        wait::until("the agent is ready", PATIENCE, wait::LOOK, || {
            agent.check()?;
            let ready = minreq::get(format!("http://{address}/readyz")).with_timeout(1).send();
            Ok(ready.is_ok_and(|answer| answer.status_code == 200))
        })
        .with_context(|| match log {
            Some(log) => format!("the agent does not start; its log is {}", log.display()),
            None => "the agent does not start".to_owned(),
        })?;
        Ok(agent)
    }

    /// An error if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the agent ended by itself: see its log");
        Ok(())
    }

    /// As much of `/v1/status` as is asked for.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn status<T: DeserializeOwned>(&self) -> Result<T> {
        self.get("/v1/status")
    }

    /// As much of what it serves under `path` as is asked for.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// What it serves under `path`, as text.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn text(&self, path: &str) -> Result<String> {
        served(self.address, path)
    }

    /// Ends it; it must leave no limit on `be`.
    ///
    /// # Errors
    /// Where it fails or leaves one.
    pub fn end(mut self, be: Option<&Group>) -> Result<()> {
        let ended = self.process.terminate(Duration::from_secs(5))?;
        ensure!(ended.success(), "the agent ended with {ended}: see its log");
        let Some(be) = be else { return Ok(()) };
        match be.held_back_by()? {
            Some(left) => bail!("the agent left BE held back: {left}"),
            None => Ok(()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Killed by the process's own destructor if it does not; its guardian then restores.
        self.process.terminate(Duration::from_secs(5)).ok();
    }
}

/// What an agent serves at this address under `path`, as text.
///
/// # Errors
/// Where it does not answer.
pub fn served(address: SocketAddr, path: &str) -> Result<String> {
    let answer = minreq::get(format!("http://{address}{path}")).with_timeout(5).send();
    Ok(answer.context("the agent does not answer")?.as_str()?.to_owned())
}

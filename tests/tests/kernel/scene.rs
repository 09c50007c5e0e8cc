//! An LS server, a BE antagonist and an agent between them.

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    cast,
    process::{Process, workload, workload_in},
    sandbox::{Group, Sandbox},
};
use enforcer_tests::{
    agent::{Agent, Files},
    needs::slowness,
};
use rustix::process::Signal;

/// How soon the owner's values must be back after a crash. An emulated CPU is given more time: `ENFORCER_TEST_SLOWNESS`
/// times as much.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);

/// An LS server under load, and a BE antagonist that takes the same CPUs with four times the weight: it hurts whatever the
/// kernel's scheduler does.
pub struct Scene {
    // In the order in which they are taken down.
    pub client: Process,
    pub server: Process,
    pub antagonist: Option<Process>,
    pub ls: Group,
    pub be: Group,
    pub files: Files,
    pub sandbox: Sandbox,
}

impl Scene {
    pub fn new(name: &str) -> Result<Self> {
        let sandbox = Sandbox::new("enforcer-test")?;
        let (ls, be) = (sandbox.group("ls", 1024)?, sandbox.group("be", 4096)?);
        let (server, address) = cast::computing_server(&ls, Duration::from_micros(800))?;
        let mut command = workload()?;
        command.args(["load", "--to", &address.to_string(), "--rate", "400", "--seconds", "3600"]);
        let client = Process::start("the client", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        Ok(Self { client, server, antagonist: None, ls, be, files: Files::new(name)?, sandbox })
    }

    /// Quotas only, whatever else this host offers.
    pub fn policy(&self) -> String {
        self.policy_with("quota")
    }

    /// A policy with these levers.
    pub fn policy_with(&self, levers: &str) -> String {
        format!(
            "groups:\n- name: web\n  class: LS\n  cgroups: [{0}/ls]\n  slo: {{ requestLatency: {{ p99: 4ms }} }}\n\
             - name: batch\n  class: BE\n  cgroups: [{0}/be]\n  floor: 100m\n  levers: [{levers}]\n",
            self.sandbox.path()
        )
    }

    /// A limit that is not the kernel's default, so that restoring the default would be noticed.
    pub fn set_owners_limit(&self) -> Result<String> {
        self.set_limit("1900000 1000000")?;
        self.be.cpu_limit()
    }

    /// Puts a limit in force, as [`Group::cpu_limit`] reads it.
    pub fn set_limit(&self, limit: &str) -> Result<()> {
        let directory = self.be.cpu_directory();
        if directory.join("cpu.max").exists() {
            return Ok(fs::write(directory.join("cpu.max"), limit)?);
        }
        let (quota, period) = limit.split_once(' ').context("no limit")?;
        fs::write(directory.join("cpu.cfs_quota_us"), quota)?;
        Ok(fs::write(directory.join("cpu.cfs_period_us"), period)?)
    }

    /// Waits until the owner's quota is back. How long it took.
    pub fn wait_until_restored(&self, owners: &str, begun: Instant) -> Result<Duration> {
        wait_until_back(begun, owners, || self.be.cpu_limit())
            .with_context(|| format!("the agent's log:\n{}", self.files.log().unwrap_or_default()))
    }

    pub fn start_antagonist(&mut self) -> Result<()> {
        self.start_antagonist_in(&[])
    }

    /// In further cgroup directories as well.
    pub fn start_antagonist_in(&mut self, further: &[&Path]) -> Result<()> {
        let mut command = workload_in(&self.be)?;
        for directory in further {
            command.arg("--cgroup").arg(directory);
        }
        // Twice as many threads as CPUs: no CPU is ever free.
        let threads = std::thread::available_parallelism()?.get() * 2;
        command.args(["antagonist", "cpu-spin", "--threads", &threads.to_string()]);
        let antagonist =
            Process::start("the antagonist", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        self.antagonist = Some(antagonist);
        Ok(())
    }

    /// Lets BE hurt until the agent squeezes it.
    pub fn squeezed(&mut self) -> Result<Agent> {
        self.squeezed_by(&[])
    }

    pub fn squeezed_by(&mut self, options: &[&str]) -> Result<Agent> {
        let mut agent = Agent::start(&self.files, &self.policy(), options)?;
        self.start_antagonist()?;
        agent.wait_for("BE is squeezed", |agent| Ok(agent.status()?.reason == "squeeze"))?;
        Ok(agent)
    }
}

/// Waits until the owner's value is found again. How long it took.
pub fn wait_until_back(
    begun: Instant,
    owners: &str,
    mut found: impl FnMut() -> Result<String>,
) -> Result<Duration> {
    loop {
        let found = found()?;
        if found == owners {
            return Ok(begun.elapsed());
        }
        ensure!(
            begun.elapsed() < RESTORED_WITHIN * slowness(),
            "not restored after {:?}: {found}",
            begun.elapsed()
        );
        sleep(Duration::from_millis(5));
    }
}

/// Ends or stops an agent, which needs no preparation.
pub fn by_signal(signal: Signal) -> impl Fn(&mut (), &mut Agent) -> Result<Instant> {
    move |(), agent| {
        let begun = Instant::now();
        agent.process.signal(signal).map(|()| begun)
    }
}

/// Says how long something took that was done several times.
pub fn report(took: &[Duration]) {
    let longest = took.iter().max().copied().unwrap_or_default();
    println!("{} times, restored within {longest:?} at most", took.len());
}

/// How often to try what must work every time.
pub fn rounds() -> u32 {
    std::env::var("ENFORCER_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

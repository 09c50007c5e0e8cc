//! One cell: LS and BE side by side under one policy for some seconds.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use enforcer_rig::{
    agent::{self, Agent},
    antagonist::Antagonist,
    arrivals::Profile,
    cast,
    client::{Load, Report},
    cpuset::Cpuset,
    interrupt,
    process::Process,
    sandbox::{Group, Sandbox},
    work::Work,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    policy::Policy,
    record::{AgentAccount, Key, Outcome, Settings, Window},
};

use crate::{
    accounts::{Accounts, Usage},
    koordinator::{Lever, Suppressor},
};

/// Of cgroups.
const PREFIX: &str = "enforcer-loop";
/// To set up and take down a cell, about.
const SETUP_SECONDS: f64 = 0.4;
const TICK: Duration = Duration::from_secs(1);

/// Where all cells are run.
pub struct Stage {
    sandbox: Sandbox,
    agent: PathBuf,
    agent_log: PathBuf,
    /// For files that are gone afterwards.
    scratch: PathBuf,
    pub settings: Settings,
    /// When the agent had last been built then.
    begun_with: SystemTime,
}

/// As much of the agent's status as is needed here.
#[derive(Deserialize)]
struct Status {
    explanation: String,
    uptime_seconds: f64,
    agent_cpu_seconds: Option<f64>,
    agent_resident_bytes: Option<u64>,
}

/// As much of `/v1/decisions` as is needed here.
#[derive(Deserialize)]
struct Decision {
    changes: Vec<IgnoredAny>,
}

impl Stage {
    pub fn new(agent: &Path, agent_log: &Path, scratch: &Path, settings: Settings) -> Result<Self> {
        Ok(Self {
            sandbox: Sandbox::new(PREFIX)?,
            agent: agent.to_owned(),
            agent_log: agent_log.to_owned(),
            scratch: scratch.to_owned(),
            settings,
            begun_with: built_at(agent)?,
        })
    }

    /// Whether the agent is the one that all this began with.
    pub fn has_same_agent(&self) -> Result<bool> {
        Ok(built_at(&self.agent)? == self.begun_with)
    }

    /// How long so many cells take.
    pub fn minutes(&self, cells: usize) -> f64 {
        let seconds = f64::from(self.settings.warm_up_seconds + self.settings.seconds) + SETUP_SECONDS;
        cells as f64 * seconds / 60.0
    }

    /// LS alone, without counting slow requests: to find out what to expect of it.
    pub fn alone(&self, load: &Load) -> Result<Report> {
        let group = self.sandbox.group("ls", cast::LS_SHARES)?;
        let (_server, address) = cast::server(&group)?;
        let client = cast::client(address, load)?;
        interrupt::sleep(Duration::from_secs_f64(load.warm_up_seconds + load.seconds))?;
        Ok(serde_json::from_str(&client.output()?)?)
    }

    /// Runs a cell.
    pub fn run(&self, key: Key, profile: Profile, slo_us: f64) -> Result<Outcome> {
        let Key { be, policy, .. } = key;
        // What is declared first is taken down last: processes before their groups.
        let ls_group = self.sandbox.group("ls", cast::LS_SHARES)?;
        let be_group = self.sandbox.group("be", policy.be_shares())?;
        let cpuset = match policy {
            Policy::KoordinatorCpuset => Some(Cpuset::new(&self.sandbox, PREFIX, "be")?),
            _ => None,
        };
        if let Policy::Static(quota) = policy {
            let period = Duration::from_millis(quota.period_ms.into());
            be_group.set_cpu_limit(quota.cores(self.settings.cpus), period)?;
        }
        let (_server, address) = cast::server(&ls_group)?;
        let mut agent = (policy == Policy::Enforcer).then(|| self.start_agent(slo_us)).transpose()?;
        let work_path = self.scratch.join("work");
        fs::remove_file(&work_path).ok();
        let work = Work::open(&work_path)?;
        let antagonist = be.map(|be| start_be(be, &be_group, cpuset.as_ref(), &work_path)).transpose()?;
        let mut suppressor = self.suppressor(policy, &ls_group, &be_group, cpuset.as_ref())?;
        let client = cast::client(address, &self.load(profile, slo_us, key.round))?;

        let begun = Instant::now();
        let warm_up = Duration::from_secs(self.settings.warm_up_seconds.into());
        let seconds = Duration::from_secs(self.settings.seconds.into());
        follow(begun, begun + warm_up, suppressor.as_mut())?;
        let read = || Ok::<_, anyhow::Error>((Accounts::read(&ls_group, &be_group)?, work.done()));
        let (from, work_before) = read()?;
        follow(begun, begun + warm_up + seconds, suppressor.as_mut())?;
        let (to, work_after) = read()?;
        let report: Report = serde_json::from_str(&client.output()?)?;
        let account = agent.as_mut().map(account).transpose()?;
        agent.map_or(Ok(()), |agent| agent.end(Some(&be_group)))?;
        anyhow::ensure!(
            antagonist.is_none_or(|mut antagonist| antagonist.is_running()),
            "BE ended by itself"
        );
        Ok(outcome(&report, to.usage_since(from), work_after - work_before, account))
    }

    /// The agent is promised the number that the client is judged by. It sees latency in the kernel, a little less than the
    /// client does.
    fn start_agent(&self, slo_us: f64) -> Result<Agent> {
        let slo = Duration::from_secs_f64(slo_us / 1e6);
        let policy = agent::policy(&self.sandbox, Some(slo), self.settings.be_floor_milli_cores);
        Agent::start(&self.agent, &self.scratch, &policy, Some(&self.agent_log), &[])
    }

    fn suppressor<'a>(
        &self,
        policy: Policy,
        ls: &'a Group,
        be: &'a Group,
        cpuset: Option<&'a Cpuset>,
    ) -> Result<Option<Suppressor<'a>>> {
        let cpus = self.settings.cpus;
        let lever = match (policy, cpuset) {
            (Policy::KoordinatorQuota, _) => Lever::Quota(None),
            (Policy::KoordinatorCpuset, Some(cpuset)) => Lever::Cpus(cpuset, cpus),
            _ => return Ok(None),
        };
        Suppressor::new(cpus, ls, be, lever).map(Some)
    }

    /// The same arrivals for all policies of a round.
    fn load(&self, profile: Profile, slo_us: f64, round: usize) -> Load {
        Load {
            warm_up_seconds: self.settings.warm_up_seconds.into(),
            seed: round as u64 + 1,
            slo_us: Some(slo_us),
            ..Load::open_loop(profile, self.settings.seconds)
        }
    }
}

fn built_at(program: &Path) -> Result<SystemTime> {
    let modified = fs::metadata(program).and_then(|metadata| metadata.modified());
    modified.with_context(|| format!("cannot read {}", program.display()))
}

fn start_be(be: Antagonist, group: &Group, cpuset: Option<&Cpuset>, work: &Path) -> Result<Process> {
    let further: Vec<&Path> = cpuset.into_iter().map(Cpuset::directory).collect();
    cast::antagonist(be, group, &further, work)
}

/// Waits, and lets the rule have its ticks.
fn follow(begun: Instant, until: Instant, mut suppressor: Option<&mut Suppressor<'_>>) -> Result<()> {
    let mut tick = begun;
    loop {
        tick += TICK;
        let now = Instant::now();
        if tick <= now && tick < until {
            continue;
        }
        interrupt::sleep(tick.min(until).saturating_duration_since(now))?;
        if tick > until {
            return Ok(());
        }
        if let Some(suppressor) = &mut suppressor {
            suppressor.tick()?;
        }
        if tick == until {
            return Ok(());
        }
    }
}

fn account(agent: &mut Agent) -> Result<AgentAccount> {
    agent.check()?;
    let status: Status = agent.status()?;
    let seconds = status.agent_cpu_seconds.context("the agent does not know its CPU time")?;
    let decisions: Vec<Decision> = agent.get("/v1/decisions")?;
    Ok(AgentAccount {
        cores: seconds / status.uptime_seconds,
        resident_bytes: status.agent_resident_bytes.unwrap_or_default(),
        held_back: decisions.iter().any(|decision| !decision.changes.is_empty()),
        explanation: status.explanation,
    })
}

fn outcome(report: &Report, usage: Usage, be_work: u64, agent: Option<AgentAccount>) -> Outcome {
    let windows = report.long_windows.iter().map(|window| Window {
        requests: window.requests,
        slow: window.slow,
        p99_us: window.p99_us,
    });
    Outcome {
        requests: report.requests,
        slow: report.slow,
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        windows: windows.collect(),
        half_seconds: report.windows.iter().map(|window| (window.requests, window.slow)).collect(),
        be_work: be_work as f64 / usage.seconds,
        be_cores: usage.be,
        other_cores: usage.others(),
        agent,
    }
}

//! What the agent itself costs: CPU and memory with so many idle groups.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use enforcer_rig::{agent::Agent, interrupt, sandbox::Sandbox, wait};
use serde::Deserialize;
use serde_json::{Value, json};

/// For all groups to be counted, and how often to look.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_UP: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The agent.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// How long to watch it for each number of groups.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Numbers of groups; every second one is LS with both objectives, the others BE.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    groups: Vec<usize>,
}

#[derive(Deserialize)]
struct Status {
    agent_cpu_seconds: f64,
    agent_resident_bytes: u64,
    groups: Vec<GroupStatus>,
}

#[derive(Deserialize)]
struct GroupStatus {
    cgroups: usize,
}

pub fn run(args: &Args) -> Result<Value> {
    let rows = args.groups.iter().map(|&groups| row(args, groups)).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "rows": rows, "seconds": args.seconds }))
}

fn row(args: &Args, groups: usize) -> Result<Value> {
    eprintln!("{groups} groups: watching the agent for {} s", args.seconds);
    let sandbox = Sandbox::new("enforcer-bench")?;
    let made: Vec<_> = (0..groups).map(|n| sandbox.group(&format!("g{n}"), 1024)).collect::<Result<_>>()?;
    let directory = tempfile::Builder::new().prefix("enforcer-bench-").tempdir()?;
    let mut agent = Agent::start(&args.agent, directory.path(), &policy_text(&sandbox, groups)?, None, &[])?;

    let before = wait_for(&mut agent, groups)?;
    let begun = Instant::now();
    let mut resident_bytes = 0;
    while begun.elapsed() < Duration::from_secs(args.seconds) {
        interrupt::sleep(Duration::from_secs(5).min(Duration::from_secs(args.seconds)))?;
        agent.check()?;
        resident_bytes = agent.status::<Status>()?.agent_resident_bytes.max(resident_bytes);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_percent =
        (agent.status::<Status>()?.agent_cpu_seconds - before.agent_cpu_seconds) / seconds * 100.0;
    agent.end(None)?;
    drop(made);
    let rss_mib = resident_bytes as f64 / f64::from(1 << 20);
    Ok(json!({ "groups": groups, "cpu_percent": cpu_percent, "rss_mib": rss_mib }))
}

fn policy_text(sandbox: &Sandbox, groups: usize) -> Result<String> {
    let mut text = String::from("groups:\n");
    for n in 0..groups {
        let class = if n % 2 == 0 { "LS" } else { "BE" };
        writeln!(text, "- name: g{n}\n  class: {class}\n  cgroups: [{}/g{n}]", sandbox.path())?;
        let more = if n % 2 == 0 {
            "  slo: { requestLatency: { p99: 5ms }, runQueueWait: { p99: 2ms } }"
        } else {
            "  floor: 1m"
        };
        writeln!(text, "{more}")?;
    }
    writeln!(text, "limits:\n  cgroups: {}", (groups * 2 + 16).max(1024))?;
    Ok(text)
}

/// The status once every group is counted.
fn wait_for(agent: &mut Agent, groups: usize) -> Result<Status> {
    let mut last = None;
    wait::until(&format!("the agent counts all {groups} groups"), PATIENCE, LOOK_UP, || {
        agent.check()?;
        last = agent.status::<Status>().ok();
        let counted = last.iter().flat_map(|status| &status.groups).filter(|group| group.cgroups > 0);
        Ok(counted.count() == groups)
    })?;
    last.context("BUG: it was just looked at")
}

//! What the agent itself costs: CPU and memory with so many idle groups.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    address,
    process::{Process, exec_in},
    sandbox::Sandbox,
};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};

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
    let state = std::env::temp_dir().join(format!("enforcer-bench-{}", std::process::id()));
    fs::create_dir_all(&state)?;
    let policy = state.join("policy.yaml");
    fs::write(&policy, policy_text(&sandbox, groups)?)?;
    let address = address::free()?;
    let mut command = exec_in(None, Signal::TERM, &args.agent)?;
    command
        .args(["agent", "--listen", &address.to_string(), "--policy"])
        .arg(&policy)
        .arg("--state-dir")
        .arg(&state);
    command.stdin(Stdio::null()).stdout(Stdio::null()).env("ENFORCER_LOG", "warn");
    let mut agent = Process::start("the agent", &mut command)?;

    let before = wait_for(address, groups)?;
    let begun = Instant::now();
    let mut resident_bytes = 0;
    while begun.elapsed() < Duration::from_secs(args.seconds) {
        std::thread::sleep(Duration::from_secs(5).min(Duration::from_secs(args.seconds)));
        resident_bytes = status(address)?.agent_resident_bytes.max(resident_bytes);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_percent = (status(address)?.agent_cpu_seconds - before.agent_cpu_seconds) / seconds * 100.0;
    ensure!(agent.terminate(Duration::from_secs(5))?.success(), "the agent failed");
    fs::remove_dir_all(&state)?;
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
fn wait_for(address: SocketAddr, groups: usize) -> Result<Status> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(status) = status(address)
            && status.groups.iter().filter(|group| group.cgroups > 0).count() == groups
        {
            return Ok(status);
        }
        ensure!(Instant::now() < until, "the agent does not count all {groups} groups after 30 s");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status(address: SocketAddr) -> Result<Status> {
    let answer = minreq::get(format!("http://{address}/v1/status")).with_timeout(5).send();
    Ok(answer.context("the agent does not answer")?.json()?)
}

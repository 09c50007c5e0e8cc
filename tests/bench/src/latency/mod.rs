//! `bench latency`: does the latency that the probes see follow what clients see, and what does seeing it cost?
//!
//! For each server, as fast as it can: windows of rising interference, in which the client's percentiles stand beside those
//! that the agent shows; then rounds with and without the agent, in turns.

mod rank;

use std::{fs::File, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use enforcer_rig::{
    agent::{self, Agent},
    antagonist::Antagonist,
    arrivals::Profile,
    cast,
    client::{Load, Report},
    interrupt,
    process::{Process, built},
    sandbox::{Group, Sandbox},
    service::Service,
    spread::Spread,
    work::Work,
};
use serde::Deserialize;
use serde_json::{Value, json};

use self::rank::spearman;
use crate::compared;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Servers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "redis,nginx")]
    servers: Vec<Service>,
    /// Windows of rising interference; 0 leaves them out.
    #[arg(long, default_value_t = 24)]
    windows: u32,
    /// Length of a window: longer than what the agent shows reaches back, which is ten seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u32,
    /// Rounds at saturation, each once with and once without the agent.
    #[arg(long, default_value_t = 12)]
    rounds: u32,
}

/// Of one turn at saturation.
const TURN_SECONDS: u32 = 3;
/// Requests under way at once.
const CONNECTIONS: usize = 32;
/// BE takes turns with LS, and weighs so much that its turns are as long as its quota in each period: the least quota that a
/// kernel takes at first, all CPUs at the end. In each turn all requests under way are late, and with such short periods those
/// are more than one in a hundred.
const PERIOD: Duration = Duration::from_millis(4);
const LEAST_CORES: f64 = 0.25;
const BE_SHARES: u32 = 10 * cast::LS_SHARES;
/// For the agent to report.
const REPORTED: Duration = Duration::from_millis(1_200);
/// An objective that nobody misses: nothing is to be squeezed here.
const SLO: Duration = Duration::from_secs(5);
const FLOOR_MILLI_CORES: u32 = 100;

pub fn run(args: &Args) -> Result<Value> {
    ensure!(args.windows != 1 && args.rounds > 0, "it takes two windows, or none, and one round at least");
    let rows = args.servers.iter().map(|&server| {
        let stage = Stage::new(server)?;
        if args.windows == 0 {
            return Ok(json!({ "server": server.name(), "cost": cost(&stage, args)? }));
        }
        eprintln!("{} as fast as it can", server.name());
        let followed = windows(&stage, args)?;
        eprintln!("  with different things attached");
        let cost = cost(&stage, args)?;
        Ok(json!({ "server": server.name(), "followed": followed, "cost": cost }))
    });
    Ok(json!({ "seconds": args.seconds, "servers": rows.collect::<Result<Vec<Value>>>()? }))
}

/// A server in its group, and room for BE beside it.
struct Stage {
    server: Service,
    // What is declared first is taken down first: processes before their groups.
    process: Process,
    address: SocketAddr,
    ls: Group,
    be: Group,
    sandbox: Sandbox,
    scratch: tempfile::TempDir,
}

impl Stage {
    fn new(server: Service) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("enforcer-latency-").tempdir()?;
        let sandbox = Sandbox::new("enforcer-latency")?;
        let ls = sandbox.group("ls", cast::LS_SHARES)?;
        let be = sandbox.group("be", BE_SHARES)?;
        let (process, address) = server.start(&ls, scratch.path())?;
        Ok(Self { server, process, address, ls, be, sandbox, scratch })
    }

    fn load(&self, load: Load) -> Result<Report> {
        let client = cast::client(self.address, &load)?;
        interrupt::sleep(Duration::from_secs_f64(load.warm_up_seconds + load.seconds))?;
        Ok(serde_json::from_str(&client.output()?)?)
    }

    fn agent(&self, program: &Path) -> Result<Agent> {
        let policy = agent::policy(&self.sandbox, Some(SLO), FLOOR_MILLI_CORES);
        let log = self.scratch.path().join("agent.log");
        Agent::start(program, self.scratch.path(), &policy, Some(&log), &[])
    }

    fn empty_programs(&self) -> Result<Ebpf> {
        let directory = self.ls.v2_directory().context("no v2 hierarchy")?;
        compared::on_packets(&File::open(directory)?)
    }

    fn saturating(&self, round: u32, seconds: u32) -> Load {
        Load {
            saturate: true,
            connections: CONNECTIONS,
            protocol: self.server.protocol(),
            seed: u64::from(round) + 1,
            ..Load::open_loop(Profile::constant(1.0), seconds)
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Asked, not killed: nginx takes its workers along.
        self.process.terminate(Duration::from_secs(5)).ok();
    }
}

/// As much of the agent's status as is needed here.
#[derive(Deserialize)]
struct Status {
    window_seconds: f64,
    groups: Vec<GroupStatus>,
}

#[derive(Deserialize)]
struct GroupStatus {
    name: String,
    requests: Option<Requests>,
}

/// Of the last seconds.
#[derive(Deserialize)]
struct Requests {
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

impl Status {
    fn requests(self, server: Service) -> Result<(f64, f64)> {
        let ls = self.groups.into_iter().find(|group| group.name == "ls");
        let requests = ls.and_then(|ls| ls.requests);
        let found =
            requests.and_then(|requests| Some((requests.p50_seconds? * 1e6, requests.p99_seconds? * 1e6)));
        found.with_context(|| format!("the probes saw no request of {}", server.name()))
    }
}

/// Client and probes side by side, window by window.
fn windows(stage: &Stage, args: &Args) -> Result<Value> {
    let agent = stage.agent(&built("enforcer")?)?;
    let cpus = std::thread::available_parallelism()?.get() as f64;
    let work_path = stage.scratch.path().join("work");
    let _work = Work::open(&work_path)?;
    stage.be.set_cpu_limit(LEAST_CORES, PERIOD)?;
    let _antagonist = cast::antagonist(Antagonist::CpuSpin, &stage.be, &[], &work_path)?;
    let mut rows = Vec::new();
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let (mut gap_p50, mut gap_p99) = (Vec::new(), Vec::new());
    for window in 0..args.windows {
        let step = f64::from(window) / f64::from(args.windows - 1);
        let be_cores = LEAST_CORES + (cpus - LEAST_CORES) * step;
        stage.be.set_cpu_limit(be_cores, PERIOD)?;
        let load = Load { warm_up_seconds: 0.0, ..stage.saturating(window, args.seconds) };
        let client = stage.load(load)?;
        interrupt::sleep(REPORTED)?;
        let status: Status = agent.status()?;
        ensure!(
            status.window_seconds < f64::from(args.seconds),
            "the agent shows the last {} s: make the windows longer with --seconds",
            status.window_seconds
        );
        let (p50, p99) = status.requests(stage.server)?;
        eprintln!(
            "    BE {be_cores:.2} cores: client p50 {:.0} p99 {:.0} us, in the kernel p50 {p50:.0} p99 {p99:.0} us",
            client.p50_us, client.p99_us,
        );
        theirs.push(client.p99_us);
        ours.push(p99);
        gap_p50.push(client.p50_us - p50);
        gap_p99.push(client.p99_us - p99);
        rows.push(json!({
            "be_cores": be_cores,
            "client": { "requests": client.requests, "p50_us": client.p50_us, "p99_us": client.p99_us },
            "in_kernel": { "p50_us": p50, "p99_us": p99 },
        }));
    }
    agent.end(None)?;
    stage.be.lift_cpu_limit()?;
    Ok(json!({
        "rank_correlation_p99": spearman(&theirs, &ours),
        "client_minus_kernel_p50_us": Spread::of(gap_p50),
        "client_minus_kernel_p99_us": Spread::of(gap_p99),
        "windows": rows,
    }))
}

/// What is attached during a turn at saturation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attached {
    Nothing,
    /// Programs that look at nothing: what none that looks at packets can do without.
    Empty,
    Agent,
}

/// Requests served at saturation with the agent, without it, and with empty programs, in turns.
fn cost(stage: &Stage, args: &Args) -> Result<Value> {
    const TURNS: [Attached; 3] = [Attached::Nothing, Attached::Empty, Attached::Agent];
    let program = built("enforcer")?;
    let turn = |attached: Attached, round: u32| -> Result<f64> {
        let agent = (attached == Attached::Agent).then(|| stage.agent(&program)).transpose()?;
        let _empty = (attached == Attached::Empty).then(|| stage.empty_programs()).transpose()?;
        let report = stage.load(stage.saturating(round, TURN_SECONDS))?;
        agent.map_or(Ok(()), |agent| agent.end(None))?;
        Ok(report.requests as f64 / f64::from(TURN_SECONDS))
    };
    let mut served = [const { Vec::new() }; TURNS.len()];
    for round in 0..args.rounds {
        let mut now = [0.0; TURNS.len()];
        for place in 0..TURNS.len() {
            // Who begins changes every round.
            let place = (place + round as usize) % TURNS.len();
            now[place] = turn(TURNS[place], round)?;
        }
        let [nothing, empty, agent] = now;
        eprintln!(
            "    {nothing:.0}/s with nothing attached, {empty:.0}/s with empty programs, {agent:.0}/s with the agent"
        );
        served.iter_mut().zip(now).for_each(|(all, now)| all.push(now));
    }
    let [nothing, empty, agent] = served;
    let kept = |with: &[f64]| Spread::of(with.iter().zip(&nothing).map(|(with, without)| with / without));
    Ok(json!({
        "kept_with_the_agent": kept(&agent),
        "kept_with_empty_programs": kept(&empty),
        "with_nothing_hz": Spread::of(nothing),
        "with_empty_programs_hz": Spread::of(empty),
        "with_the_agent_hz": Spread::of(agent),
    }))
}

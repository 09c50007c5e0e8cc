//! `bench latency`: does the latency that the probes see follow what clients see, and what does seeing it cost?
//!
//! For each server: windows of rising interference, in which the client's percentiles stand beside those of the probes'
//! histogram, once at a rate that the server can serve beside the worst of it and once as fast as it can; then rounds at
//! saturation with and without the agent, in turns.

mod histogram;
mod rank;

use std::{fs::File, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use enforcer_rig::{
    agent::{self, Agent, wait_until},
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
use serde_json::{Value, json};

use self::{histogram::Histogram, rank::spearman};
use crate::{
    compared,
    r#loop::{calibration::sane_hz, stage::open_loop},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Servers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "redis,nginx")]
    servers: Vec<Service>,
    /// Windows of rising interference; 0 leaves them out.
    #[arg(long, default_value_t = 24)]
    windows: u32,
    /// Length of a window.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Rounds at saturation, each once with and once without the agent.
    #[arg(long, default_value_t = 12)]
    rounds: u32,
}

/// Of one turn at saturation.
const TURN_SECONDS: u32 = 3;
/// Of its capacity, a server can do so much beside a BE that weighs as much: less than half of the node is left to it and its
/// client.
const BEARABLE: f64 = 0.15;
/// So that no request must wait for a connection, which only the client would see.
const CONNECTIONS: usize = 512;
/// Requests under way at once at saturation.
const SATURATING_CONNECTIONS: usize = 16;
/// Of the period of BE's quota.
const PERIOD: Duration = Duration::from_millis(100);
/// Interference of the first window, in cores: as good as none.
const LEAST_CORES: f64 = 0.02;
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
        let capacity_hz = sane_hz(|load| stage.load(Load { protocol: server.protocol(), ..*load }))?;
        let rate = capacity_hz * BEARABLE;
        eprintln!("{} serves {capacity_hz:.0} requests/s", server.name());
        eprintln!("  at {rate:.0} requests/s, whatever comes of them");
        let load = || Load { connections: CONNECTIONS, ..open_loop(Profile::constant(rate), args.seconds) };
        let steady = windows(&stage, args, |_| load())?;
        eprintln!("  as fast as it can");
        let fastest = windows(&stage, args, |window| stage.saturating(window, args.seconds))?;
        eprintln!("  as fast as it can, with different things attached");
        let cost = cost(&stage, args)?;
        Ok(json!({
            "server": server.name(),
            "capacity_hz": capacity_hz,
            "rate_hz": rate,
            "at_a_steady_rate": steady,
            "as_fast_as_it_can": fastest,
            "cost": cost,
        }))
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
        // Weighs as much as LS, so that interference shows.
        let be = sandbox.group("be", cast::LS_SHARES)?;
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
            connections: SATURATING_CONNECTIONS,
            protocol: self.server.protocol(),
            seed: u64::from(round) + 1,
            ..open_loop(Profile::constant(1.0), seconds)
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Asked, not killed: nginx takes its workers along.
        self.process.terminate(Duration::from_secs(5)).ok();
    }
}

/// Client and probes side by side, window by window.
fn windows(stage: &Stage, args: &Args, load: impl Fn(u32) -> Load) -> Result<Value> {
    let mut agent = stage.agent(&built("enforcer")?)?;
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
        let be_cores = (cpus * step).max(LEAST_CORES);
        stage.be.set_cpu_limit(be_cores, PERIOD)?;
        let before = Histogram::of(&mut agent)?;
        let load = Load {
            protocol: stage.server.protocol(),
            seed: u64::from(window) + 1,
            warm_up_seconds: 0.0,
            ..load(window)
        };
        let client = stage.load(load)?;
        let seen = settled(&mut agent, &before, client.requests)?;
        let kernel = [0.5, 0.99].map(|quantile| seen.quantile_us(quantile));
        let [Some(p50), Some(p99)] = kernel else {
            anyhow::bail!("the probes saw no request of {}", stage.server.name());
        };
        eprintln!(
            "    BE {be_cores:.2} cores: client p50 {:.0} p99 {:.0} us, in the kernel p50 {p50:.0} p99 {p99:.0} us; {} of {} requests",
            client.p50_us,
            client.p99_us,
            seen.count(),
            client.requests
        );
        theirs.push(client.p99_us);
        ours.push(p99);
        gap_p50.push(client.p50_us - p50);
        gap_p99.push(client.p99_us - p99);
        rows.push(json!({
            "be_cores": be_cores,
            "client": { "requests": client.requests, "p50_us": client.p50_us, "p99_us": client.p99_us },
            "in_kernel": { "requests": seen.count(), "p50_us": p50, "p99_us": p99 },
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

/// The histogram of what came since `before`, once the agent has reported all of it.
fn settled(agent: &mut Agent, before: &Histogram, requests: u64) -> Result<Histogram> {
    let mut last = None;
    wait_until("the agent has counted the window", || {
        let now = Histogram::of(agent)?.since(before);
        let is_settled = last == Some(now.count()) && now.count() >= requests / 2;
        last = Some(now.count());
        if !is_settled {
            interrupt::sleep(Duration::from_millis(1_100))?;
        }
        Ok(is_settled)
    })?;
    Ok(Histogram::of(agent)?.since(before))
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

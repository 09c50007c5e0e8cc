//! One phase: the processes in their cgroups, and what is seen of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use super::{phase::Phase, status::Status};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use enforcer_rig::{
    agent::{self, Agent},
    antagonist::Antagonist,
    arrivals::Profile,
    cast::{self, BE_SHARES, LS_SHARES},
    client::{self, Load},
    interrupt,
    process::{Process, exec_in, installed},
    sandbox::{Group, Sandbox},
    service::Service,
    work::Work,
};
use rustix::process::Signal;

const SAMPLE: Duration = Duration::from_millis(500);

/// The best-effort work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Be {
    Builtin(Antagonist),
    StressNg,
}

impl ValueEnum for Be {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Builtin(Antagonist::MemoryStream),
            Self::Builtin(Antagonist::CpuSpin),
            Self::Builtin(Antagonist::ForkStorm),
            Self::Builtin(Antagonist::CacheThrash),
            Self::Builtin(Antagonist::PageCache),
            Self::StressNg,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::Builtin(antagonist) => antagonist.to_possible_value(),
            Self::StressNg => {
                Some(clap::builder::PossibleValue::new("stress-ng").help("stress-ng's stream stressor"))
            }
        }
    }
}

impl Be {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Builtin(antagonist) => antagonist.name(),
            Self::StressNg => "stress-ng",
        }
    }

    /// What one unit of its work is.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Builtin(antagonist) => antagonist.unit(),
            Self::StressNg => "not counted",
        }
    }

    /// The objective of the LS group, from what the probes saw in the phases alone and stock: one that stock weights
    /// miss where BE is expected to hurt, one that they meet where it is not and squeezing would be a bug.
    pub fn slo(self, in_kernel_p99: [Option<Duration>; 2]) -> Option<Duration> {
        let [alone, stock] = in_kernel_p99;
        match self {
            Self::Builtin(Antagonist::CpuSpin) => Some(stock?.mul_f64(1.2)),
            Self::Builtin(_) | Self::StressNg => Some(alone?.mul_f64(1.15)),
        }
    }
}

/// What all phases have in common.
#[derive(Clone, Debug)]
pub struct Scene {
    pub agent: PathBuf,
    pub out: PathBuf,
    pub ls: Service,
    pub rate: f64,
    pub seconds: u32,
    pub warm_up: u32,
    pub floor_milli_cores: u32,
}

/// What was seen in one phase, the warm-up left out where not said otherwise.
#[derive(Clone, Debug)]
pub struct Measured {
    pub client: client::Report,
    pub be_cores: f64,
    /// Units per second, `None` where they are not counted.
    pub be_work: Option<f64>,
    /// The least that BE got in any ten seconds.
    pub be_cores_min: f64,
    /// p99 that the probes saw, warm-up included.
    pub in_kernel_p99: Option<Duration>,
    pub slo: Option<Duration>,
    pub samples: Vec<Sample>,
    /// The agent's own cost, in cores.
    pub agent_cores: f64,
    pub agent_resident_bytes: u64,
    /// The last reason that the agent gave.
    pub explanation: String,
}

/// Half a second, by the agent and by the kernel's accounts.
#[derive(Clone, Debug)]
pub struct Sample {
    /// After the measurement began; negative during the warm-up.
    pub at_seconds: f64,
    pub be_cores: f64,
    pub limit_cores: Option<f64>,
    /// Waiting time of LS per time, charged to BE.
    pub blame: f64,
}

impl Scene {
    /// Runs one phase. `slo`: `None` only watches.
    pub fn run(
        &self,
        be: Be,
        phase: Phase,
        slo: Option<Duration>,
        seed: u64,
        say: impl Fn(&str),
    ) -> Result<Measured> {
        interrupt::check()?;
        let sandbox = Sandbox::new("enforcer-demo")?;
        let ls_group = sandbox.group("ls", LS_SHARES)?;
        let be_group = sandbox.group("be", BE_SHARES)?;
        let (mut server, address) = self.ls.start(&ls_group, &self.out)?;
        let mut agent = self.start_agent(&sandbox, slo)?;
        let work_path = self.out.join("work");
        fs::remove_file(&work_path).ok();
        let work = Work::open(&work_path)?;
        let mut antagonist =
            (phase != Phase::Alone).then(|| self.start_be(be, &be_group, &work_path)).transpose()?;

        let client = cast::client(address, &self.load(seed))?;
        let begun = Instant::now();
        let mut watch = Watch { group: &be_group, work: &work, points: Vec::new() };
        let total = Duration::from_secs(u64::from(self.seconds + self.warm_up));
        while begun.elapsed() + SAMPLE / 2 < total {
            interrupt::sleep(SAMPLE)?;
            agent.check()?;
            ensure!(antagonist.as_mut().is_none_or(Process::is_running), "BE ended by itself");
            watch.look(begun, &agent.status()?)?;
        }
        let client: client::Report = serde_json::from_str(&client.output()?)?;
        let status: Status = agent.status()?;
        let measured = watch.measured(client, &status, slo, f64::from(self.warm_up));
        agent.end(Some(&be_group))?;
        // Asked, not killed: nginx takes its workers along.
        server.terminate(Duration::from_secs(5))?;
        if phase == Phase::Enforced {
            say(&format!("        why: {}", measured.explanation));
        }
        fs::remove_file(&work_path).ok();
        Ok(measured)
    }

    /// The agent enforces `slo`, or watches only.
    fn start_agent(&self, sandbox: &Sandbox, slo: Option<Duration>) -> Result<Agent> {
        let arguments: &[&str] = if slo.is_none() { &["--shadow"] } else { &[] };
        let policy = agent::policy(sandbox, slo, self.floor_milli_cores);
        Agent::start(&self.agent, &self.out, &policy, Some(&self.out.join("agent.log")), arguments)
    }

    fn start_be(&self, be: Be, group: &Group, work: &Path) -> Result<Process> {
        let Be::Builtin(antagonist) = be else {
            let mut command = exec_in(Some(group), Signal::KILL, &installed("stress-ng")?)?;
            let threads = std::thread::available_parallelism()?.to_string();
            command.args(["--stream", &threads, "--temp-path", path_text(&self.out)?, "--quiet"]);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            return Process::start(be.name(), &mut command);
        };
        cast::antagonist(antagonist, group, &[], work)
    }

    fn load(&self, seed: u64) -> Load {
        Load {
            profile: Profile::constant(self.rate),
            saturate: false,
            connections: 32,
            seconds: self.seconds.into(),
            warm_up_seconds: self.warm_up.into(),
            seed: seed + 1,
            protocol: self.ls.protocol(),
            slo_us: None,
        }
    }
}

/// Follows BE and the agent during a phase.
struct Watch<'a> {
    group: &'a Group,
    work: &'a Work,
    points: Vec<Point>,
}

#[derive(Clone, Copy)]
struct Point {
    at_seconds: f64,
    cpu_seconds: f64,
    work: u64,
    limit_cores: Option<f64>,
    blame_seconds: f64,
}

impl Watch<'_> {
    fn look(&mut self, begun: Instant, status: &Status) -> Result<()> {
        let blame = status
            .group("ls")
            .and_then(|ls| ls.blame_seconds_total.iter().find(|(culprit, _)| culprit == "be"));
        self.points.push(Point {
            at_seconds: begun.elapsed().as_secs_f64(),
            cpu_seconds: self.group.cpu_time()?.as_secs_f64(),
            work: self.work.done(),
            limit_cores: status.group("be").and_then(|be| be.limit_cores),
            blame_seconds: blame.map_or(0.0, |(_, seconds)| *seconds),
        });
        Ok(())
    }

    fn measured(
        &self,
        client: client::Report,
        status: &Status,
        slo: Option<Duration>,
        warm_up: f64,
    ) -> Measured {
        let counted: Vec<&Point> =
            self.points.iter().filter(|point| point.at_seconds >= warm_up - 0.1).collect();
        let (first, last) = (counted[0], counted[counted.len() - 1]);
        let rate = |from: &Point, to: &Point| {
            (to.cpu_seconds - from.cpu_seconds) / (to.at_seconds - from.at_seconds)
        };
        let work = (last.work - first.work) as f64 / (last.at_seconds - first.at_seconds);
        let p99 = status.group("ls").and_then(|ls| ls.requests.as_ref()?.p99_seconds_total);
        let samples = self.points.windows(2).map(|pair| Sample {
            at_seconds: pair[1].at_seconds - warm_up,
            be_cores: rate(&pair[0], &pair[1]),
            limit_cores: pair[1].limit_cores,
            blame: (pair[1].blame_seconds - pair[0].blame_seconds)
                / (pair[1].at_seconds - pair[0].at_seconds),
        });
        Measured {
            client,
            be_cores: rate(first, last),
            be_work: (last.work > 0).then_some(work),
            be_cores_min: least_of_ten_seconds(&counted, rate),
            in_kernel_p99: p99.map(Duration::from_secs_f64),
            slo,
            samples: samples.collect(),
            agent_cores: status.agent_cpu_seconds.unwrap_or(f64::NAN) / status.uptime_seconds,
            agent_resident_bytes: status.agent_resident_bytes.unwrap_or_default(),
            explanation: status.explanation.clone(),
        }
    }
}

/// The least mean over ten seconds, or over everything if that is shorter.
fn least_of_ten_seconds(points: &[&Point], rate: impl Fn(&Point, &Point) -> f64) -> f64 {
    let pairs = points.iter().enumerate().filter_map(|(index, from)| {
        let to = points[index..].iter().find(|to| to.at_seconds - from.at_seconds >= 10.0)?;
        Some(rate(from, to))
    });
    let least = pairs.fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { rate(points[0], points[points.len() - 1]) }
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

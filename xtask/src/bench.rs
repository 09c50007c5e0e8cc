//! `cargo xtask bench`.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use enforcer_rig::{
    interrupt,
    process::{Process, exec_in, piped},
};
use rustix::process::Signal;

use crate::{
    build, cluster,
    programs::{self, cargo, is_root, root},
    setup,
};

const NAME: &str = "the benchmark";
/// How often to look whether a benchmark has ended.
const LOOK_UP: Duration = Duration::from_millis(100);
/// For a benchmark to clean up after itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Extra time per context switch: of an empty program, of the probe, and of a program in runqlat's style.
    Probe {
        #[command(flatten)]
        output: Output,
        /// Interleaved rounds.
        #[arg(long, default_value_t = 15)]
        rounds: usize,
    },
    /// CPU and memory of the agent with 10, 100 and 1,000 idle groups.
    Agent {
        #[command(flatten)]
        output: Output,
        /// How long to watch it for each number of groups.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// From the onset of trouble to the limit in force, and until BE stands still.
    Reaction {
        #[command(flatten)]
        output: Output,
        /// Times that BE strikes.
        #[arg(long, default_value_t = 100)]
        onsets: usize,
        /// What the agent may use.
        #[arg(long, default_value = "freeze,quota", value_name = "LEVERS")]
        levers: String,
    },
    /// Whether the latency that the probes see follows the clients' of redis and nginx, and what that costs the servers.
    Latency {
        #[command(flatten)]
        output: Output,
        /// Windows of rising interference.
        #[arg(long, default_value_t = 24)]
        windows: u32,
        /// Rounds at saturation, each once with and once without the agent.
        #[arg(long, default_value_t = 12)]
        rounds: u32,
    },
    /// Whether BE is left alone where nothing changes, and where LS is slow for reasons of its own.
    Rest {
        #[command(flatten)]
        output: Output,
        /// How long each of the four scenes is watched, a minute to converge not counted.
        #[arg(long, default_value_t = 10)]
        minutes: u32,
        /// These scenes only: `steady`, `steady_by_quota`, `own_quota`, `own_load` (repeat for several).
        #[arg(long)]
        scene: Vec<String>,
    },
    /// CPU and memory of the agent on a node of a cluster: with 80 idle pods, and with 500 of which some come and go.
    Node {
        #[command(flatten)]
        output: Output,
        /// How long to watch it in each case.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// What up to 1,000 agents ask of one API server, and how soon it answers.
    Cluster {
        #[command(flatten)]
        output: Output,
        /// Numbers of agents.
        #[arg(long, default_value = "0,100,300,1000")]
        agents: String,
        /// How long to watch each number of them.
        #[arg(long, default_value_t = 120)]
        seconds: u32,
    },
    /// How long a pod waits for the webhook, on one core.
    Webhook {
        #[command(flatten)]
        output: Output,
        /// Admissions per second.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        /// How long.
        #[arg(long, default_value_t = 30)]
        seconds: u32,
    },
    /// What LS and BE get side by side: under enforcer, stock and equal weights, static quotas and Koordinator's rule.
    ///
    /// `--help` tells the options once it is built.
    #[command(disable_help_flag = true)]
    Loop {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Write the figures here as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(is_root(), "benchmarks load BPF programs and make cgroups: run them as root");
    let agent = build::agent()?;
    println!("building the benchmarks");
    programs::run(build::with_linker(&mut cargo())?.args([
        "build",
        "--release",
        "--package",
        "enforcer-bench",
    ]))?;
    let output = match &args.what {
        What::Probe { output, rounds } => {
            let figures = figures(&["probe", "--rounds", &rounds.to_string()])?;
            (output, figures)
        }
        What::Agent { output, seconds } => {
            let agent = agent.to_str().context("the path of the agent is not UTF-8")?;
            (output, figures(&["agent", "--seconds", &seconds.to_string(), "--agent", agent])?)
        }
        What::Reaction { output, onsets, levers } => {
            (output, figures(&["reaction", "--onsets", &onsets.to_string(), "--levers", levers])?)
        }
        What::Latency { output, windows, rounds } => {
            setup::packages(&setup::SERVER_PACKAGES)?;
            let (windows, rounds) = (windows.to_string(), rounds.to_string());
            (output, figures(&["latency", "--windows", &windows, "--rounds", &rounds])?)
        }
        What::Rest { output, minutes, scene } => {
            let minutes = minutes.to_string();
            let scenes = scene.iter().flat_map(|scene| ["--scene", scene]);
            let arguments: Vec<&str> = ["rest", "--minutes", &minutes].into_iter().chain(scenes).collect();
            (output, figures(&arguments)?)
        }
        What::Node { output, seconds } => {
            (output, cluster::with(|| figures(&["node", "--seconds", &seconds.to_string()]))?)
        }
        What::Cluster { output, agents, seconds } => {
            let seconds = seconds.to_string();
            let arguments = ["cluster", "--agents", agents, "--seconds", &seconds];
            (output, cluster::with(|| figures(&arguments))?)
        }
        What::Webhook { output, rate, seconds } => {
            let (rate, seconds) = (rate.to_string(), seconds.to_string());
            let arguments = ["webhook", "--rate", &rate, "--seconds", &seconds];
            (output, cluster::with(|| figures(&arguments))?)
        }
        What::Loop { options } => {
            let mut bench = bench()?;
            return wait_for(Process::start(NAME, bench.arg("loop").args(options))?);
        }
    };
    let (Output { json }, figures) = output;
    print!("{figures}");
    if let Some(path) = json {
        fs::write(path, &figures).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A benchmark that is asked to end when this program ends, so that it can clean up.
fn bench() -> Result<Command> {
    exec_in(None, Signal::TERM, &root().join("target/release/enforcer-bench"))
}

/// Runs a benchmark to its end and returns what it printed.
fn figures(arguments: &[&str]) -> Result<String> {
    let mut command = bench()?;
    let mut bench = Process::start(NAME, piped(command.args(arguments)))?;
    let mut figures = String::new();
    let read = bench.each_line(|line| {
        if let Some(line) = line {
            figures += line;
            figures.push('\n');
        }
        interrupt::check()
    });
    if read.is_err() {
        bench.terminate(PATIENCE)?;
    }
    read?;
    wait_for(bench)?;
    Ok(figures)
}

/// Waits for a benchmark that prints for itself.
fn wait_for(mut bench: Process) -> Result<()> {
    let ended = loop {
        if let Some(ended) = bench.ended()? {
            break ended;
        }
        if interrupt::sleep(LOOK_UP).is_err() {
            break bench.terminate(PATIENCE)?;
        }
    };
    interrupt::check()?;
    ensure!(ended.success(), "{NAME} failed ({ended})");
    Ok(())
}

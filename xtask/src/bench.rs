//! `cargo xtask bench`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use enforcer_rig::process::piped;

use crate::{
    build,
    programs::{self, cargo, is_root, root},
};

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
    let mut bench = std::process::Command::new(root().join("target/release/enforcer-bench"));
    let output = match &args.what {
        What::Probe { output, rounds } => {
            bench.args(["probe", "--rounds", &rounds.to_string()]);
            output
        }
        What::Agent { output, seconds } => {
            bench.args(["agent", "--seconds", &seconds.to_string(), "--agent"]).arg(&agent);
            output
        }
    };
    let figures = enforcer_rig::process::Process::start("the benchmark", piped(&mut bench))?.output()?;
    print!("{figures}");
    if let Some(path) = &output.json {
        fs::write(path, &figures).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

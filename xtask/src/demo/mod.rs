//! `cargo xtask demo`: a latency-sensitive (LS) server beside best-effort (BE) work, on this machine.
//!
//! Three phases per antagonist: LS alone; LS and BE with the weights that stock Kubernetes gives them; the same with the
//! agent. Rounds are interleaved, so that drift of the host hits all phases alike; figures are medians over rounds.

pub mod gap;
mod page;
pub mod phase;
pub mod phases;
pub mod plot;
mod results;
mod scene;
pub mod status;
mod table;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{antagonist::Antagonist, progress::Progress, service::Service};

use self::{
    phase::Phase,
    results::Results,
    scene::{Be, Measured, Scene},
};
use crate::{
    build,
    programs::{is_root, root},
};

/// How to run the demo.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Write report.html and report.json here.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that are measured in each phase.
    #[arg(long, default_value_t = 11)]
    seconds: u32,
    /// Seconds before that: caches fill, the agent finds out what is wrong.
    #[arg(long, default_value_t = 3)]
    warm_up: u32,
    /// Bad neighbours (repeat for several). Default: memory-stream and cpu-spin.
    #[arg(long, value_enum)]
    be: Vec<Be>,
    /// The server.
    #[arg(long, value_enum, default_value_t = Service::Builtin)]
    ls: Service,
    /// Requests per second. Default: 850 for the builtin server, 5,000 for redis and nginx.
    #[arg(long)]
    rate: Option<f64>,
    /// What BE keeps under any squeeze, in thousandths of a core.
    #[arg(long, default_value_t = 100)]
    floor: u32,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(is_root(), "the demo makes cgroups and loads BPF programs: run it as root");
    ensure!(args.rounds > 0 && args.seconds > 0, "a demo takes one round and one second at least");
    let agent = build::agent()?;
    let out = if args.out.is_absolute() { args.out.clone() } else { root().join(&args.out) };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;

    let antagonists = if args.be.is_empty() {
        vec![Be::Builtin(Antagonist::MemoryStream), Be::Builtin(Antagonist::CpuSpin)]
    } else {
        args.be.clone()
    };
    let scene = Scene {
        agent,
        out: out.clone(),
        ls: args.ls,
        rate: args.rate.unwrap_or_else(|| args.ls.default_rate()),
        seconds: args.seconds,
        warm_up: args.warm_up,
        floor_milli_cores: args.floor,
    };
    let mut results = Results::new(&scene, args.rounds);
    let phases = args.rounds * antagonists.len() * Phase::ALL.len();
    println!("{phases} phases of {} s each", args.seconds + args.warm_up + 1);
    let progress = Progress::new(phases);
    for round in 0..args.rounds {
        for &be in &antagonists {
            run_round(&scene, round, be, &mut results, &progress)?;
        }
    }
    drop(progress);
    print!("{}", table::render(&results));
    let (page, json) = (out.join("report.html"), out.join("report.json"));
    fs::write(&json, serde_json::to_string_pretty(&results.to_json())?)?;
    fs::write(&page, page::render(&results)?)?;
    println!("\nplots:   {}\nfigures: {}", page.display(), json.display());
    Ok(())
}

fn run_round(scene: &Scene, round: usize, be: Be, results: &mut Results, progress: &Progress) -> Result<()> {
    let mut in_kernel_p99 = [None; 2];
    for phase in Phase::ALL {
        progress.begin(format!("round {}, {}: {}", round + 1, be.name(), phase.title()));
        let slo = match phase {
            Phase::Alone | Phase::Stock => None,
            Phase::Enforced => {
                Some(be.slo(in_kernel_p99).context("the probes saw no requests in the other phases")?)
            }
        };
        let run = scene.run(be, phase, slo, u64::try_from(round)?, |message| progress.say(message))?;
        if let Some(measured) = in_kernel_p99.get_mut(phase as usize) {
            *measured = run.in_kernel_p99;
        }
        progress.done(&summary(round, be, phase, &run));
        results.add(be, phase, run);
    }
    Ok(())
}

fn summary(round: usize, be: Be, phase: Phase, run: &Measured) -> String {
    format!(
        "round {} {:<14} {:<9} LS p50 {:>6.2} ms, p99 {:>6.2} ms; BE {:.2} cores",
        round + 1,
        be.name(),
        phase.name(),
        run.client.p50_us / 1e3,
        run.client.p99_us / 1e3,
        run.be_cores
    )
}

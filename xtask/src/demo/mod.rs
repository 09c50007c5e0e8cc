//! `cargo xtask demo`: a latency-sensitive (LS) server beside best-effort (BE) work, on this machine.
//!
//! Three phases per antagonist: LS alone; LS and BE with the weights that stock Kubernetes gives them; the same with the
//! agent. Rounds are interleaved, so that drift of the host hits all phases alike; figures are medians over rounds.

mod page;
mod results;
mod scene;
mod table;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::antagonist::Antagonist;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    results::{Phase, Results},
    scene::{Be, Ls, Measured, Scene},
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
    #[arg(long, value_enum, default_value_t = Ls::Builtin)]
    ls: Ls,
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
    let progress = Progress::new(phases, Duration::from_secs(u64::from(args.seconds + args.warm_up)));
    for round in 0..args.rounds {
        for &be in &antagonists {
            run_round(&scene, round, be, &mut results, &progress)?;
        }
    }
    progress.finish();
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
        progress.begin(round, be, phase);
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
        progress.done(round, be, phase, &run);
        results.add(be, phase, run);
    }
    Ok(())
}

/// What is going on: a bar on a terminal, a line per phase elsewhere.
struct Progress(ProgressBar);

impl Progress {
    fn new(phases: usize, each: Duration) -> Self {
        let bar = ProgressBar::new(phases as u64);
        let style =
            ProgressStyle::with_template("[{pos}/{len}] {bar:24} {msg} ({elapsed} so far, about {eta} left)");
        bar.set_style(style.expect("BUG: a bad template"));
        bar.enable_steady_tick(Duration::from_millis(500));
        println!("{phases} phases of {} s each", each.as_secs() + 1);
        Self(bar)
    }

    fn begin(&self, round: usize, be: Be, phase: Phase) {
        self.0.set_message(format!("round {}, {}: {}", round + 1, be.name(), phase.title()));
    }

    fn say(&self, message: &str) {
        if self.0.is_hidden() {
            println!("{message}");
        } else {
            self.0.println(message);
        }
    }

    fn done(&self, round: usize, be: Be, phase: Phase, run: &Measured) {
        let line = format!(
            "round {} {:<14} {:<9} LS p50 {:>6.2} ms, p99 {:>6.2} ms; BE {:.2} cores",
            round + 1,
            be.name(),
            phase.name(),
            run.client.p50_us / 1e3,
            run.client.p99_us / 1e3,
            run.be_cores
        );
        self.say(&line);
        self.0.inc(1);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

//! `cargo xtask cluster demo`: the whole story on one machine.
//!
//! A real node, the chart, a latency-sensitive (LS) pod under load, and real Spark, whose pods the webhook turns into batch
//! pods (BE) on what the agent lends. Three phases per round: LS alone; LS and BE while no agent runs; the same with the
//! agent. Rounds are interleaved, so that drift of the host hits all phases alike; figures are medians over rounds.

mod be;
mod chart;
mod excerpt;
mod lent;
mod ls;
mod machine;
mod names;
mod objects;
mod page;
mod results;
mod spark;
mod stage;
mod table;
mod tutorial;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{cluster::Cluster, interrupt, progress::Progress};

use self::{
    be::Be,
    chart::Chart,
    lent::Lent,
    ls::{Ls, LsPod},
    names::NameServer,
    results::Results,
    spark::{Distribution, Example, Job},
    stage::{Measured, Stage},
    tutorial::Tutorial,
};
use super::binaries::Binaries;
use crate::{
    demo::{phase::Phase, phases::Phases},
    go::{Kubernetes, Module, NoGo},
    image, manifests,
    programs::{is_root, root, run_quietly},
    setup,
};

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Write report.html and report.json here.
    #[arg(long, value_name = "DIR", default_value = "target/cluster-demo")]
    out: PathBuf,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds that are measured in each phase.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Seconds before that: Java compiles, the agent finds out what is wrong.
    #[arg(long, default_value_t = 20)]
    warm_up: u32,
    /// The batch work.
    #[arg(long, value_enum, default_value_t = Be::Spark)]
    be: Be,
    /// The latency-sensitive pod.
    #[arg(long, value_enum, default_value_t = Ls::Redis)]
    ls: Ls,
    /// Percent of the node's CPU up to which idle time is lent. More than 100 lends what is not there, on a machine that is
    /// busy with other things.
    #[arg(long, default_value_t = 100, value_name = "PERCENT")]
    reclaim: u32,
    /// Requests per second. Default: 12,000 for redis, 850 for the builtin server.
    #[arg(long)]
    rate: Option<f64>,
}

/// Of the agent's events, those that are shown.
const SHOWN_EVENTS: usize = 4;

/// What has to be there before.
struct Programs {
    name_server: PathBuf,
    helm: PathBuf,
}

impl Programs {
    fn find_or_build() -> Result<Self> {
        Binaries::find_or_build(Kubernetes::default())?;
        Ok(Self { name_server: Module::CoreDns.program("coredns")?, helm: manifests::helm()? })
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        println!("SKIPPED the cluster's demo (not root)");
        return Ok(());
    }
    let programs = match Programs::find_or_build() {
        Ok(programs) => programs,
        Err(err) => {
            let no_go = err.downcast::<NoGo>()?;
            println!("SKIPPED the cluster's demo ({no_go})");
            return Ok(());
        }
    };
    setup::packages(&setup::SERVER_PACKAGES)?;
    let out = if args.out.is_absolute() { args.out.clone() } else { root().join(&args.out) };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    // Before the cluster takes its part of the machine.
    let image = image::make(&image::Args::default())?;
    let spark = (args.be == Be::Spark).then(Distribution::find_or_make).transpose()?;
    let results = super::with(|| show(args, &programs, &image, spark.as_ref()))?;
    let table = table::render(&results);
    if let Some(excerpt) = results.excerpt() {
        print!("\n{excerpt}");
    }
    print!("{table}");
    let (page, json) = (out.join("report.html"), out.join("report.json"));
    fs::write(&json, serde_json::to_string_pretty(&results.to_json())?)?;
    fs::write(&page, page::render(&results)?)?;
    println!("\nplots:   {}\nfigures: {}", page.display(), json.display());
    Ok(())
}

/// The story, on a cluster that is up. Everything is taken away in the opposite order, also after a failure.
fn show(args: &Args, programs: &Programs, image: &Path, spark: Option<&Distribution>) -> Result<Results> {
    const PREPARATIONS: usize = 5;
    const CLEARANCES: usize = 1;
    let examples = if spark.is_some() { Example::ALL.len() } else { 0 };
    let steps = PREPARATIONS + examples + args.rounds as usize * Phase::ALL.len() + CLEARANCES;
    let progress = Progress::new(steps);
    let step = Steps(&progress);

    let _names = step.take("starting the name server", || NameServer::start(&programs.name_server))?;
    let cluster = Cluster::running()?;
    step.take("importing images", || import(&cluster, image, spark))?;
    let chart =
        step.take("installing the chart", || Chart::install(&cluster, &programs.helm, args.reclaim))?;
    let _tutorial = Tutorial::apply(&cluster)?;
    for (spark, example) in spark.into_iter().flat_map(|spark| Example::ALL.map(|example| (spark, example))) {
        interrupt::check()?;
        progress.begin(format!("Spark: {}, to its end", example.name()));
        let answer = Job::finish(&cluster, spark, example)?;
        progress
            .done(&format!("Spark's {} has ended, all of it on lent resources: {answer}", example.name()));
    }
    let ls = step.take("starting the LS pod", || LsPod::start(&cluster, args.ls))?;
    let stage = Stage {
        cluster: &cluster,
        chart: &chart,
        ls: &ls,
        be: args.be,
        spark,
        rate: args.rate.unwrap_or_else(|| args.ls.default_rate()),
        seconds: args.seconds,
        warm_up: args.warm_up,
    };
    let objective = step.take("seeing what LS does alone", || stage.learn(args.be.promise()))?;
    let mut phases = Phases::new();
    for round in 0..args.rounds {
        for phase in Phase::ALL {
            progress.begin(format!("round {}: {}", round + 1, phase.title()));
            let run = stage.run(phase, objective, round.into())?;
            progress.done(&summary(round, phase, &run));
            phases[phase].push(run);
        }
    }
    let events = events(&cluster)?;
    let results = Results {
        kubernetes: cluster.kubernetes.clone(),
        ls: args.ls.service().name(),
        be: args.be,
        rate: stage.rate,
        rounds: args.rounds,
        seconds: args.seconds,
        objective,
        phases,
        events,
    };
    drop(ls);
    step.take("uninstalling the chart", || chart.uninstall())?;
    let left = Lent::now(&cluster)?;
    ensure!(left == Lent::default(), "batch resources were left behind: {left:?}");
    Ok(results)
}

/// Names steps and says how long they took.
struct Steps<'a>(&'a Progress);

impl Steps<'_> {
    fn take<T>(&self, what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        interrupt::check()?;
        self.0.begin(what.to_owned());
        let begun = Instant::now();
        let done = step().with_context(|| format!("{what} was not successful"))?;
        self.0.done(&format!("{what}: {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(done)
    }
}

fn import(cluster: &Cluster, image: &Path, spark: Option<&Distribution>) -> Result<()> {
    let archives = std::iter::once(image).chain(spark.map(|spark| spark.archive.as_path()));
    for archive in archives {
        run_quietly(&mut cluster.import(archive)?)?;
    }
    Ok(())
}

/// What the agent has told of squeezes lately, oldest first.
fn events(cluster: &Cluster) -> Result<Vec<String>> {
    let arguments = [
        "get",
        "events",
        "--all-namespaces",
        "--field-selector=reason=BatchThrottled",
        "--sort-by=.metadata.creationTimestamp",
    ];
    let found = cluster.ask_json(&arguments)?;
    let events = found["items"].as_array().into_iter().flatten().map(|event| {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        format!("BatchThrottled {}: {}", text(&event["involvedObject"]["name"]), text(&event["message"]))
    });
    let events: Vec<String> = events.collect();
    Ok(events[events.len().saturating_sub(SHOWN_EVENTS)..].to_vec())
}

fn summary(round: u32, phase: Phase, run: &Measured) -> String {
    format!(
        "round {} {:<9} LS p50 {:>6.2} ms, p99 {:>6.2} ms; BE {:.2} cores, node {:.2} cores; lent {:.2} cores",
        round + 1,
        phase.name(),
        run.client.p50_us / 1e3,
        run.client.p99_us / 1e3,
        run.be_cores,
        run.node_cores,
        run.lent.cores
    )
}

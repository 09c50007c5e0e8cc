//! `bench loop`: what LS and BE get side by side, under enforcer and under what it could be replaced with.
//!
//! A cell is one policy in one scenario for some seconds. Rounds are outermost and policies innermost, so that drift of the
//! host hits all policies alike.

mod calibration;
mod interval;
mod matrix;
mod page;
mod policy;
mod record;
mod scenario;
mod stage;
mod subset;
mod summary;
mod table;
mod verdict;

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_rig::{interrupt, process::built, progress::Progress};
use serde_json::json;

use self::{
    matrix::Matrix,
    policy::Policy,
    record::{Cell, Record, Settings},
    scenario::Scenario,
    stage::Stage,
    subset::Subset,
    summary::Comparison,
    verdict::Judgement,
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Write the figures here after every cell. If the file is there already, what it holds is not measured again. Default:
    /// loop.json in the directory of --out.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write report.html and the agent's log here. Default: target/bench-loop.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Two scenarios, in less than ten minutes.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// The whole matrix: some eleven hours. Can be interrupted and resumed.
    #[arg(long)]
    full: bool,
    /// Forget what the file holds.
    #[arg(long)]
    fresh: bool,
    /// Requests per second that the node serves with LS alone, if the file does not tell. Default: measured.
    #[arg(long)]
    capacity: Option<f64>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that are measured in each cell. Default: 20, with --quick 10.
    #[arg(long)]
    seconds: Option<u32>,
    /// Seconds before that.
    #[arg(long, default_value_t = 5)]
    warm_up: u32,
    /// These scenarios only, such as memory-stream@50 or cpu-spin@square (repeat for several).
    #[arg(long)]
    scenario: Vec<Scenario>,
    /// These policies only, such as stock, static-20-100ms or enforcer (repeat for several).
    #[arg(long)]
    policy: Vec<Policy>,
}

/// The SLO is so many times the p99 of LS alone: what a service would promise that is to be left some room.
const SLO_FACTOR: f64 = 1.5;
/// The agent's default.
const BE_FLOOR_MILLI_CORES: u32 = 100;

impl Args {
    fn subset(&self) -> Subset {
        match (self.quick, self.full) {
            (true, _) => Subset::Quick,
            (_, true) => Subset::Full,
            _ => Subset::Telling,
        }
    }

    fn settings(&self, agent: &Path) -> Result<Settings> {
        Ok(Settings {
            warm_up_seconds: self.warm_up,
            seconds: self.seconds.unwrap_or_else(|| self.subset().seconds()),
            slo_factor: SLO_FACTOR,
            be_floor_milli_cores: BE_FLOOR_MILLI_CORES,
            cpus: std::thread::available_parallelism()?.get(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            programs: fingerprint(&[agent, &built("workload")?, &std::env::current_exe()?])?,
        })
    }

    fn matrix(&self, settings: &Settings) -> Matrix {
        let floor_cores = f64::from(settings.be_floor_milli_cores) / 1e3;
        let or = |chosen: &[Policy], all: Vec<Policy>| if chosen.is_empty() { all } else { chosen.to_vec() };
        let scenarios =
            if self.scenario.is_empty() { self.subset().scenarios() } else { self.scenario.clone() };
        let policies = or(&self.policy, self.subset().policies(settings.cpus, floor_cores));
        Matrix { scenarios, policies, rounds: self.rounds }
    }
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.seconds != Some(0), "it takes one round and one second at least");
    let agent = built("enforcer")?;
    let out = args.out.clone().map_or_else(default_out, Ok)?;
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let json = args.json.clone().unwrap_or_else(|| out.join("loop.json"));
    let settings = args.settings(&agent)?;
    let mut record =
        if args.fresh { Record::new(settings.clone()) } else { Record::load(&json, settings.clone())? };
    if let (Some(given), Some(found)) = (args.capacity, record.capacity_hz) {
        ensure!(
            (given - found).abs() < f64::EPSILON,
            "{} holds cells at a capacity of {found} requests/s: leave out --capacity, name another file, or begin anew \
             with --fresh",
            json.display()
        );
    }
    record.capacity_hz = record.capacity_hz.or(args.capacity);
    let matrix = args.matrix(&settings);

    let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(&out)?;
    let stage = Stage::new(&agent, &out.join("agent.log"), scratch.path(), settings)?;
    // What a signal did to the processes is no error of theirs.
    measure(&stage, &matrix, &mut record, &json).map_err(|err| interrupt::check().err().unwrap_or(err))?;

    let page = out.join("report.html");
    report(&mut record, &page)?;
    record.save(&json)?;
    println!("\nplots:   {}\nfigures: {}", page.display(), json.display());
    Ok(())
}

/// Finds out what the record does not hold yet, once for all policies: they are judged by the same numbers.
fn calibrate(stage: &Stage, matrix: &Matrix, record: &mut Record, json: &Path) -> Result<f64> {
    let given_hz = record.capacity_hz;
    let mut capacity_hz = given_hz.map_or_else(|| calibration::sane_hz(|load| stage.alone(load)), Ok)?;
    for _ in 0..=calibration::LOWERINGS {
        println!("the node serves {capacity_hz:.0} requests/s with LS alone");
        record.capacity_hz = Some(capacity_hz);
        let Some(percent) = promise(stage, matrix, record, json)? else { return Ok(capacity_hz) };
        let rate = capacity_hz * f64::from(percent) / 100.0;
        ensure!(
            given_hz.is_none(),
            "LS alone is too slow at {rate:.0} requests/s, or slower than at more: something else keeps the node busy, or \
             --capacity is too high; run it again with --fresh when the node is calm"
        );
        // A good moment of the host was taken for the node's strength.
        println!("LS alone is too slow at {rate:.0} requests/s, or slower than at more: once more with less");
        capacity_hz *= calibration::LOWERED;
        record.slo_us.clear();
    }
    bail!(
        "LS alone is too slow at any load that was tried: something else keeps the node busy, or its host does; run \
         it again with --fresh when the node is calm"
    )
}

/// Makes the SLOs that the record does not hold yet. The load, in percent, of which none can be made, if any.
fn promise(stage: &Stage, matrix: &Matrix, record: &mut Record, json: &Path) -> Result<Option<u32>> {
    let capacity_hz = record.capacity_hz.expect("BUG: an SLO without a capacity");
    // The greatest first: if one is too much, it is.
    let mut least_us = f64::INFINITY;
    for percent in matrix.slo_percents().into_iter().rev() {
        let known = record.slo_us.get(&percent).copied();
        let measure = || calibration::slo_us(stage, capacity_hz * f64::from(percent) / 100.0);
        let slo_us = known.map_or_else(measure, |slo_us| Ok(Some(slo_us)))?;
        let Some(slo_us) = slo_us.filter(|slo_us| *slo_us <= calibration::SLOWER * least_us) else {
            return Ok(Some(percent));
        };
        least_us = least_us.min(slo_us);
        record.slo_us.insert(percent, slo_us);
        record.save(json)?;
        println!("SLO at {percent} %: {:.2} ms", slo_us / 1e3);
    }
    Ok(None)
}

/// Runs what the record does not hold yet.
fn measure(stage: &Stage, matrix: &Matrix, record: &mut Record, json: &Path) -> Result<()> {
    let keys = matrix.missing(record);
    println!(
        "{} cells, about {:.0} minutes; {} done before",
        keys.len(),
        stage.minutes(keys.len()),
        record.cells.len()
    );
    let capacity_hz = calibrate(stage, matrix, record, json)?;
    let progress = Progress::new(keys.len());
    let count = keys.len();
    for (number, key) in keys.into_iter().enumerate() {
        let name =
            key.be.map_or_else(|| key.load.to_string(), |be| Scenario { be, load: key.load }.to_string());
        progress.begin(format!("round {}, {name}: {}", key.round + 1, key.policy));
        ensure!(
            stage.has_same_agent()?,
            "the agent was built anew meanwhile: cells of two agents must not be compared; begin anew with --fresh"
        );
        let slo_us = record.slo_us[&key.load.peak_percent()];
        let outcome = stage.run(key, key.load.profile(capacity_hz), slo_us)?;
        progress.done(&format!(
            "round {} {name:<18} {:<20} LS p99 {:>7.2} ms, {:>5.2} % slow; BE {:.2} cores, others {:.2}; {:.1} \
             minutes left",
            key.round + 1,
            key.policy,
            outcome.p99_us / 1e3,
            outcome.slow as f64 / outcome.requests.max(1) as f64 * 100.0,
            outcome.be_cores,
            outcome.other_cores,
            stage.minutes(count - number - 1)
        ));
        record.cells.push(Cell { key, outcome });
        record.save(json)?;
    }
    Ok(())
}

/// Judges all that has been measured, prints it, and writes the page.
fn report(record: &mut Record, page: &Path) -> Result<()> {
    let comparisons: Vec<Comparison<'_>> =
        Scenario::of(record).into_iter().filter_map(|scenario| Comparison::of(scenario, record)).collect();
    let verdicts: Vec<(Scenario, Vec<Judgement>)> =
        comparisons.iter().map(|comparison| (comparison.scenario, verdict::judge(comparison))).collect();
    println!("\n{}", table::heading(record));
    for (comparison, (_, judgements)) in comparisons.iter().zip(&verdicts) {
        println!("{}{}", table::scenario(comparison), table::judgements(judgements));
    }
    print!("{}", table::verdicts(&verdicts));
    fs::write(page, page::render(record, &comparisons, &verdicts)?)
        .with_context(|| format!("cannot write {}", page.display()))?;
    let results = comparisons.iter().zip(&verdicts).map(|(comparison, (scenario, judgements))| {
        json!({
            "scenario": scenario.to_string(),
            "slo_us": comparison.slo_us,
            "is_disturbed": comparison.is_disturbed(),
            "oracle": comparison.oracle().map(|oracle| oracle.policy),
            "be_work_unit": scenario.be.unit(),
            "policies": comparison.summaries,
            "verdicts": judgements,
        })
    });
    record.results = results.collect();
    Ok(())
}

/// Beside the directory of this program.
fn default_out() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    Ok(me.ancestors().nth(2).context("this program lies in no target directory")?.join("bench-loop"))
}

/// Tells one build of a program from another.
fn fingerprint(programs: &[&Path]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for program in programs {
        hasher.write(&fs::read(program).with_context(|| format!("cannot read {}", program.display()))?);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

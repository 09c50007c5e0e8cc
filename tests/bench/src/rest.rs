//! `bench rest`: is BE left alone where nothing changes, and where it is not to blame?
//!
//! Scenes of equal length. `steady`: BE on the CPUs that hurts, squeezed to what LS can bear. `own_quota` and `own_load`: LS misses its objective for reasons of its own, beside a BE that is busy and harmless. BE's limit is read
//! many times a second, from outside; the agent is asked for its reasons.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use enforcer_rig::{
    agent::Agent,
    antagonist::Antagonist,
    arrivals::Profile,
    cast,
    client::Load,
    interrupt,
    process::{Process, built, piped, workload_in},
    sandbox::Sandbox,
    work::monotonic,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long each scene is watched.
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// These scenes only (repeat for several).
    #[arg(long, value_parser = PossibleValuesParser::new(SCENES.iter().map(|scene| scene.name)))]
    scene: Vec<String>,
}

/// One scene.
struct Scene {
    name: &'static str,
    be_shares: u32,
    rate_hz: f64,
    spin_us: u64,
    slo: Duration,
    /// CPUs that LS's own quota allows it.
    ls_quota: Option<f64>,
    /// What may be pulled on BE; all of them by default.
    levers: Option<&'static str>,
}

const SCENES: [Scene; 4] = [
    Scene {
        name: "steady",
        be_shares: 4 * cast::LS_SHARES,
        rate_hz: 1_000.0,
        spin_us: 800,
        slo: Duration::from_millis(5),
        ls_quota: None,
        levers: None,
    },
    Scene {
        name: "steady_by_quota",
        be_shares: 4 * cast::LS_SHARES,
        rate_hz: 1_000.0,
        spin_us: 800,
        slo: Duration::from_millis(5),
        ls_quota: None,
        levers: Some("quota"),
    },
    // Half a CPU of work, and less than that allowed in each tenth of a second.
    Scene {
        name: "own_quota",
        be_shares: cast::BE_SHARES,
        rate_hz: 600.0,
        spin_us: 800,
        slo: Duration::from_millis(5),
        ls_quota: Some(0.3),
        levers: None,
    },
    // Whatever BE does, answers take longer than promised.
    Scene {
        name: "own_load",
        be_shares: cast::BE_SHARES,
        rate_hz: 150.0,
        spin_us: 4_000,
        slo: Duration::from_millis(3),
        ls_quota: None,
        levers: None,
    },
];
const LOOK: Duration = Duration::from_millis(50);
/// To converge, before anything counts.
const CONVERGED: Duration = Duration::from_mins(1);
const MINUTE: Duration = Duration::from_mins(1);
const QUOTA_PERIOD: Duration = Duration::from_millis(100);

/// As much of the agent's status as is needed here.
#[derive(Deserialize)]
struct Status {
    reason: String,
    explanation: String,
}

/// What was seen of one scene.
#[derive(Default)]
struct Seen {
    /// Changes of BE's limit in each minute, those of trials told apart.
    changes: Vec<u32>,
    trial_changes: u32,
    /// Share of the looks at which this was the agent's reason.
    reasons: BTreeMap<String, u32>,
    explanations: BTreeMap<String, u32>,
    looks: u32,
    limited: u32,
    be_cores: f64,
}

pub fn run(args: &Args) -> Result<Value> {
    let program = built("enforcer")?;
    let scratch = tempfile::Builder::new().prefix("enforcer-rest-").tempdir()?;
    let mut scenes = serde_json::Map::new();
    let is_chosen =
        |scene: &&Scene| args.scene.is_empty() || args.scene.iter().any(|name| name == scene.name);
    for scene in SCENES.iter().filter(is_chosen) {
        eprintln!("{}: {} minutes", scene.name, args.minutes + 1);
        let seen = scene.watch(&program, scratch.path(), MINUTE * args.minutes)?;
        eprintln!("{}: limit changes per minute {:?}", scene.name, seen.changes);
        scenes.insert(scene.name.to_owned(), seen.figures());
    }
    Ok(json!({ "minutes": args.minutes, "scenes": scenes }))
}

impl Scene {
    fn watch(&self, program: &Path, scratch: &Path, length: Duration) -> Result<Seen> {
        let sandbox = Sandbox::new("enforcer-rest")?;
        let ls = sandbox.group("ls", cast::LS_SHARES)?;
        let be = sandbox.group("be", self.be_shares)?;
        if let Some(cores) = self.ls_quota {
            ls.set_cpu_limit(cores, QUOTA_PERIOD)?;
        }
        let mut command = workload_in(&ls)?;
        command.args(["serve", "--steps", "0", "--memory-mib", "1", "--spin-us", &self.spin_us.to_string()]);
        let mut server = Process::start("the LS server", piped(&mut command))?;
        let address = server.first_line()?.parse()?;
        let _client = cast::client(address, &Load::open_loop(Profile::constant(self.rate_hz), 24 * 3600))?;
        let _antagonist = cast::antagonist(Antagonist::CpuSpin, &be, &[], &scratch.join("work"))?;
        let log = scratch.join("agent.log");
        let mut policy = enforcer_rig::agent::policy(&sandbox, Some(self.slo), 100);
        if let Some(levers) = self.levers {
            policy += &format!("  levers: [{levers}]\n");
        }
        let mut agent = Agent::start(program, scratch, &policy, Some(&log), &[])?;
        interrupt::sleep(CONVERGED)?;

        let free = "-1 100000";
        let (begun, before) = (monotonic(), be.cpu_time()?);
        let mut seen = Seen::default();
        let mut limit = be.cpu_limit()?;
        while monotonic() < begun + length {
            interrupt::sleep(LOOK)?;
            agent.check().with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
            let status: Status = agent.status()?;
            let minute = monotonic().saturating_sub(begun).as_secs() / MINUTE.as_secs();
            seen.changes.resize(usize::try_from(minute)? + 1, 0);
            let now = be.cpu_limit()?;
            if now != limit {
                let last = seen.changes.last_mut().context("BUG: a minute has begun")?;
                *if status.reason == "trial" { &mut seen.trial_changes } else { last } += 1;
            }
            seen.limited += u32::from(now != free && !now.starts_with("max"));
            limit = now;
            seen.looks += 1;
            *seen.reasons.entry(status.reason).or_default() += 1;
            *seen.explanations.entry(status.explanation).or_default() += 1;
        }
        seen.be_cores = be.cpu_time()?.saturating_sub(before).as_secs_f64() / length.as_secs_f64();
        agent.end(Some(&be))?;
        Ok(seen)
    }
}

impl Seen {
    fn figures(&self) -> Value {
        let share = |count: u32| f64::from(count) / f64::from(self.looks.max(1));
        let reasons: BTreeMap<&str, f64> =
            self.reasons.iter().map(|(reason, count)| (reason.as_str(), share(*count))).collect();
        let likeliest = self.explanations.iter().max_by_key(|(_, count)| **count).map(|(text, _)| text);
        json!({
            "limit_changes_per_minute": self.changes,
            "limit_changes_in_trials": self.trial_changes,
            "share_of_time_limited": share(self.limited),
            "share_of_time_by_reason": reasons,
            "explained_mostly_as": likeliest,
            "be_cores": self.be_cores,
        })
    }
}

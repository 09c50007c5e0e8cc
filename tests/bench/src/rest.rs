//! `bench rest`: is BE left alone where nothing changes, and where it is not to blame?
//!
//! Scenes of equal length. `steady`: BE on the CPUs that hurts, squeezed to what LS can bear. `own_quota` and `own_load`: LS misses
//! its objective for reasons of its own, beside a BE that is busy and harmless. All that may hold BE back is read many times a
//! second, from outside; the agent is asked for its reasons.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use enforcer_rig::{
    agent::Agent, antagonist::Antagonist, arrivals::Profile, cast, client::Load, interrupt, process::built,
    sandbox::Sandbox, work::monotonic,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::watch::Watch;

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
    /// What each request costs LS.
    spin: Duration,
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
        spin: Duration::from_micros(800),
        slo: Duration::from_millis(5),
        ls_quota: None,
        levers: None,
    },
    Scene {
        name: "steady_by_quota",
        be_shares: 4 * cast::LS_SHARES,
        rate_hz: 1_000.0,
        spin: Duration::from_micros(800),
        slo: Duration::from_millis(5),
        ls_quota: None,
        levers: Some("quota"),
    },
    // Half a CPU of work, and less than that allowed in each tenth of a second.
    Scene {
        name: "own_quota",
        be_shares: cast::BE_SHARES,
        rate_hz: 600.0,
        spin: Duration::from_micros(800),
        slo: Duration::from_millis(5),
        ls_quota: Some(0.3),
        levers: None,
    },
    // Whatever BE does, answers take longer than promised.
    Scene {
        name: "own_load",
        be_shares: cast::BE_SHARES,
        rate_hz: 150.0,
        spin: Duration::from_millis(4),
        slo: Duration::from_millis(3),
        ls_quota: None,
        levers: None,
    },
];
const LOOK: Duration = Duration::from_millis(50);
const LOOKS_PER_SECOND: u32 = 20;
/// For the agent to tell of its last decision.
const PUBLISHED: Duration = Duration::from_millis(1_500);
/// To converge, before anything counts.
const CONVERGED: Duration = Duration::from_mins(1);
const MINUTE: Duration = Duration::from_mins(1);
const QUOTA_PERIOD: Duration = Duration::from_millis(100);

/// As much of the agent's status as is needed here.
#[derive(Deserialize)]
struct Status {
    explanation: String,
    uptime_seconds: f64,
}

/// As much of `/v1/decisions` as is needed here.
#[derive(Deserialize)]
struct Decision {
    at_seconds: f64,
    reason: String,
}

/// That something holds BE back now that did not, or in another way.
struct Change {
    at: Duration,
    from: String,
    to: String,
}

/// What was seen of one scene.
#[derive(Default)]
struct Seen {
    begun: Duration,
    length: Duration,
    changes: Vec<Change>,
    /// In the order in which they were made.
    decisions: Vec<Decision>,
    /// When the agent started, at the latest.
    agent_started: Option<Duration>,
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
        let figures = seen.figures();
        eprintln!("{}: {figures:#}", scene.name);
        scenes.insert(scene.name.to_owned(), figures);
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
        let (mut server, address) = cast::computing_server(&ls, self.spin)?;
        let mut client = cast::client(address, &Load::open_loop(Profile::constant(self.rate_hz), 24 * 3600))?;
        let watch = Watch::new(&be)?;
        let free = watch.look()?.limits;
        let mut antagonist = cast::antagonist(Antagonist::CpuSpin, &be, &[], &scratch.join("work"))?;
        let log = scratch.join("agent.log");
        let mut policy = enforcer_rig::agent::policy(&sandbox, Some(self.slo), 100);
        if let Some(levers) = self.levers {
            policy += &format!("  levers: [{levers}]\n");
        }
        let mut agent = Agent::start(program, scratch, &policy, Some(&log), &[])?;
        interrupt::sleep(CONVERGED)?;

        let (begun, before) = (monotonic(), be.cpu_time()?);
        let mut seen = Seen { begun, length, ..Seen::default() };
        let mut limits = watch.look()?.limits;
        while monotonic() < begun + length {
            interrupt::sleep(LOOK)?;
            agent.check().with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
            let all_run = server.is_running() && client.is_running() && antagonist.is_running();
            ensure!(all_run, "LS, its client or BE ended by itself");
            let now = watch.look()?;
            seen.looks += 1;
            seen.limited += u32::from(now.limits != free);
            if now.limits != limits {
                let from = std::mem::replace(&mut limits, now.limits.clone());
                seen.changes.push(Change { at: now.at, from, to: now.limits });
            }
            seen.ask(&agent)?;
        }
        seen.be_cores = be.cpu_time()?.saturating_sub(before).as_secs_f64() / length.as_secs_f64();
        interrupt::sleep(PUBLISHED)?;
        seen.note_decisions(&agent)?;
        agent.end(Some(&be))?;
        Ok(seen)
    }
}

impl Seen {
    fn ask(&mut self, agent: &Agent) -> Result<()> {
        let Status { explanation, uptime_seconds } = agent.status()?;
        *self.explanations.entry(explanation).or_default() += 1;
        // What is told is up to a second old: the latest news are the freshest.
        let started = monotonic().saturating_sub(Duration::from_secs_f64(uptime_seconds));
        self.agent_started = Some(self.agent_started.map_or(started, |before| before.min(started)));
        if self.looks.is_multiple_of(LOOKS_PER_SECOND) {
            self.note_decisions(agent)?;
        }
        Ok(())
    }

    fn note_decisions(&mut self, agent: &Agent) -> Result<()> {
        let latest = self.decisions.last().map_or(f64::MIN, |decision| decision.at_seconds);
        let all: Vec<Decision> = agent.get("/v1/decisions")?;
        self.decisions.extend(all.into_iter().filter(|decision| decision.at_seconds > latest));
        Ok(())
    }

    /// Reasons with the time at which they began and ended to be the agent's, within the scene.
    fn reasons(&self) -> Vec<(&str, Duration, Duration)> {
        let started = self.agent_started.unwrap_or_default();
        let (from, to) = (self.begun, self.begun + self.length);
        let at = |decision: &Decision| {
            (started + Duration::from_secs_f64(decision.at_seconds.max(0.0))).clamp(from, to)
        };
        let mut all: Vec<(&str, Duration, Duration)> = Vec::new();
        for (place, decision) in self.decisions.iter().enumerate() {
            let (began, ended) = (at(decision), self.decisions.get(place + 1).map_or(to, at));
            match all.last_mut() {
                Some(last) if last.0 == decision.reason => last.2 = ended,
                _ => all.push((&decision.reason, began, ended)),
            }
        }
        all.retain(|(_, began, ended)| ended > began);
        all
    }

    /// Whether a change is part of a trial of that time: all that happen in it, and that what was in force before is so again at
    /// its end.
    fn is_of_trial(&self, change: &Change, began: Duration, ended: Duration) -> bool {
        let begins = began.saturating_sub(LOOK / 2);
        let first = self.changes.iter().find(|first| first.at >= begins);
        let is_back = first.is_some_and(|first| first.from == change.to);
        let until = if is_back { ended + 2 * LOOK } else { ended };
        (begins..until).contains(&change.at)
    }

    fn figures(&self) -> Value {
        let share = |count: u32| f64::from(count) / f64::from(self.looks.max(1));
        let reasons = self.reasons();
        let of_a_trial = |change: &&Change| {
            let mut trials = reasons.iter().filter(|(reason, ..)| *reason == "trial");
            trials.any(|&(_, began, ended)| self.is_of_trial(change, began, ended))
        };
        let (of_trials, others): (Vec<_>, Vec<_>) = self.changes.iter().partition(of_a_trial);
        let minutes = (self.length.as_secs() / MINUTE.as_secs()).max(1);
        let in_minute = |minute: u64| {
            let is_then = |change: &&&Change| {
                let seconds = change.at.saturating_sub(self.begun).as_secs();
                (seconds / MINUTE.as_secs()).min(minutes - 1) == minute
            };
            others.iter().filter(is_then).count()
        };
        let changes: Vec<usize> = (0..minutes).map(in_minute).collect();
        let mut time: BTreeMap<&str, f64> = BTreeMap::new();
        let mut longest: BTreeMap<&str, f64> = BTreeMap::new();
        for &(reason, began, ended) in &reasons {
            let seconds = ended.saturating_sub(began).as_secs_f64();
            *time.entry(reason).or_default() += seconds / self.length.as_secs_f64();
            let longest = longest.entry(reason).or_default();
            *longest = longest.max(seconds);
        }
        let likeliest = self.explanations.iter().max_by_key(|(_, count)| **count).map(|(text, _)| text);
        json!({
            "limit_changes_per_minute": changes,
            "limit_changes_in_trials": of_trials.len(),
            "share_of_time_limited": share(self.limited),
            "share_of_time_by_reason": time,
            "longest_seconds_by_reason": longest,
            "explained_mostly_as": likeliest,
            "be_cores": self.be_cores,
        })
    }
}

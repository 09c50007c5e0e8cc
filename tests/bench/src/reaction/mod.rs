//! `bench reaction`: how long does BE hurt before something is done about it?
//!
//! BE strikes again and again, as a batch pod that requests four CPUs beside an LS pod that requests one. Each time it is seen from outside when the first limit can be read back
//! and when BE stands still. Enforcer and Koordinator's rule take turns.

mod strike;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    agent::Agent,
    arrivals::Profile,
    cast,
    client::Load,
    interrupt,
    process::built,
    sandbox::{Group, Sandbox},
    work::monotonic,
};
use serde_json::{Value, json};

use self::strike::{Stage, Strike};
use crate::koordinator::{Lever, Suppressor};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Times that BE strikes under enforcer.
    #[arg(long, default_value_t = 100)]
    onsets: usize,
    /// What the agent may use.
    #[arg(long, default_value = "freeze,quota", value_name = "LEVERS")]
    levers: String,
}

/// Strikes under enforcer between two turns of Koordinator's rule, and how many that rule gets.
const TURN: usize = 20;
const RULE_TURN: usize = 5;
/// cpu.shares of a pod that requests four CPUs.
const BE_SHARES: u32 = 4 * cast::LS_SHARES;
/// Requests per second, each 800 us of computing: two fifths of two CPUs.
const RATE_HZ: f64 = 1_000.0;
const SPIN: Duration = Duration::from_micros(800);
/// What LS was promised: what it keeps without BE.
const LATENCY_SLO: Duration = Duration::from_millis(4);
const WAIT_SLO: Duration = Duration::from_millis(2);
/// For the agent to learn how often it hears of LS.
const LEARN: Duration = Duration::from_secs(4);

pub fn run(args: &Args) -> Result<Value> {
    ensure!(args.onsets > 0, "it takes one onset at least");
    let agent = built("enforcer")?;
    let scratch = tempfile::Builder::new().prefix("enforcer-reaction-").tempdir()?;
    let sandbox = Sandbox::new("enforcer-reaction")?;
    let ls = sandbox.group("ls", cast::LS_SHARES)?;
    let be = sandbox.group("be", BE_SHARES)?;
    let (mut server, address) = cast::computing_server(&ls, SPIN)?;
    let mut client = cast::client(address, &Load::open_loop(Profile::constant(RATE_HZ), 24 * 3600))?;
    let stage = Stage::new(&be, scratch.path())?;

    let (mut enforced, mut by_rule) = (Vec::new(), Vec::new());
    while enforced.len() < args.onsets {
        let turn = TURN.min(args.onsets - enforced.len());
        eprintln!("{} of {} onsets", enforced.len(), args.onsets);
        ensure!(server.is_running() && client.is_running(), "LS or its client ended by itself");
        enforced.extend(under_enforcer(args, turn, &agent, &sandbox, &stage, scratch.path())?);
        by_rule.extend(under_rule(&ls, &be, &stage)?);
    }
    Ok(json!({
        "onsets": args.onsets,
        "levers": args.levers,
        "slo_ms": { "requestLatency": LATENCY_SLO.as_millis(), "runQueueWait": WAIT_SLO.as_millis() },
        "enforcer": strike::summary(&enforced),
        "koordinator_quota": strike::summary(&by_rule),
    }))
}

fn under_enforcer(
    args: &Args,
    turn: usize,
    program: &Path,
    sandbox: &Sandbox,
    stage: &Stage<'_>,
    scratch: &Path,
) -> Result<Vec<Strike>> {
    let log = scratch.join("agent.log");
    let mut agent = Agent::start(program, scratch, &policy(sandbox, &args.levers), Some(&log), &[])?;
    interrupt::sleep(LEARN)?;
    let mut strikes = Vec::new();
    for _ in 0..turn {
        agent.check().with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let mut strike = stage.strike(|| Ok(()))?;
        strike.find_onset(&agent)?;
        eprintln!("{strike}");
        strikes.push(strike);
    }
    agent.end(Some(stage.be))?;
    Ok(strikes)
}

/// The rule finds a BE that it has not limited yet, and looks once a second.
fn under_rule(ls: &Group, be: &Group, stage: &Stage<'_>) -> Result<Vec<Strike>> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut strikes = Vec::new();
    for number in 0..RULE_TURN {
        let mut suppressor = Suppressor::new(cpus, ls, be, Lever::Quota(None))?;
        // Its ticks do not know of the onset: spread over their second.
        let phase = Duration::from_secs(1).mul_f64((number as f64 + 0.5) / RULE_TURN as f64);
        let mut next = None;
        strikes.push(stage.strike(|| {
            let now = monotonic();
            let tick_at = next.get_or_insert(now + phase);
            if now >= *tick_at {
                *tick_at += Duration::from_secs(1);
                suppressor.tick()?;
            }
            Ok(())
        })?);
        be.lift_cpu_limit()?;
    }
    Ok(strikes)
}

fn policy(sandbox: &Sandbox, levers: &str) -> String {
    format!(
        "groups:\n- name: ls\n  class: LS\n  cgroups: [{path}/ls]\n  slo: {{ requestLatency: {{ p99: {latency}ms }}, runQueueWait: {{ p99: {wait}ms }} }}\n\
         - name: be\n  class: BE\n  cgroups: [{path}/be]\n  floor: 100m\n  levers: [{levers}]\n",
        path = sandbox.path(),
        latency = LATENCY_SLO.as_millis(),
        wait = WAIT_SLO.as_millis(),
    )
}

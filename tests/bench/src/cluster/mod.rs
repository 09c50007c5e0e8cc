//! `bench cluster`: what many agents ask of one API server.
//!
//! Each is the part of an agent that talks to the API server, as it ships, with its rights, a node object and pods of its
//! own. What it tells of its node is made up, and steady. The API server's own metrics say what came of it.

mod fleet;
mod server;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer_rig::{
    cluster::{Cluster, install::GENEROUS},
    interrupt,
};
use serde_json::{Value, json};

use self::{
    fleet::{Fleet, TICK},
    server::Account,
};
use crate::objects::Objects;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers of agents.
    #[arg(long, value_delimiter = ',', default_value = "0,100,300,1000")]
    agents: Vec<usize>,
    /// Pods on each one's node.
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// How long to watch each number of them.
    #[arg(long, default_value_t = 120)]
    seconds: u32,
}

/// Agents start one after another in this time, as a rolling update would have it, so that their reports do not coincide.
const STARTED: Duration = Duration::from_mins(1);
/// Before anything counts.
const SETTLED: Duration = Duration::from_secs(30);

pub fn run(args: &Args) -> Result<Value> {
    let cluster = Cluster::running()?;
    cluster.install()?;
    cluster.configure(&[("colocation-config", GENEROUS)])?;
    let rows = args.agents.iter().map(|&agents| row(args, &cluster, agents)).collect::<Result<Vec<_>>>();
    cluster.unconfigure()?;
    Ok(
        json!({ "kubernetes": cluster.kubernetes, "seconds": args.seconds, "pods_per_node": args.pods, "rows": rows? }),
    )
}

fn row(args: &Args, cluster: &Cluster, agents: usize) -> Result<Value> {
    let length = Duration::from_secs(args.seconds.into());
    eprintln!(
        "{agents} agents: making their nodes and pods, then {} s",
        (STARTED + SETTLED + length).as_secs()
    );
    let objects = Objects::of(cluster)?;
    let mut fleet = Fleet::new(cluster, &objects, agents, args.pods)?;
    let begun = Instant::now();
    run_until(begun + STARTED, |elapsed| {
        fleet.start_some(agents.min(1 + part(agents, elapsed, STARTED)))?;
        fleet.tick();
        Ok(())
    })?;
    fleet.start_some(agents)?;
    let mut tick = |_| {
        fleet.tick();
        Ok(())
    };
    run_until(Instant::now() + SETTLED, &mut tick)?;
    let before = Account::of(cluster)?;
    let begun = Instant::now();
    run_until(begun + length, &mut tick)?;
    let mut row = Account::of(cluster)?.since(&before, begun.elapsed(), agents);
    row["agents"] = json!(agents);
    eprintln!(
        "{agents} agents: {:.1} requests/s, API server {:.3} cores, {:.0} MiB",
        row["requests_per_second"].as_f64().context("BUG: no such figure")?,
        row["server_cores"].as_f64().context("BUG: no such figure")?,
        row["server_rss_mib"].as_f64().context("BUG: no such figure")?,
    );
    Ok(row)
}

/// Of `all`, as many as there is of the time.
fn part(all: usize, elapsed: Duration, time: Duration) -> usize {
    let (elapsed, time) = (elapsed.as_millis(), time.as_millis());
    usize::try_from(all as u128 * elapsed.min(time) / time).unwrap_or(all)
}

/// Has something done at each tick.
fn run_until(until: Instant, mut tick: impl FnMut(Duration) -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let mut next = begun;
    while next < until {
        tick(begun.elapsed())?;
        next += TICK;
        interrupt::sleep(next.saturating_duration_since(Instant::now()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_start_one_after_another() {
        assert_eq!(part(1_000, Duration::ZERO, STARTED), 0);
        assert_eq!(part(1_000, STARTED / 4, STARTED), 250);
        assert_eq!(part(1_000, STARTED * 2, STARTED), 1_000);
    }
}

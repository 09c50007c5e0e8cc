//! Benchmarks. Run by `cargo xtask bench`. `probe` and `agent` print JSON, `loop` writes it to a file.

mod accounts;
mod agent;
mod cluster;
mod compared;
mod koordinator;
mod latency;
mod r#loop;
mod node;
mod objects;
mod probe;
mod reaction;
mod rest;
mod watch;
mod webhook;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use enforcer_rig::interrupt;

/// What enforcer costs, and what it is good for.
#[derive(Parser)]
#[command(name = "cargo xtask bench", max_term_width = 110)]
enum Benchmark {
    /// Extra time per context switch.
    Probe(probe::Args),
    /// CPU and memory of the agent with idle groups.
    Agent(agent::Args),
    /// CPU and memory of the agent on a node of a cluster, with idle pods and with pods that come and go.
    Node(node::Args),
    /// What many agents ask of one API server.
    Cluster(cluster::Args),
    /// How long a pod waits to be mutated.
    Webhook(webhook::Args),
    /// From the onset of trouble to the limit in force.
    Reaction(reaction::Args),
    /// Latency in the kernel beside the client's, and what measuring it costs.
    Latency(latency::Args),
    /// Whether BE is left alone where nothing changes, and where it is not to blame.
    Rest(rest::Args),
    /// What LS and BE get side by side, under enforcer and under what it could be replaced with.
    Loop(r#loop::Args),
}

fn main() -> ExitCode {
    interrupt::exit_code(interrupt::watch().and_then(|()| run(Benchmark::parse())))
}

fn run(benchmark: Benchmark) -> Result<()> {
    let json = match benchmark {
        Benchmark::Probe(args) => probe::run(&args)?,
        Benchmark::Agent(args) => agent::run(&args)?,
        Benchmark::Node(args) => node::run(&args)?,
        Benchmark::Cluster(args) => cluster::run(&args)?,
        Benchmark::Webhook(args) => webhook::run(&args)?,
        Benchmark::Reaction(args) => reaction::run(&args)?,
        Benchmark::Latency(args) => latency::run(&args)?,
        Benchmark::Rest(args) => rest::run(&args)?,
        Benchmark::Loop(args) => return r#loop::run(&args),
    };
    println!("{json:#}");
    Ok(())
}

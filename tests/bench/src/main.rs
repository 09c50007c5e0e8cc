//! Benchmarks, with JSON on standard output. Run by `cargo xtask bench`.

mod agent;
mod probe;

use anyhow::Result;
use clap::Parser;

/// What enforcer costs.
#[derive(Parser)]
enum Benchmark {
    /// Extra time per context switch.
    Probe(probe::Args),
    /// CPU and memory of the agent with idle groups.
    Agent(agent::Args),
}

fn main() -> Result<()> {
    let json = match Benchmark::parse() {
        Benchmark::Probe(args) => probe::run(&args)?,
        Benchmark::Agent(args) => agent::run(&args)?,
    };
    println!("{json:#}");
    Ok(())
}

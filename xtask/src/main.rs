//! `cargo xtask`: everything that building and trying enforcer takes.

mod bench;
mod build;
mod cluster;
mod demo;
mod go;
mod image;
mod lint;
mod manifests;
mod programs;
mod setup;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use enforcer_rig::interrupt;

/// Chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks: the pinned toolchain, bpf-linker, and for tests some Debian packages.
    ///
    /// Runs by itself before demo, build and test. Programs that are built from source are kept under
    /// $`XDG_CACHE_HOME/enforcer`, by version.
    Setup,
    /// Build the agent, target/release/enforcer.
    Build(build::Args),
    /// Show on this machine what enforcer does: a latency-sensitive server beside a bad neighbour, with and without it.
    Demo(demo::Args),
    /// Run all tests; those that need root or a kernel feature say by name when they are left out.
    Test(test::Args),
    /// Run the host kernel's tests on a pure cgroup v2 host with another kernel, in QEMU.
    Vm(vm::Args),
    /// Run a whole Kubernetes cluster of one node on this machine, out of everybody's way.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Measure what enforcer costs.
    Bench(bench::Args),
    /// Make a container image with the agent in it, target/image/enforcer.tar. Needs no Docker.
    Image(image::Args),
    /// Render the Helm chart as plain YAML, daemonset/enforcer.yaml.
    Manifests(manifests::Args),
    /// Check formatting and lints, for the host and for the probes.
    Lint,
}

fn main() -> ExitCode {
    interrupt::exit_code(interrupt::watch().and_then(|()| run(Cli::parse().command)))
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::everything(),
        Command::Build(args) => build::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Cluster(command) => cluster::run(&command),
        Command::Bench(args) => bench::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Manifests(args) => manifests::run(args),
        Command::Lint => lint::run_all(),
    }
}

//! `cargo xtask cluster test`.

use std::process::Command;

use anyhow::Result;
use enforcer_rig::cluster::{Paths, VARIABLE};

use super::{Release, binaries::Binaries, down, dry_run, up};
use crate::{
    build,
    go::NoGo,
    programs::{self, cargo, is_root},
};

/// Which tests, on which release.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    release: Release,
    /// Leave the cluster up afterwards, as is done with one that was up before.
    #[arg(long)]
    keep: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let release = args.release.kubernetes;
    if !is_root() {
        println!("SKIPPED the cluster's tests (not root)");
        return Ok(());
    }
    if let Err(err) = Binaries::find_or_build(release) {
        let no_go = err.downcast::<NoGo>()?;
        println!("SKIPPED the cluster's tests ({no_go})");
        return Ok(());
    }
    // Before the cluster takes its part of the machine.
    build::agent()?;
    println!("building the tests");
    programs::run(tests()?.arg("--no-run"))?;
    let is_ours = up::bring_up(release)?;
    let mut tests = tests()?;
    let tested = programs::run(tests.args(args.filter.iter()).env(VARIABLE, Paths::new().record()))
        .and_then(|()| if args.filter.is_none() { dry_run::run() } else { Ok(()) });
    if is_ours && !args.keep {
        down::run()?;
    } else {
        println!("the cluster stays up; `cargo xtask cluster down` takes it down");
    }
    tested
}

fn tests() -> Result<Command> {
    let mut cargo = cargo();
    build::with_linker(&mut cargo)?;
    cargo.args(["test", "--release", "--package", "enforcer-tests", "--test", "cluster"]);
    Ok(cargo)
}

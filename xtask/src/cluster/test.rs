//! `cargo xtask cluster test`.

use std::process::Command;

use anyhow::{Result, ensure};
use enforcer_rig::cluster::{Paths, VARIABLE};

use super::{Release, after, binaries::Binaries, down, dry_run, up};
use crate::{
    build,
    go::NoGo,
    image,
    programs::{self, cargo, is_root},
    setup,
    tally::Tally,
    test::stream,
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
    // Before the cluster takes its part of the machine. The image is made each time: an old one would be tested in place of
    // what is there now.
    build::agent()?;
    image::make(&image::Args::default())?;
    if let Err(err) = setup::packages(&setup::SERVER_PACKAGES) {
        println!("!! {err:#}: tests with programs that are not there are skipped");
    }
    println!("building the tests");
    programs::run(tests()?.arg("--no-run"))?;
    let is_ours = up::bring_up(release)?;
    let tested = run_tests(args).and_then(|()| if args.filter.is_none() { dry_run::run() } else { Ok(()) });
    if is_ours && !args.keep {
        return after(tested, down::run());
    }
    println!("the cluster stays up; `cargo xtask cluster down` takes it down");
    tested
}

/// Those that are asked for, and how many of them were skipped.
fn run_tests(args: &Args) -> Result<()> {
    let mut tests = tests()?;
    tests.args(args.filter.iter()).env(VARIABLE, Paths::new().record());
    let mut tally = Tally::default();
    let tested = stream(&mut tests, &mut tally);
    tally.skipped.iter().for_each(|line| println!("SKIPPED {line}"));
    tested?;
    ensure!(tally.ran > 0, "no test was run: is there one whose name contains {:?}?", args.filter);
    println!("all tests passed; {} skipped", tally.skipped.len());
    Ok(())
}

fn tests() -> Result<Command> {
    let mut cargo = cargo();
    build::with_linker(&mut cargo)?;
    cargo.args(["test", "--release", "--package", "enforcer-tests", "--test", "cluster"]);
    Ok(cargo)
}

//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    programs::{self, cargo, root},
    setup,
};

/// What to build.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Link everything in, so that the agent runs on any host (as in the container image and the VMs).
    #[arg(long = "static")]
    linked_statically: bool,
}

/// The target whose C library can be linked in.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The one that needs no C library of the distribution.
const IMAGE_TARGET: &str = "x86_64-unknown-linux-musl";

pub fn run(args: Args) -> Result<()> {
    let path = if args.linked_statically { static_agent()? } else { agent()? };
    println!("{}", path.display());
    Ok(())
}

/// The agent and the workloads, in target/release.
pub fn agent() -> Result<PathBuf> {
    prepare()?;
    cargo_build(&["--package", "enforcer", "--package", "enforcer-rig"])?;
    Ok(root().join("target/release/enforcer"))
}

/// The agent, linked statically.
fn static_agent() -> Result<PathBuf> {
    prepare()?;
    run_static(&["build", "--package", "enforcer"])?;
    Ok(root().join("target").join(TARGET).join("release/enforcer"))
}

/// The agent for the container image: linked with musl, whose resolver needs no files of a distribution, and without debug
/// information.
pub fn image_agent() -> Result<PathBuf> {
    prepare()?;
    setup::target(IMAGE_TARGET)?;
    println!("building the agent for {IMAGE_TARGET} (some minutes the first time)");
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--package", "enforcer", "--target", IMAGE_TARGET]);
    // On the command line, not in the environment: there the build of the probes would lose its types, too.
    command.args(["--config", "profile.release.debug=false", "--config", "profile.release.strip='symbols'"]);
    // C code that needs no C library; without a compiler for musl any other will do.
    if std::env::var_os("CC_x86_64_unknown_linux_musl").is_none() && !programs::is_installed("musl-gcc") {
        command.env("CC_x86_64_unknown_linux_musl", "cc");
    }
    programs::run(with_linker(&mut command)?)?;
    Ok(root().join("target").join(IMAGE_TARGET).join("release/enforcer"))
}

/// What every build needs.
pub fn prepare() -> Result<()> {
    setup::toolchain()?;
    setup::linker()
}

/// Lets build scripts other than the agent's find bpf-linker.
pub fn with_linker(command: &mut std::process::Command) -> Result<&mut std::process::Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(setup::linker_directory()?).chain(std::env::split_paths(&path)),
    )?;
    Ok(command.env("PATH", path))
}

/// A cargo command for statically linked programs, in release.
pub fn run_static(arguments: &[&str]) -> Result<()> {
    programs::run(static_cargo(arguments).arg("--quiet"))
}

/// The same, not run yet.
pub fn static_cargo(arguments: &[&str]) -> std::process::Command {
    let mut command = cargo();
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").args(arguments).args([
        "--release",
        "--target",
        TARGET,
    ]);
    command
}

fn cargo_build(packages: &[&str]) -> Result<()> {
    println!("building the agent (some minutes the first time)");
    // With the PATH of every other build, or each would find the probes out of date.
    programs::run(with_linker(&mut cargo())?.args(["build", "--release"]).args(packages))
}

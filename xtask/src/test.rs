//! `cargo xtask test`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    interrupt,
    programs::{cargo, is_root},
    setup, vm,
};

/// Which tests to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Leave out the virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// The Debian release whose kernel the virtual machine runs.
const VM_SUITE: vm::Suite = vm::Suite::Bookworm;

pub fn run(args: &Args) -> Result<()> {
    let mut skipped = Vec::new();
    setup::toolchain()?;
    let linker = setup::linker();
    if let Err(err) = &linker {
        println!(
            "!! no bpf-linker ({err:#}): the probes are not built and nothing that needs them is tested"
        );
    }
    println!("building");
    let packages = ["enforcer", "enforcer-ebpf", "enforcer-rig", "enforcer-tests", "xtask"];
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    let mut build = cargo();
    build.args(["build", "--release", "--tests", "--bins", "--lib"]).args(packages.clone());
    crate::programs::run(&mut build)?;

    let mut tests = cargo();
    tests.args(["test", "--release", "--no-fail-fast"]).args(packages);
    tests.args(args.filter.iter());
    let host = stream(&mut tests, &mut skipped);

    let mut failed = host.err().into_iter().collect::<Vec<_>>();
    interrupt::check()?;
    if args.no_vm || args.filter.is_some() {
        skipped.push(format!("virtual machine {VM_SUITE:?} (left out on the command line)"));
    } else if linker.is_err() {
        skipped.push(format!("virtual machine {VM_SUITE:?} (no bpf-linker, so no probes to try there)"));
    } else if !is_root() && setup::packages(&setup::VM_PACKAGES).is_err() {
        skipped.push(format!(
            "virtual machine {VM_SUITE:?} (qemu, busybox or cpio is missing and this is not root)"
        ));
    } else {
        match vm::test(VM_SUITE, None) {
            Ok(in_vm) => {
                skipped.extend(in_vm.into_iter().map(|line| format!("in the virtual machine: {line}")));
            }
            Err(err) => failed.push(err),
        }
    }
    interrupt::check()?;
    println!();
    for line in &skipped {
        println!("SKIPPED {line}");
    }
    if failed.is_empty() {
        println!("all tests passed; {} skipped", skipped.len());
        return Ok(());
    }
    for err in &failed {
        println!("FAILED {err:#}");
    }
    bail!("{} of the test runs failed", failed.len())
}

/// Runs a command with its output to see, and collects what was skipped.
pub fn stream(command: &mut Command, skipped: &mut Vec<String>) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
    let output = child.stdout.take().context("BUG: standard output is piped")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(test) = line.strip_prefix("skipped: ") {
            skipped.push(test.to_owned());
        }
    }
    let status = child.wait()?;
    anyhow::ensure!(
        status.success(),
        "{} {}",
        command.get_program().display(),
        command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

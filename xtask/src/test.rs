//! `cargo xtask test`.

use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};
use enforcer_rig::process::Process;

use crate::{
    build, interrupt,
    programs::{cargo, is_root, name},
    setup,
    tally::Tally,
    vm,
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
    if is_root()
        && let Err(err) = setup::packages(&setup::SERVER_PACKAGES)
    {
        println!("!! {err:#}: tests with servers that are not there are skipped");
    }
    println!("building");
    let mut packages = vec!["enforcer", "enforcer-ebpf", "enforcer-rig", "enforcer-tests", "xtask"];
    let (mut build, mut tests) = (cargo(), cargo());
    if linker.is_ok() {
        packages.push("enforcer-bench");
        build::with_linker(&mut build)?;
        build::with_linker(&mut tests)?;
    } else {
        skipped.push("enforcer-bench (no bpf-linker, so none of the programs that it compares)".to_owned());
    }
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    build.args(["build", "--release", "--tests", "--bins", "--lib"]).args(packages.clone());
    crate::programs::run(&mut build)?;

    tests.args(["test", "--release", "--no-fail-fast"]).args(packages);
    tests.args(args.filter.iter());
    let mut tally = Tally::default();
    let host = stream(&mut tests, &mut tally);
    ensure!(
        tally.ran > 0 || host.is_err(),
        "no test was run: is there one whose name contains {:?}?",
        args.filter
    );
    skipped.append(&mut tally.skipped);
    let mut failed: Vec<String> =
        tally.failed.into_iter().map(|test| format!("on this host: {test}")).collect();
    failed.extend(host.err().map(|err| format!("{err:#}")));
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
        let mut tally = Tally::default();
        let tested = vm::test(VM_SUITE, None, &mut tally);
        skipped.extend(tally.skipped.into_iter().map(|line| format!("in the virtual machine: {line}")));
        failed.extend(tally.failed.into_iter().map(|test| format!("in the virtual machine: {test}")));
        failed.extend(tested.err().map(|err| format!("{err:#}")));
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
    for line in &failed {
        println!("FAILED {line}");
    }
    bail!("not all tests passed")
}

/// Runs a command with its output to see, and counts.
pub fn stream(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut tests = Process::start("the tests", command.stdout(Stdio::piped()))?;
    let status = tests.each_line(|line| {
        if let Some(line) = line {
            println!("{line}");
            tally.read(line);
        }
        Ok(())
    })?;
    ensure!(status.success(), "{}", name(command));
    Ok(())
}

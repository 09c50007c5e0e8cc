//! The workloads as processes, each in its group.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    antagonist::Antagonist,
    client::Load,
    process::{Process, piped, workload, workload_in},
    sandbox::Group,
};

/// cpu.shares of the LS group: a pod that requests one CPU.
pub const LS_SHARES: u32 = 1024;
/// cpu.shares of kubelet's BestEffort directory.
pub const BE_SHARES: u32 = 2;

/// The rig's own server with its default cost, and where it listens.
///
/// # Errors
/// Where it does not start.
pub fn server(group: &Group) -> Result<(Process, SocketAddr)> {
    serving(group, &[])
}

/// The rig's own server that computes for so long for each request, whatever BE does to its caches, and where it listens.
///
/// # Errors
/// Where it does not start.
pub fn computing_server(group: &Group, spin: Duration) -> Result<(Process, SocketAddr)> {
    serving(group, &["--steps", "0", "--memory-mib", "1", "--spin-us", &spin.as_micros().to_string()])
}

fn serving(group: &Group, cost: &[&str]) -> Result<(Process, SocketAddr)> {
    let mut command = workload_in(group)?;
    let mut server = Process::start("the LS server", piped(command.arg("serve").args(cost)))?;
    let address = server.first_line()?.parse()?;
    Ok((server, address))
}

/// An antagonist on every CPU, in a group and further cgroup directories. It counts work in the file `work`, and makes its
/// own files beside it.
///
/// # Errors
/// Where it does not start.
pub fn antagonist(kind: Antagonist, group: &Group, further: &[&Path], work: &Path) -> Result<Process> {
    let threads = std::thread::available_parallelism()?.to_string();
    let mut command = workload_in(group)?;
    for directory in further {
        command.arg("--cgroup").arg(directory);
    }
    command.args(["antagonist", kind.name(), "--threads", &threads, "--work"]).arg(work);
    command.arg("--directory").arg(work.parent().context("a file has a directory")?);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Process::start(kind.name(), &mut command)
}

/// A client that prints its report, before all tasks of ordinary priority.
///
/// # Errors
/// Where it does not start.
pub fn client(to: SocketAddr, load: &Load) -> Result<Process> {
    client_by(workload()?, to, load)
}

/// The same by a `workload` command of one's own.
///
/// # Errors
/// Where it does not start.
pub fn client_by(mut command: Command, to: SocketAddr, load: &Load) -> Result<Process> {
    command.args(["load", "--real-time", "--to", &to.to_string()]);
    let mut number = |name: &str, value: f64| {
        command.args([name, &value.to_string()]);
    };
    number("--rate", load.profile.rate);
    number("--peak-rate", load.profile.peak_rate);
    number("--seconds", load.seconds);
    number("--warm-up-seconds", load.warm_up_seconds);
    if let Some(slo_us) = load.slo_us {
        number("--slo-us", slo_us);
    }
    word(&mut command, "--shape", &load.profile.shape);
    word(&mut command, "--protocol", &load.protocol);
    command.args(["--connections", &load.connections.to_string(), "--seed", &load.seed.to_string()]);
    if load.saturate {
        command.arg("--saturate");
    }
    Process::start("the client", piped(&mut command))
}

fn word(command: &mut Command, name: &str, value: &impl ValueEnum) {
    let value = value.to_possible_value().expect("BUG: a hidden value");
    command.args([name, value.get_name()]);
}

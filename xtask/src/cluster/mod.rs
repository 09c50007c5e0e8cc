//! `cargo xtask cluster`: Kubernetes on this machine, out of everybody's way.
//!
//! Real etcd, API server, controller manager, scheduler, containerd and kubelet, in a network and a mount namespace of
//! their own. All that they write is in a tmpfs below target/cluster, and all cgroups are below one directory in every
//! hierarchy, so that `down` leaves nothing.

mod binaries;
mod control_plane;
mod demo;
mod down;
mod dry_run;
mod ground;
mod images;
mod launch;
mod network;
mod node;
mod pki;
mod status;
mod test;
mod up;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use enforcer_rig::cluster::Cluster;

use crate::go::Kubernetes;

/// What to do with it.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring it up, unless it is up. Programs that this takes are built the first time: ten minutes or so.
    Up(Release),
    /// Take it down, or whatever there is of it.
    Down,
    /// Bring it up, run the tests that need it, take it down.
    Test(test::Args),
    /// See whether the API server takes what the chart renders, with each of the values that it is tried with.
    DryRun,
    /// Show the whole story: the chart, a latency-sensitive pod, and Spark on what the agent lends, with and without the agent.
    Demo(demo::Args),
    /// Run kubectl as the cluster's administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Say what is up and how to reach it.
    Status,
}

/// Which release.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Release {
    /// The version of Kubernetes.
    #[arg(long, value_enum, default_value_t)]
    kubernetes: Kubernetes,
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up(release) => up::run(release.kubernetes),
        Command::Down => down::run(),
        Command::Test(args) => test::run(args),
        Command::DryRun => with(dry_run::run),
        Command::Demo(args) => demo::run(args),
        Command::Kubectl { arguments } => kubectl(arguments),
        Command::Status => status::run(),
    }
}

/// Does something that needs a cluster. One that is up is used and left up; otherwise one is brought up and taken down.
pub fn with<T>(what: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_ours = up::bring_up(Kubernetes::default())?;
    let done = what();
    if is_ours { after(done, down::run()) } else { done }
}

/// What came of something, and of the taking down afterwards: the first error, with the other beside it.
fn after<T>(done: Result<T>, down: Result<()>) -> Result<T> {
    match (done, down) {
        (Err(err), Err(left)) => Err(err.context(format!("and the cluster is not down: {left:#}"))),
        (done, down) => down.and(done),
    }
}

/// Becomes kubectl, so that everything about it is kubectl's, its exit status included.
fn kubectl(arguments: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;

    // Part of one may do, for somebody who looks for what is wrong.
    let cluster =
        Cluster::recorded()?.context("no cluster is up: as root, `cargo xtask cluster up` brings one up")?;
    let error = cluster.kubectl().args(arguments).exec();
    Err(error).context("cannot run kubectl")
}

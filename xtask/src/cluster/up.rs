//! `cargo xtask cluster up`.

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use enforcer_rig::{
    cluster::{Cluster, Paths, cgroups},
    interrupt::Interrupted,
};

use super::{
    binaries::Binaries, control_plane, down, ground, images, launch::Launch, network::Network, node,
    pki::Authority, status,
};
use crate::{
    go::{ETCD, Kubernetes},
    programs::is_root,
    setup,
};

/// Brings a cluster up, and says how to use it.
pub fn run(release: Kubernetes) -> Result<()> {
    bring_up(release)?;
    status::run()
}

/// Brings a cluster up, unless it is up, and returns whether it did. One that does not come up is taken down.
pub fn bring_up(release: Kubernetes) -> Result<bool> {
    ensure!(is_root(), "a cluster needs root, for its namespaces, mounts and cgroups");
    if is_up(release)? {
        return Ok(false);
    }
    setup::toolchain()?;
    setup::packages(&setup::NODE_PACKAGES)?;
    let binaries = Binaries::find_or_build(release)?;
    let workload = images::workload()?;
    let paths = Paths::new();
    let _lock = down::lock(&paths)?;
    // By somebody else, while programs were built here.
    if is_up(release)? {
        return Ok(false);
    }
    if down::take_down()? {
        println!("took down what was left of another cluster");
    }
    let begun = Instant::now();
    println!("starting Kubernetes {release}");
    let started = lay(release, &binaries, &paths, workload)
        .and_then(|(launch, network)| start(launch, network, &binaries));
    if let Err(err) = started {
        let logs = paths.logs.display();
        let about = format!("the cluster did not come up; what it logged is in {logs}");
        return match down::take_down() {
            // The chore says itself that it was interrupted.
            Ok(_) if err.is::<Interrupted>() => Err(err),
            Ok(_) => Err(err.context(about)),
            Err(more) => Err(err.context(format!("{about}; and it cannot be taken down: {more:#}"))),
        };
    }
    println!("Kubernetes {release} is up after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(true)
}

/// Whether this release is up. An error if another one is.
fn is_up(release: Kubernetes) -> Result<bool> {
    let Some(cluster) = Cluster::recorded()?.filter(Cluster::is_running) else { return Ok(false) };
    ensure!(
        cluster.kubernetes == release.version(),
        "Kubernetes {} is up already: `cargo xtask cluster down` first",
        cluster.kubernetes
    );
    println!("Kubernetes {release} is up already");
    Ok(true)
}

/// Makes what the cluster stands on, and records it.
fn lay(
    release: Kubernetes,
    binaries: &Binaries,
    paths: &Paths,
    workload: PathBuf,
) -> Result<(Launch, Network)> {
    ground::ensure_visible(&workload)?;
    let network = Network::free()?;
    let cluster = Cluster {
        kubernetes: release.version().to_owned(),
        etcd: ETCD.to_owned(),
        node: node::NAME.to_owned(),
        address: network.node(),
        host_address: network.host(),
        cgroup: cgroups::name(),
        paths: paths.clone(),
        kubectl: binaries.kubectl.clone(),
        workload,
        daemons_cgroup: cgroups::daemons()?,
        daemons: Vec::new(),
        is_ready: false,
    };
    // Before there is anything to take down.
    cluster.record()?;
    ground::lay(paths)?;
    network.join(paths)?;
    Ok((Launch { cluster }, network))
}

fn start(mut launch: Launch, network: Network, binaries: &Binaries) -> Result<()> {
    let authority = Authority::new(&launch.path("pki"))?;
    control_plane::start_api(&mut launch, binaries, &authority)?;
    node::start_runtime(&mut launch, &network.pods())?;
    let archives = images::write(&launch.cluster.workload, &launch.path("etc"))?;
    node::load_images(&launch, &archives)?;
    control_plane::wait_for_api(&launch)?;
    control_plane::start_controllers(&mut launch, binaries, &authority)?;
    node::start_kubelet(&mut launch, binaries, &authority)?;
    node::wait_until_ready(&launch)?;
    launch.cluster.is_ready = true;
    launch.cluster.record()
}

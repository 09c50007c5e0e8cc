//! `cargo xtask cluster status`: what is up, and how to reach it.

use anyhow::Result;
use enforcer_rig::cluster::{Cluster, PAUSE_IMAGE, WORKLOAD_IMAGE};

pub fn run() -> Result<()> {
    let Some(cluster) = Cluster::recorded()? else {
        println!("no cluster is up; `cargo xtask cluster up` (as root) brings one up");
        return Ok(());
    };
    let Cluster { kubernetes, etcd, node, address, host_address, cgroup, paths, .. } = &cluster;
    println!("Kubernetes {kubernetes}, etcd {etcd}, node `{node}`");
    for daemon in &cluster.daemons {
        let state = if daemon.is_running() { "runs" } else { "HAS ENDED" };
        println!("  {:<24} {state}, process {}", daemon.name, daemon.pid);
    }
    if !cluster.is_running() {
        println!("not all of it is up: `cargo xtask cluster down`, then `up`");
        return Ok(());
    }
    let (kubeconfig, logs) = (paths.kubeconfig.display(), paths.tree.join("log"));
    println!(
        "API server     https://{address}, from this machine and from pods; they reach this machine at {host_address}\n\
         kubeconfig     {kubeconfig} (administrator)\n\
         kubectl        cargo xtask cluster kubectl get pods --all-namespaces\n\
         images         {WORKLOAD_IMAGE} (args: [pause]), {PAUSE_IMAGE}\n\
         pods' cgroups  {cgroup}/kubepods in every hierarchy\n\
         logs           {}\n\
         the end        cargo xtask cluster down",
        logs.display()
    );
    Ok(())
}

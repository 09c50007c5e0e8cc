//! What the agent does while the API server does not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::PodQos;
use enforcer_rig::cluster::{Cluster, install::GENEROUS};
use enforcer_tests::agent::Files;

use crate::{
    citizen::Citizen,
    pod::Pod,
    proxy::{Fault, Proxy},
    squeezing::{Hurt, QUOTA_ONLY},
};

/// Until the API server's recovery is the agent's, which tells of itself once a second.
const RECOVERY: Duration = Duration::from_secs(6);
/// Memory may go up and down by so much, in bytes.
const FLAT: u64 = 8 << 20;

/// What is no outage of minutes in practice lasts no longer than so many seconds here.
const OTHERS: u64 = 30;

/// BE is held back, and pods are known for what they are, whatever the API server does: `ENFORCER_TEST_FAULT_SECONDS` of
/// silence, 10 if that is not set, and other faults.
pub fn enforcement_goes_on() -> Result<()> {
    let cluster = Cluster::running()?;
    let seconds: u64 =
        std::env::var("ENFORCER_TEST_FAULT_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    cluster.install()?;
    cluster.configure(&[("colocation-config", GENEROUS)])?;
    let (proxy, files) = (Proxy::start(&cluster)?, Files::new("proxy")?);
    let kubeconfig = files.path().join("kubeconfig");
    proxy.kubeconfig(&cluster, &kubeconfig)?;
    let citizen = Citizen::start_against(&cluster, "faults", QUOTA_ONLY, &kubeconfig)?;
    let mut hurt = Hurt::of(citizen, "faults")?;
    let resident = |hurt: &Hurt<'_>| -> Result<u64> {
        hurt.citizen.agent.status()?.agent_resident_bytes.context("the agent's memory is unknown")
    };
    let before = resident(&hurt)?;
    let faults = [
        Fault::Down,
        Fault::Slow(Duration::from_secs(5)),
        Fault::Refuses(409),
        Fault::Refuses(410),
        Fault::Refuses(429),
        Fault::Refuses(500),
        Fault::CutsWatches,
    ];
    for (place, fault) in faults.into_iter().enumerate() {
        let seconds = if fault == Fault::Down { seconds } else { seconds.min(OTHERS) };
        proxy.take_counts();
        proxy.set(fault);
        // Asked for past the proxy, and unknown to the agent until it recovers.
        let name = format!("fault-{place}");
        let newcomer = Pod::run(&cluster, &name, PodQos::Burstable, &["pause"])?;
        std::thread::sleep(Duration::from_secs(seconds));
        hurt.wait_until_squeezed()
            .and_then(|()| hurt.ensure_known())
            .with_context(|| format!("{fault:?}"))?;
        let (reads, writes) = proxy.take_counts();
        // Six watches and lists, and a handful of reports, each tried again a few times per second at most.
        ensure!(
            reads <= 12 * (seconds + 10) && writes <= 2 * (seconds + 10),
            "{fault:?}: {reads} reads, {writes} writes"
        );
        proxy.set(Fault::None);
        let begun = Instant::now();
        let known = format!("default/{}", newcomer.name);
        hurt.citizen.agent.wait_for("the newcomer is known", |agent| {
            Ok(agent.status()?.groups.iter().any(|group| group.name == known && group.cgroups > 0))
        })?;
        let took = begun.elapsed();
        ensure!(took <= RECOVERY, "{fault:?}: recovered after {took:?}; {}", hurt.citizen.log());
        println!("{fault:?} for {seconds} s: {reads} reads, {writes} writes, recovered after {took:.1?}");
    }
    let after = resident(&hurt)?;
    println!("memory: {before} bytes before, {after} bytes after");
    ensure!(after <= before + FLAT, "memory grew from {before} to {after} bytes");
    Ok(())
}

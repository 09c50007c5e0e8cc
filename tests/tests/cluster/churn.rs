//! Pods that come, make others wait, and go: their places are used again.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::PodQos;
use enforcer_rig::cluster::{Cluster, install::GENEROUS};

use crate::{
    citizen::{Citizen, STANDALONE},
    pod::Pod,
};

/// Pods that come and go, one after the other.
const ROUNDS: usize = 4;
/// A place rests for a second before it is used again; the agent reports once a second.
const REST: Duration = Duration::from_secs(3);
const SPIN: [&str; 4] = ["antagonist", "cpu-spin", "--threads", "2"];

/// The kernel goes on holding what a pod that went was charged with, until its place is another one's.
pub fn blame_ends_with_the_pod() -> Result<()> {
    let cluster = Cluster::running()?;
    let mut citizen = Citizen::start(&cluster, "churn", STANDALONE, GENEROUS)?;
    let pod = Pod::run(&cluster, "churn-victim", PodQos::Burstable, &SPIN)?;
    let victim = format!("default/{}", pod.name);
    for round in 0..ROUNDS {
        let culprit = Pod::run(&cluster, &format!("churn-culprit-{round}"), PodQos::BestEffort, &SPIN)?;
        let name = format!("default/{}", culprit.name);
        citizen.agent.wait_for("the victim waits for its neighbour", |agent| {
            let groups = agent.status()?.groups;
            let group = groups.iter().find(|group| group.name == victim);
            Ok(group.is_some_and(|group| {
                group.blame_seconds_total.iter().any(|(culprit, seconds)| *culprit == name && *seconds > 0.01)
            }))
        })?;
        drop(culprit);
        thread::sleep(REST);
        let waited =
            citizen.agent.metric(&format!("enforcer_run_queue_wait_seconds_sum{{group=\"{victim}\"}}"))?;
        let groups = citizen.agent.status()?.groups;
        let group = groups.into_iter().find(|group| group.name == victim).context("the victim is gone")?;
        let blamed: f64 = group.blame_seconds_total.iter().map(|(_, seconds)| seconds).sum();
        println!("{round}: waited {waited:.3} s, blame {:?}", group.blame_seconds_total);
        let names: BTreeSet<&String> = group.blame_seconds_total.iter().map(|(name, _)| name).collect();
        ensure!(names.len() == group.blame_seconds_total.len(), "a culprit is named twice");
        ensure!(!names.contains(&name), "{name} is gone and still named");
        ensure!((0.95..=1.05).contains(&(blamed / waited)), "blame is {:.3} of the waits", blamed / waited);
    }
    Ok(())
}

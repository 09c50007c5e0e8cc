//! Batch pods that hurt, as people see it.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use enforcer::policy::Class;
use enforcer_rig::{
    cluster::{Cluster, install::GENEROUS},
    process::{Process, workload},
};
use serde_json::json;

use crate::{
    citizen::Citizen,
    pod::{Pod, Spec, wait_for},
};

/// No idle priority and no freeze, so that one file tells of all.
pub const QUOTA_ONLY: &str = "kubernetes:\n  levers: [quota]\n";
const SLO: &str = r#"{"requestLatency":{"p99":"4ms"}}"#;

/// An LS pod under load and a batch pod with much more weight.
pub struct Hurt<'a> {
    // In the order in which they are taken down.
    client: Process,
    pub batch: Option<Pod<'a>>,
    web: Pod<'a>,
    pub citizen: Citizen<'a>,
}

impl<'a> Hurt<'a> {
    pub fn begin(cluster: &'a Cluster, name: &str) -> Result<Self> {
        Self::of(Citizen::start(cluster, name, QUOTA_ONLY, GENEROUS)?, name)
    }

    /// Lets BE hurt LS until this agent squeezes it.
    pub fn of(citizen: Citizen<'a>, name: &str) -> Result<Self> {
        let cluster = citizen.cluster;
        wait_for("batch resources are offered", || {
            Ok(citizen.offered("kubernetes.io/batch-cpu")?.is_some_and(|cpu| cpu >= 1_000))
        })
        .with_context(|| citizen.log())?;
        let serve =
            ["serve", "--listen", "0.0.0.0:8080", "--steps", "0", "--memory-mib", "1", "--spin-us", "800"];
        // LS that requests nothing lies beside the batch pod, with 2 shares to its 1024: it is hurt whatever the kernel does.
        let spec = Spec::best_effort().labelled("koordinator.sh/qosClass", "LS").with_slo(SLO);
        let web = Pod::start(cluster, &format!("{name}-web"), &spec, &serve)?;
        let address = web.listens_at(8080)?.to_string();
        let mut command = workload()?;
        command.args(["load", "--to", &address, "--rate", "400", "--seconds", "3600"]);
        let client = Process::start("the client", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let mut hurt = Self { client, batch: None, web, citizen };
        hurt.strike()?;
        Ok(hurt)
    }

    /// Starts a batch pod that asks for a whole CPU, and waits until it is held back.
    fn strike(&mut self) -> Result<()> {
        let amount = json!({ "kubernetes.io/batch-cpu": "1000", "kubernetes.io/batch-memory": "64Mi" });
        let spec =
            Spec::batch(json!({ "requests": amount, "limits": { "kubernetes.io/batch-memory": "64Mi" } }));
        let name = format!("{}-batch", self.web.name.trim_end_matches("-web"));
        let spin = ["antagonist", "cpu-spin", "--threads", "4"];
        self.batch = Some(Pod::start(self.citizen.cluster, &name, &spec, &spin)?);
        self.wait_until_squeezed()
    }

    /// Waits until BE is held back.
    pub fn wait_until_squeezed(&mut self) -> Result<()> {
        let Self { client, citizen, .. } = self;
        let squeezed = citizen.agent.wait_for("BE is squeezed", |agent| {
            ensure!(client.is_running(), "the client ended: nothing is asked of LS any more");
            Ok(agent.status()?.reason == "squeeze")
        });
        squeezed.with_context(|| {
            let groups = citizen.agent.status().map(|status| status.groups);
            format!("{groups:#?}\n{}", citizen.log())
        })
    }

    /// Whether the agent takes both pods for what they are.
    pub fn ensure_known(&self) -> Result<()> {
        for (pod, class) in [(Some(&self.web), Class::LS), (self.batch.as_ref(), Class::BE)] {
            let pod = pod.context("BUG: no batch pod")?;
            let groups = self.citizen.agent.status()?.groups;
            let group = groups.into_iter().find(|group| group.name.ends_with(&pod.name));
            let group = group.with_context(|| format!("{} is no longer known", pod.name))?;
            ensure!(group.class == class, "{} is now {:?}", pod.name, group.class);
            ensure!(group.cgroups > 0, "{} has no cgroup any more", pod.name);
        }
        Ok(())
    }

    /// The quota of the batch pod's directory, in us; `None`: no limit.
    fn quota(&self) -> Result<Option<i64>> {
        let pod = self.batch.as_ref().context("BUG: no batch pod")?;
        pod.quota()
    }
}

/// kubectl shows who is held back for whom, and when that ends.
pub fn seen_by_kubectl() -> Result<()> {
    let cluster = Cluster::running()?;
    let mut hurt = Hurt::begin(&cluster, "events")?;
    let (web, batch) = (hurt.web.name.clone(), hurt.batch.as_ref().context("no batch pod")?.name.clone());
    for (reason, about) in [("BatchThrottled", &batch), ("SLOViolated", &web)] {
        println!("{about}: {}", hurt.citizen.event(reason, about)?);
    }
    ensure!(hurt.quota()?.is_some(), "squeezed without a quota");
    let condition = || {
        let node = cluster.ask_json(&["get", "node", &cluster.node])?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|one| one["type"] == "BatchThrottled");
        found.context("no condition BatchThrottled")
    };
    wait_for("the node's condition says so", || Ok(condition()?["status"] == "True"))?;
    println!("node: {}", condition()?["message"]);
    hurt.batch = None;
    wait_for("the node's condition says that it is over", || Ok(condition()?["status"] == "False"))
        .with_context(|| hurt.citizen.log())?;
    Ok(())
}

/// Daemons of the node restart in the middle of squeezes: `ENFORCER_TEST_ROUNDS` times kubelet (2), a quarter as often
/// containerd.
pub fn through_restarts() -> Result<()> {
    let mut cluster = Cluster::running()?;
    let rounds: u32 = std::env::var("ENFORCER_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let witness = Cluster::running()?;
    let mut hurt = Hurt::begin(&witness, "restarts")?;
    let restarted =
        hurt.batch.as_ref().context("no batch pod")?.look()?["status"]["containerStatuses"][0].clone();
    let mut daemons = vec!["kubelet"; rounds as usize];
    daemons.extend(vec!["containerd"; rounds.div_ceil(4) as usize]);
    for daemon in &daemons {
        hurt.wait_until_squeezed()?;
        cluster.restart(daemon)?;
        std::thread::sleep(Duration::from_secs(3));
        hurt.ensure_known().with_context(|| format!("after a restart of {daemon}"))?;
    }
    hurt.wait_until_squeezed()?;
    let now = hurt.batch.as_ref().context("no batch pod")?.look()?["status"]["containerStatuses"][0].clone();
    ensure!(now["restartCount"] == restarted["restartCount"], "{now}");
    println!("{} restarts of kubelet, {} of containerd", rounds, rounds.div_ceil(4));
    // What the owner gave is back when the agent ends.
    let Hurt { batch, citizen, .. } = &hurt;
    let batch = batch.as_ref().context("no batch pod")?;
    citizen.agent.process.signal(rustix::process::Signal::TERM)?;
    wait_for("the owner's quota is back", || Ok(batch.quota()?.is_none())).with_context(|| citizen.log())
}

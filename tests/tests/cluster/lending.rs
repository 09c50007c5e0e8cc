//! What is lent to batch work, and who says so.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    cluster::{Cluster, install::GENEROUS},
    process::{Process, built, exec_in},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    citizen::{Citizen, STANDALONE},
    pod::wait_for,
};

const CPU: &str = "kubernetes.io/batch-cpu";
const MEMORY: &str = "kubernetes.io/batch-memory";

/// Also on a node without pods of LS or BE, which Koordinator takes for one that was not measured.
pub fn offered_and_taken_back() -> Result<()> {
    let cluster = Cluster::running()?;
    let citizen = Citizen::start(&cluster, "lending", STANDALONE, GENEROUS)?;
    wait_for("the node offers batch resources", || Ok(citizen.offered(CPU)?.is_some_and(|cpu| cpu > 0)))
        .with_context(|| citizen.log())?;
    wait_for("the agent has worked out what it lends", || {
        Ok(citizen.agent.get("/v1/batch")?.1.starts_with('{'))
    })?;
    let (cpu, memory) = (citizen.offered(CPU)?, citizen.offered(MEMORY)?);
    let described = cluster.ask(&["describe", "node", &cluster.node])?;
    ensure!(described.contains(CPU) && described.contains("BatchThrottled"), "{described}");

    let metric = cluster.ask_json(&["get", "nodemetric", &cluster.node])?;
    ensure!(metric["status"]["updateTime"].is_string(), "{metric}");
    ensure!(metric["status"]["nodeMetric"]["nodeUsage"]["resources"]["cpu"].is_string(), "{metric}");

    let mut explain = Command::new(built("enforcer")?);
    let explained =
        explain.args(["explain", "batch", "--json", "--agent"]).arg(citizen.agent.address.to_string());
    let output = explained.output()?;
    let terms: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure!(
        terms["batch_cpu_milli"].as_i64() == cpu && terms["batch_memory_bytes"].as_i64() == memory,
        "{terms}"
    );
    println!("lent: {} thousandths of a core, {} bytes", cpu.unwrap_or_default(), memory.unwrap_or_default());

    cluster.configure(&[("colocation-config", r#"{"enable":false}"#)])?;
    wait_for("nothing is offered any more", || {
        Ok(citizen.offered(CPU)?.is_none() && citizen.offered(MEMORY)?.is_none())
    })
    .with_context(|| citizen.log())
}

/// A slip of the pen changes nothing but the events.
pub fn broken_settings() -> Result<()> {
    let cluster = Cluster::running()?;
    let citizen = Citizen::start(&cluster, "broken", STANDALONE, GENEROUS)?;
    wait_for("the node offers batch resources", || Ok(citizen.offered(CPU)?.is_some_and(|cpu| cpu > 0)))?;
    let before = citizen.offered(CPU)?;
    cluster.configure(&[("colocation-config", r#"{"enable": tru"#)])?;
    let text = citizen.event("InvalidConfig", &cluster.node)?;
    ensure!(text.contains("colocation-config") && text.contains("stays"), "{text}");
    println!("{text}");
    // Longer than the agent takes from one account to the next.
    sleep(Duration::from_secs(15));
    ensure!(citizen.offered(CPU)? == before, "{:?} became {:?}", before, citizen.offered(CPU)?);
    Ok(())
}

/// A `NodeSLO` out of range, while koord-manager computes what is lent.
pub fn node_slo_out_of_range() -> Result<()> {
    let cluster = Cluster::running()?;
    let slo = |percent: i64| {
        json!({
            "apiVersion": "slo.koordinator.sh/v1alpha1",
            "kind": "NodeSLO",
            "metadata": { "name": cluster.node },
            "spec": { "resourceUsedThresholdWithBE": { "enable": true, "memoryEvictThresholdPercent": percent } },
        })
    };
    let policy = format!("{STANDALONE}  mode: alongside\n");
    let citizen = Citizen::start(&cluster, "node-slo", &policy, GENEROUS)?;
    // The API server checks the schema; what it lets through is checked again.
    let refused = cluster.apply(&slo(170));
    if refused.is_ok() {
        let text = citizen.event("InvalidConfig", &cluster.node)?;
        ensure!(text.contains("memoryEvictThresholdPercent"), "{text}");
        println!("{text}");
    } else {
        println!("the API server: {:#}", refused.expect_err("it is refused"));
    }
    cluster.ask(&["delete", "nodeslo", &cluster.node, "--ignore-not-found"])?;
    ensure!(citizen.offered(CPU)?.is_none(), "alongside koord-manager, nothing may be lent");
    Ok(())
}

/// Two that write the same: one yields and says so.
pub fn two_writers() -> Result<()> {
    let cluster = Cluster::running()?;
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": cluster.node },
        "status": { "allocatable": { CPU: "77", MEMORY: "88" }, "capacity": { CPU: "77", MEMORY: "88" } },
    });
    let apply = |object: &Value| {
        cluster.apply_server_side(object, "koord-manager", &["--subresource=status", "--force-conflicts"])
    };
    apply(&node)?;
    let outcome = (|| {
        let citizen = Citizen::start(&cluster, "two-writers", STANDALONE, GENEROUS)?;
        let text = citizen.event("TwoWriters", &cluster.node)?;
        println!("{text}");
        ensure!(citizen.offered(CPU)? == Some(77), "{:?}", citizen.offered(CPU)?);
        Ok(())
    })();
    // The other one goes, with what it wrote.
    apply(
        &json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": cluster.node }, "status": {} }),
    )?;
    outcome
}

/// What an agent that is gone had lent is taken back after the degrade time, by a controller with the rights that ship.
pub fn controller() -> Result<()> {
    let cluster = Cluster::running()?;
    let strategy = GENEROUS.replace('{', r#"{"degradeTimeMinutes":1,"#);
    let citizen = Citizen::start(&cluster, "controller", STANDALONE, &strategy)?;
    wait_for("the node offers batch resources", || Ok(citizen.offered(CPU)?.is_some_and(|cpu| cpu > 0)))?;
    citizen.agent.process.signal(Signal::KILL)?;
    let begun = Instant::now();
    let kubeconfig = cluster.kubeconfig_of("enforcer-system", "enforcer-controller")?;
    let mut command = exec_in(None, Signal::TERM, &built("enforcer")?)?;
    command.arg("controller").arg("--kubeconfig").arg(&kubeconfig);
    let log = File::create(citizen.files.path().join("controller.log"))?;
    let _controller = Process::start("the controller", command.stdout(Stdio::null()).stderr(log))?;
    while citizen.offered(CPU)?.is_some() {
        let log = || std::fs::read_to_string(citizen.files.path().join("controller.log")).unwrap_or_default();
        ensure!(
            begun.elapsed() < Duration::from_mins(3),
            "still offered after {:?}; {}",
            begun.elapsed(),
            log()
        );
        sleep(Duration::from_secs(1));
    }
    // Reports come once a minute at most: the last one may have been as old as that.
    println!("taken back {:.0?} after the agent was killed", begun.elapsed());
    Ok(())
}

/// Uninstalling takes it back at once.
pub fn remove_all() -> Result<()> {
    let cluster = Cluster::running()?;
    let citizen = Citizen::start(&cluster, "remove-all", STANDALONE, GENEROUS)?;
    wait_for("the node offers batch resources", || Ok(citizen.offered(CPU)?.is_some_and(|cpu| cpu > 0)))?;
    citizen.agent.process.signal(Signal::KILL)?;
    let kubeconfig = cluster.kubeconfig_of("enforcer-system", "enforcer-controller")?;
    let mut command = Command::new(built("enforcer")?);
    let output = command.args(["controller", "--remove-all", "--kubeconfig"]).arg(kubeconfig).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(citizen.offered(CPU)?.is_none() && citizen.offered(MEMORY)?.is_none(), "still offered");
    Ok(())
}

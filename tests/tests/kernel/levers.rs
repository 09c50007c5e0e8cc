//! Levers other than the quota: pulled, let go, and let go for an agent that cannot.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer::report::history::Decision;
use enforcer_rig::{cpuset::Cpuset, sandbox::Group};
use enforcer_tests::agent::{Agent, PATIENCE};
use rustix::process::Signal;

use crate::{
    out_of_memory::OutOfMemory,
    scene::{Scene, by_signal, report, rounds, wait_until_back},
};

/// A freeze lasts tens of milliseconds; a slow machine may see it late.
const FROZEN_AT_MOST: Duration = Duration::from_millis(500);

fn text(group: &Group, file: &str) -> Result<String> {
    let v2 = group.v2_directory().context("no v2 hierarchy")?;
    let directory = if v2.join(file).exists() { v2 } else { group.cpu_directory() };
    Ok(fs::read_to_string(directory.join(file))?.trim().to_owned())
}

/// The weight that the owner gave, under the name that this host has for it.
fn weight(group: &Group) -> Result<String> {
    let directory = group.cpu_directory();
    let file = if directory.join("cpu.shares").exists() { "cpu.shares" } else { "cpu.weight" };
    Ok(fs::read_to_string(directory.join(file))?.trim().to_owned())
}

/// The weakest lever, and the owner's weight afterwards: the kernel forgets it meanwhile.
pub fn idle() -> Result<()> {
    let mut scene = Scene::new("idle")?;
    let owners = weight(&scene.be)?;
    let mut agent = Agent::start(&scene.files, &scene.policy_with("idle"), &[])?;
    scene.start_antagonist()?;
    agent.wait_for("BE runs idle only", |_| Ok(text(&scene.be, "cpu.idle")? == "1"))?;
    let (_, metrics) = agent.get("/metrics")?;
    let pulled = "enforcer_lever_pulled{group=\"batch\",lever=\"idle\"} 1";
    agent.wait_for("the metric says so", |agent| Ok(agent.get("/metrics")?.1.contains(pulled)))?;
    ensure!(metrics.contains("enforcer_lever_available{group=\"batch\",lever=\"quota\"} 0"), "{metrics}");
    agent.stop()?;
    ensure!(text(&scene.be, "cpu.idle")? == "0" && weight(&scene.be)? == owners, "{}", weight(&scene.be)?);
    Ok(())
}

/// What the kernel forgets when a directory is idle, the guardian knows.
pub fn killed_while_idle() -> Result<()> {
    let mut scene = Scene::new("idle-kill")?;
    let owners = weight(&scene.be)?;
    let mut took = Vec::new();
    for _ in 0..rounds() {
        let mut agent = Agent::start(&scene.files, &scene.policy_with("idle"), &[])?;
        scene.start_antagonist()?;
        agent.wait_for("BE runs idle only", |_| Ok(text(&scene.be, "cpu.idle")? == "1"))?;
        let begun = Instant::now();
        agent.process.signal(Signal::KILL)?;
        let both = || Ok(format!("{} {}", text(&scene.be, "cpu.idle")?, weight(&scene.be)?));
        took.push(wait_until_back(begun, &format!("0 {owners}"), both)?);
        agent.process.terminate(PATIENCE)?;
        scene.antagonist = None;
    }
    report(&took);
    Ok(())
}

/// BE whose floor is nearly all there is hurts at its floor: it gets fewer CPUs, and all of them back.
pub fn pin() -> Result<()> {
    let mut scene = Scene::new("pin")?;
    let cpuset = Cpuset::new(&scene.sandbox, "enforcer-test", "be")?;
    let cpus = || -> Result<String> {
        Ok(fs::read_to_string(cpuset.directory().join("cpuset.cpus"))?.trim().to_owned())
    };
    let owners = cpus()?;
    let policy = scene.policy_with("quota, cpuset").replace("floor: 100m", "floor: 1900m");
    let mut agent = Agent::start(&scene.files, &policy, &[])?;
    scene.start_antagonist_in(&[cpuset.directory()])?;
    agent.wait_for("BE has fewer CPUs", |_| Ok(cpus()? != owners))?;
    println!("CPUs {} of {owners}: {}", cpus()?, agent.status()?.explanation);
    ensure!(!cpus()?.contains(['-', ',']), "more than one of two CPUs: {}", cpus()?);
    agent.stop()?;
    scene.antagonist = None;
    ensure!(cpus()? == owners, "{} is left in force", cpus()?);
    Ok(())
}

/// Sees whether a group is frozen, as quickly as reading a file goes, and remembers for how long at most.
fn watch_freezes(file: &Path, until: &AtomicBool) -> Vec<Duration> {
    let mut freezes = Vec::new();
    let mut since: Option<Instant> = None;
    while !until.load(Relaxed) {
        let frozen = fs::read_to_string(file).is_ok_and(|text| text.trim() == "1");
        match (frozen, since) {
            (true, None) => since = Some(Instant::now()),
            (false, Some(begun)) => {
                freezes.push(begun.elapsed());
                since = None;
            }
            _ => {}
        }
        sleep(Duration::from_micros(500));
    }
    freezes.extend(since.map(|begun| begun.elapsed()));
    freezes
}

/// BE that the kernel saw run while LS waited is frozen for a moment, then limited; no trial is made.
pub fn freeze() -> Result<()> {
    let mut scene = Scene::new("freeze")?;
    let file = scene.be.v2_directory().context("no v2 hierarchy")?.join("cgroup.freeze");
    let done = AtomicBool::new(false);
    let freezes = thread::scope(|scope| -> Result<Vec<Duration>> {
        let watcher = scope.spawn(|| watch_freezes(&file, &done));
        let seen = (|| {
            let mut agent = Agent::start(&scene.files, &scene.policy_with("freeze, quota"), &[])?;
            // The probes learn the pace of a group within its first seconds.
            sleep(Duration::from_secs(3));
            scene.start_antagonist()?;
            agent.wait_for("BE is squeezed", |agent| Ok(agent.status()?.reason == "squeeze"))?;
            let decisions: Vec<Decision> = serde_json::from_str(&agent.get("/v1/decisions")?.1)?;
            let first =
                decisions.iter().find(|decision| !decision.changes.is_empty()).context("nothing done")?;
            ensure!(first.reason == "squeeze", "BE was tried before it was squeezed: {decisions:#?}");
            ensure!(first.changes[0].after.frozen, "{first:?}");
            match first.reaction {
                Some(reaction) => println!("in force {:?} after the onset", reaction.took()),
                None => println!("a regular look came first"),
            }
            agent.stop()
        })();
        done.store(true, Relaxed);
        let freezes = watcher.join().expect("the watcher does not panic");
        seen.map(|()| freezes)
    })?;
    ensure!(!freezes.is_empty(), "BE was never frozen");
    ensure!(freezes.iter().all(|freeze| *freeze < FROZEN_AT_MOST), "{freezes:?}");
    ensure!(text(&scene.be, "cgroup.freeze")? == "0");
    println!("frozen for {freezes:?}");
    Ok(())
}

/// Whatever ends the agent while BE is frozen, BE is thawed. `prepare` comes before, `death` when it is frozen.
fn thawed_after<T>(
    name: &str,
    prepare: impl Fn(&Scene, &Agent) -> Result<T>,
    death: impl Fn(&mut T, &mut Agent) -> Result<Instant>,
) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let owners = scene.set_owners_limit()?;
    let mut took = Vec::new();
    for _ in 0..rounds() {
        let mut agent = Agent::start(&scene.files, &scene.policy_with("freeze, quota"), &[])?;
        let mut prepared = prepare(&scene, &agent)?;
        sleep(Duration::from_secs(3));
        scene.start_antagonist()?;
        let until = Instant::now() + PATIENCE;
        while text(&scene.be, "cgroup.freeze")? != "1" {
            ensure!(Instant::now() < until, "BE was never frozen");
            sleep(Duration::from_micros(200));
        }
        let begun = death(&mut prepared, &mut agent)?;
        wait_until_back(begun, "0", || text(&scene.be, "cgroup.freeze"))?;
        let restored = scene.wait_until_restored(&owners, begun);
        // Ends what was only stopped.
        if agent.process.is_running() {
            agent.process.signal(Signal::KILL)?;
        }
        took.push(restored?);
        agent.process.terminate(PATIENCE)?;
        scene.antagonist = None;
    }
    report(&took);
    Ok(())
}

pub fn killed_while_frozen() -> Result<()> {
    thawed_after("thaw", |_, _| Ok(()), by_signal(Signal::KILL))
}

pub fn stopped_while_frozen() -> Result<()> {
    thawed_after("thaw-stop", |_, _| Ok(()), by_signal(Signal::STOP))
}

pub fn out_of_memory_while_frozen() -> Result<()> {
    thawed_after("thaw-oom", OutOfMemory::prepare, OutOfMemory::strike)
}

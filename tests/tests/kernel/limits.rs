//! The agent as a whole: limits written, restored, left alone.

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer::{
    cgroup::{
        hierarchy::Hierarchy,
        setting::{Knob, Setting, SettingFile},
    },
    model::{CpuLimit, Restraint},
    report::{
        history::{Change, Decision},
        status::{DurationsStatus, Origin},
    },
};
use enforcer_rig::{
    process::{Process, workload_in},
    sandbox::Sandbox,
    wait,
};
use enforcer_tests::{
    agent::{Agent, Files, PATIENCE, enforcer},
    needs::slowness,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    out_of_memory::OutOfMemory,
    scene::{Scene, by_signal, report, rounds},
};

pub fn squeeze() -> Result<()> {
    let mut scene = Scene::new("squeeze")?;
    let owners = scene.be.cpu_limit()?;
    let recording = scene.files.path().join("recording");
    let mut agent = scene.squeezed_by(&["--record", recording.to_str().context("not UTF-8")?])?;
    let squeezed = scene.be.cpu_limit()?;
    ensure!(squeezed != owners, "the agent says that it squeezes, and the limit is {squeezed}");
    let status = agent.status()?;
    let batch = status.groups.iter().find(|group| group.name == "batch").context("no group batch")?;
    ensure!(batch.limit_cores.is_some_and(|cores| cores >= 0.1), "{:?}", batch.limit_cores);
    ensure!(status.limit_write_errors == 0, "{} write errors", status.limit_write_errors);
    let (_, metrics) = agent.get("/metrics")?;
    for line in ["enforcer_decision{reason=\"squeeze\"} 1", "enforcer_cpu_limit_cores{group=\"batch\"}"] {
        ensure!(metrics.contains(line), "no {line} in\n{metrics}");
    }

    // At the floor, BE gets its floor: over ten seconds, a mean of a tenth of a CPU at least. A period that an emulated CPU
    // sleeps through is lost to BE.
    let (before, begun) = (scene.be.cpu_time()?, Instant::now());
    sleep(Duration::from_secs(10));
    let cores = scene.be.cpu_time()?.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let least = 0.095 / f64::from(slowness());
    ensure!(cores >= least, "BE got {cores:.3} CPUs, its floor is 0.1");

    explains_itself(&agent)?;

    // When BE has gone, so does its limit.
    scene.antagonist = None;
    agent.wait_for("the limit is gone", |agent| Ok(agent.status()?.reason != "squeeze"))?;
    ensure!(scene.be.cpu_limit()? == owners, "{}", scene.be.cpu_limit()?);

    scene.start_antagonist()?;
    agent.wait_for("BE is squeezed again", |agent| Ok(agent.status()?.reason == "squeeze"))?;
    agent.stop()?;
    ensure!(scene.be.cpu_limit()? == owners, "after SIGTERM: {}", scene.be.cpu_limit()?);
    replays(&recording)?;
    ensure!(scene.server.is_running() && scene.client.is_running(), "LS did not survive the test");
    Ok(())
}

/// The same decisions are made again.
pub fn replays(recording: &Path) -> Result<()> {
    let replayed = enforcer()?.arg("replay").arg(recording).output()?;
    let text =
        String::from_utf8_lossy(&replayed.stdout).into_owned() + &String::from_utf8_lossy(&replayed.stderr);
    ensure!(replayed.status.success() && text.contains("all plans as recorded"), "{text}");
    Ok(())
}

/// Who suffered, what was done about it, and what came of it.
fn explains_itself(agent: &Agent) -> Result<()> {
    let address = agent.address.to_string();
    let output = enforcer()?.args(["explain", "--json", "--last", "256", "--agent", &address]).output()?;
    let decisions: Vec<Decision> = serde_json::from_slice(&output.stdout)?;
    let squeeze = decisions.iter().find(|decision| decision.reason == "squeeze").context("no squeeze")?;
    let victim = squeeze.victim.as_ref().context("no victim")?;
    ensure!(victim.name == "web" && victim.p99_seconds > victim.objective_seconds, "{victim:?}");
    let restrained = |change: &Change| change.group == "batch" && change.after != Restraint::default();
    ensure!(squeeze.changes.iter().any(restrained), "{squeeze:?}");
    // What a squeeze is good for depends on what else this machine does: benchmarks tell.
    let outcome = squeeze.outcome.context("no outcome ten seconds later")?;
    ensure!(outcome.slow_ratio.is_some(), "{squeeze:?}");
    Ok(())
}

pub fn kill_9() -> Result<()> {
    let mut scene = Scene::new("kill")?;
    let owners = scene.set_owners_limit()?;
    let mut agent = scene.squeezed_by(&["--no-guardian"])?;
    agent.process.signal(Signal::KILL)?;
    agent.process.terminate(PATIENCE)?;
    ensure!(scene.be.cpu_limit()? != owners, "nothing was left behind, so there is nothing to test");

    // The next one restores before it does anything else.
    scene.antagonist = None;
    let begun = Instant::now();
    let mut next = Agent::spawn(&scene.files, &scene.policy(), &["--shadow"])?;
    scene.wait_until_restored(&owners, begun)?;
    println!("restored within {:?} of the restart", begun.elapsed());
    next.wait_until_ready()?;
    next.stop()?;
    ensure!(scene.be.cpu_limit()? == owners, "{}", scene.be.cpu_limit()?);
    Ok(())
}

/// The guardian restores what a killed agent left behind, and nobody has to start anything.
fn guardian_after<T>(
    name: &str,
    prepare: impl Fn(&Scene, &Agent) -> Result<T>,
    death: impl Fn(&mut T, &mut Agent) -> Result<Instant>,
) -> Result<()> {
    let mut scene = Scene::new(name)?;
    let owners = scene.set_owners_limit()?;
    let mut took = Vec::new();
    for _ in 0..rounds() {
        let mut agent = scene.squeezed()?;
        ensure!(scene.be.cpu_limit()? != owners, "not squeezed");
        let mut prepared = prepare(&scene, &agent)?;
        let begun = death(&mut prepared, &mut agent)?;
        took.push(scene.wait_until_restored(&owners, begun)?);
        agent.process.terminate(PATIENCE)?;
        scene.antagonist = None;
    }
    report(&took);
    Ok(())
}

pub fn guardian_after_kill() -> Result<()> {
    guardian_after("guardian", |_, _| Ok(()), by_signal(Signal::KILL))
}

/// As a failed allocation ends a process, or a panic that meets another.
pub fn guardian_after_abort() -> Result<()> {
    guardian_after("guardian-abort", |_, _| Ok(()), by_signal(Signal::ABORT))
}

/// A guardian that is killed has a successor, and that one guards.
pub fn guardian_after_guardian() -> Result<()> {
    let mut scene = Scene::new("guardians")?;
    let owners = scene.set_owners_limit()?;
    let mut agent = scene.squeezed()?;
    let first = guardian_of(&agent)?.context("no guardian")?;
    kill_process(first, Signal::KILL)?;
    agent.wait_for("there is another guardian", |agent| {
        Ok(guardian_of(agent)?.is_some_and(|now| now != first))
    })?;
    ensure!(scene.files.log()?.contains("the guardian ended; starting another"), "{}", scene.files.log()?);
    agent.wait_for("BE is limited", |_| Ok(scene.be.cpu_limit()? != owners))?;
    let begun = Instant::now();
    agent.process.signal(Signal::KILL)?;
    report(&[scene.wait_until_restored(&owners, begun)?]);
    agent.process.terminate(PATIENCE)?;
    Ok(())
}

/// The agent's only child, once it is what it is to be.
fn guardian_of(agent: &Agent) -> Result<Option<Pid>> {
    let id = agent.process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    for child in children.split_whitespace() {
        let command = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).any(|argument| argument == b"guardian") {
            return Ok(Pid::from_raw(child.parse()?));
        }
    }
    Ok(None)
}

pub fn guardian_after_oom_kill() -> Result<()> {
    guardian_after("guardian-oom", OutOfMemory::prepare, OutOfMemory::strike)
}

/// The guardian takes the limits off when the agent is stopped; the agent goes on when it is continued, and restores at
/// its end what the owner had set.
pub fn guardian_after_stop() -> Result<()> {
    let mut scene = Scene::new("hang")?;
    let owners = scene.set_owners_limit()?;
    let mut agent = scene.squeezed()?;
    let mut took = Vec::new();
    for _ in 0..rounds() {
        let before = revocations(&agent)?;
        let (mut begun, mut limit) = (Instant::now(), String::new());
        agent.wait_for("the agent is stopped while BE is limited", |agent| {
            begun = Instant::now();
            agent.process.signal(Signal::STOP)?;
            limit = scene.be.cpu_limit()?;
            let is_limited = limit != owners;
            if !is_limited {
                // It let BE go by itself, as in every other window of a trial.
                agent.process.signal(Signal::CONT)?;
            }
            Ok(is_limited)
        })?;
        let restored = scene.wait_until_restored(&owners, begun);
        // As the rest of a tick would have it that goes on for a moment only.
        let again = restored.and_then(|first| {
            scene.set_limit(&limit)?;
            Ok([first, scene.wait_until_restored(&owners, Instant::now())?])
        });
        // A limit that was on its way when the agent was stopped comes late, and must go as well.
        agent.process.signal(Signal::CONT)?;
        took.extend(again?);
        agent.wait_for("the agent knows", |agent| Ok(revocations(agent)? > before))?;
    }
    agent.stop()?;
    ensure!(scene.be.cpu_limit()? == owners, "{}", scene.be.cpu_limit()?);
    report(&took);
    Ok(())
}

fn revocations(agent: &Agent) -> Result<f64> {
    agent.metric("enforcer_lease_revocations_total")
}

pub fn shadow() -> Result<()> {
    let mut scene = Scene::new("shadow")?;
    let owners = scene.be.cpu_limit()?;
    let mut agent = Agent::start(&scene.files, &scene.policy(), &["--shadow"])?;
    scene.start_antagonist()?;
    agent.wait_for("the agent says what it would do", |agent| Ok(agent.status()?.reason == "shadow"))?;
    agent.wait_for("what that would cost is told", |agent| {
        Ok(agent.status()?.shadow_be_core_seconds.is_some_and(|cost| cost > 0.0))
    })?;
    let status = agent.status()?;
    ensure!(status.shadow && status.limit_writes == 0, "{} writes", status.limit_writes);
    ensure!(scene.be.cpu_limit()? == owners, "{}", scene.be.cpu_limit()?);
    agent.stop()
}

/// Without BE the agent learns what is normal; an objective learned so is kept, and BE is squeezed by it.
pub fn learned_objective() -> Result<()> {
    let mut scene = Scene::new("learned")?;
    let policy = scene.policy().replace("{ p99: 4ms }", "{ auto: 2 }");
    let mut agent = Agent::start(&scene.files, &policy, &[])?;
    ensure!(requests(&agent)?.objective_is == Some(Origin::Learning), "{:?}", requests(&agent)?);
    ensure!(requests(&agent)?.objective_seconds.is_none(), "{:?}", requests(&agent)?);
    agent.wait_for("the objective is learned", |agent| {
        Ok(requests(agent)?.objective_is == Some(Origin::Learned))
    })?;
    let found = requests(&agent)?;
    let (objective, p99) =
        found.objective_seconds.zip(found.p99_seconds_total).context("no objective, or no p99")?;
    println!("p99 {:.2} ms, objective {:.2} ms", p99 * 1e3, objective * 1e3);
    ensure!((1.5..2.5).contains(&(objective / p99)), "twice the p99 of {p99} s is not {objective} s");
    agent.stop()?;

    // Long before anything could be learned anew.
    let recording = scene.files.path().join("recording");
    let record = ["--record", recording.to_str().context("not UTF-8")?];
    let mut next = Agent::start(&scene.files, &policy, &record)?;
    next.wait_for("what was learned is known", |agent| {
        Ok(requests(agent)?.objective_seconds.is_some_and(|kept| (kept - objective).abs() < 1e-6))
    })?;
    ensure!(next.metric("enforcer_quiet_seconds_total")? < 10.0, "it took too long");
    scene.start_antagonist()?;
    next.wait_for("BE is squeezed", |agent| Ok(agent.status()?.reason == "squeeze"))?;
    next.stop()?;
    replays(&recording)
}

fn requests(agent: &Agent) -> Result<DurationsStatus> {
    let web = agent.status()?.groups.into_iter().find(|group| group.name == "web");
    web.and_then(|web| web.requests).context("no requests of group web")
}

/// No agent is as cheap as this budget: it looks less often, says so, and goes on working.
pub fn overhead() -> Result<()> {
    let mut scene = Scene::new("overhead")?;
    let policy = scene.policy() + "limits:\n  overhead: 0.001%\n";
    let mut agent = Agent::start(&scene.files, &policy, &[])?;
    agent.wait_for("something is left out", |agent| Ok(agent.metric("enforcer_shed_level")? >= 1.0))?;
    let overhead = agent.metric("enforcer_overhead_ratio")?;
    ensure!((0.000_01..0.5).contains(&overhead), "an overhead of {overhead}");
    let probe = "enforcer_bpf_run_seconds_total{program=\"run_queue_wait\"}";
    let ran = agent.metric(probe)?;
    ensure!(ran > 0.0, "the probe ran for {ran} s");
    ensure!(scene.files.log()?.contains("the agent costs too much"), "{}", scene.files.log()?);
    ensure!(agent.status()?.left_out.is_some(), "{:?}", agent.status()?);
    let guardian = agent.metric("enforcer_guardian_cpu_seconds_total")?;
    ensure!(guardian > 0.0 && guardian < 10.0, "the guardian used {guardian} s");
    let (ticks, begun) = (agent.metric("enforcer_ticks_total")?, Instant::now());
    sleep(Duration::from_secs(4));
    let early = agent.metric("enforcer_early_ticks_total")?;
    let rate = (agent.metric("enforcer_ticks_total")? - ticks) / begun.elapsed().as_secs_f64();
    println!("overhead {:.3} %, {rate:.1} looks per second, {early} early ones so far", overhead * 100.0);
    ensure!(rate < 8.0 || early > 10.0, "{rate} looks per second");

    scene.start_antagonist()?;
    agent.wait_for("BE is squeezed all the same", |agent| Ok(agent.status()?.reason == "squeeze"))?;
    agent.stop()
}

/// Whose state directory somebody tidied up: nobody could put right what the agent does from then on.
pub fn without_state() -> Result<()> {
    let mut scene = Scene::new("state")?;
    let owners = scene.set_owners_limit()?;
    let mut agent = scene.squeezed()?;
    let begun = Instant::now();
    fs::remove_dir_all(scene.files.path().join("state"))?;
    scene.wait_until_restored(&owners, begun)?;
    let mut status = None;
    wait::until("the agent ends", PATIENCE, wait::LOOK, || {
        status = agent.process.ended()?;
        Ok(status.is_some())
    })?;
    let log = scene.files.log()?;
    ensure!(status.is_some_and(|status| status.code() == Some(2)), "{status:?}");
    ensure!(log.contains("was removed while this enforcer ran"), "{log}");
    ensure!(!log.contains('\u{1b}'), "a file got colours:\n{log}");
    ensure!(scene.be.cpu_limit()? == owners, "{}", scene.be.cpu_limit()?);
    Ok(())
}

/// What two directories of a group get is what the group may have, wherever their tasks are counted.
pub fn shared_limit() -> Result<()> {
    let mut scene = Scene::new("shared")?;
    let second = scene.sandbox.group("be-too", 4096)?;
    let pattern = |name: &str| format!("{}/{name}", scene.sandbox.path());
    let one = format!("cgroups: [{}]", pattern("be"));
    let two = format!("cgroups: [{}, {}]", pattern("be"), pattern("be-too"));
    let mut agent = Agent::start(&scene.files, &scene.policy().replace(&one, &two), &[])?;
    let mut command = workload_in(&second)?;
    let _spins =
        Process::start("the other antagonist", command.args(["antagonist", "cpu-spin", "--threads", "2"]))?;
    scene.start_antagonist()?;
    let cores = |limit: String| -> Result<f64> {
        let (quota, period) = limit.split_once(' ').with_context(|| format!("a limit of {limit:?}"))?;
        // "max" or -1: none.
        let quota_us = quota.parse::<f64>().ok().filter(|quota_us| *quota_us > 0.0);
        Ok(quota_us.unwrap_or(f64::INFINITY) / period.parse::<f64>()?)
    };
    let mut seen = String::new();
    let shared = agent.wait_for("both share the limit", |agent| {
        let groups = agent.status()?.groups;
        let whole = groups.iter().find(|group| group.name == "batch").and_then(|group| group.limit_cores);
        let parts = [cores(scene.be.cpu_limit()?)?, cores(second.cpu_limit()?)?];
        seen = format!("{parts:?} of {whole:?}");
        Ok(whole.is_some_and(|whole| (0.8..=1.05).contains(&(parts.iter().sum::<f64>() / whole))))
    });
    shared.context(seen.clone())?;
    println!("{seen}");
    agent.stop()
}

/// A v1 kernel refuses a parent's limit below its child's; the child's is lifted first and put back afterwards.
pub fn v1_children() -> Result<()> {
    let mut scene = Scene::new("children")?;
    let pod = scene.be.cpu_directory().join("pod");
    fs::create_dir(&pod)?;
    fs::write(pod.join("cpu.cfs_quota_us"), "150000")?;
    let childs = || fs::read_to_string(pod.join("cpu.cfs_quota_us"));
    let agent = scene.squeezed()?;
    ensure!(childs()?.trim() == "-1", "the child's limit is {}", childs()?);
    let limit = scene.be.cpu_limit()?;
    ensure!(!limit.starts_with("-1"), "the parent's limit is {limit}");
    agent.stop()?;
    ensure!(childs()?.trim() == "150000", "the child's limit is {} after SIGTERM", childs()?);
    ensure!(scene.ls.cpu_limit()?.starts_with("-1"), "LS was limited");
    Ok(())
}

/// Below a parent with half a CPU: the first half of this limit is taken, the second refused.
pub fn refused_v1() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let group = sandbox.group("be", 1024)?;
    group.set_cpu_limit(0.5, Duration::from_millis(100))?;
    let pod = group.cpu_directory().join("pod");
    fs::create_dir(&pod)?;
    let file = SettingFile::new(Hierarchy::V1Cpu, pod.clone(), Knob::Quota);
    let before = file.read()?;
    let refused = CpuLimit { quota_us: Some(25_500), period_us: 50_000 };
    let error = file.write(&Setting::Quota(refused)).err().context("more than the parent has was allowed")?;
    let after = file.read()?;
    fs::remove_dir(&pod)?;
    println!("{error}");
    ensure!(after == before, "{before} before, {after} after");
    Ok(())
}

/// A thousand cgroups at a hundred per second: nothing leaks, nothing is logged.
pub fn churn() -> Result<()> {
    const CGROUPS: usize = 1_000;
    let sandbox = Sandbox::new("enforcer-test")?;
    let files = Files::new("churn")?;
    let policy = format!(
        "groups:\n- name: web\n  class: LS\n  cgroups: ['{0}/ls*']\n  slo: {{ runQueueWait: {{ p99: 1ms }} }}\n\
         - name: batch\n  class: BE\n  cgroups: ['{0}/be*']\nlimits:\n  cgroups: 1024\n  overhead: 50%\n",
        sandbox.path()
    );
    // A slow virtual machine is busy for long with a tick in which a hundred directories came.
    let mut agent = Agent::start(&files, &policy, &["--watchdog", "10s"])?;
    // As many, so that what is kept for reuse has its final size.
    churn_some(&sandbox, CGROUPS)?;
    agent.wait_for("all have gone", |agent| {
        Ok(agent.status()?.groups.iter().all(|group| group.cgroups == 0))
    })?;
    let (before, fds_before) = (agent.status()?, open_files(&agent)?);

    churn_some(&sandbox, CGROUPS)?;
    agent.wait_for("all have gone", |agent| {
        Ok(agent.status()?.groups.iter().all(|group| group.cgroups == 0))
    })?;
    let (after, fds_after) = (agent.status()?, open_files(&agent)?);
    let slots = agent.metric("enforcer_slots_used")?;
    ensure!(slots == 0.0, "{slots} slots are still in use");
    ensure!(fds_after <= fds_before + 1, "{fds_before} files open before, {fds_after} after");
    let grown = after
        .agent_resident_bytes
        .zip(before.agent_resident_bytes)
        .map(|(after, before)| after.saturating_sub(before));
    let grown = grown.context("the agent does not know its memory")?;
    ensure!(grown < 1 << 20, "memory grew by {grown} bytes");
    println!("{CGROUPS} cgroups: memory grew by {grown} bytes, files {fds_before} -> {fds_after}");
    agent.stop()?;
    let log = files.log()?;
    ensure!(!log.contains("ERROR") && !log.contains("WARN"), "the log has complaints:\n{log}");
    Ok(())
}

/// Makes cgroups at a hundred per second, some with a process in them, and removes each half a second later.
fn churn_some(sandbox: &Sandbox, count: usize) -> Result<()> {
    let mut alive = std::collections::VecDeque::new();
    let begun = Instant::now();
    for n in 0..count {
        let class = if n % 2 == 0 { "ls" } else { "be" };
        let group = sandbox.group(&format!("{class}{n}"), 1024)?;
        let process = if n % 20 == 0 {
            let mut command = workload_in(&group)?;
            command.args(["exec", "/bin/true"]);
            Some(Process::start("true", command.stdin(Stdio::null()))?)
        } else {
            None
        };
        alive.push_back((group, process));
        if alive.len() > 50 {
            let (group, process) = alive.pop_front().context("just pushed")?;
            drop(process);
            drop(group);
        }
        let due = begun + Duration::from_millis(10) * u32::try_from(n + 1)?;
        sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn open_files(agent: &Agent) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.process.id()))?.count())
}

//! The memory lever, on a real `memory.high`.

use std::{
    borrow::Cow,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer::{
    actuation::{Actuator, Target, journal::Journal},
    cgroup::{
        hierarchy::{Hierarchy, Mounts},
        setting::{Knob, Setting, SettingFile},
        tree::Directory,
    },
    model::GroupId,
};
use enforcer_rig::{
    process::{Process, exec_in},
    sandbox::{Group, Sandbox},
};
use enforcer_tests::agent::{Files, enforcer};
use rustix::process::Signal;

use crate::memory::{hog, wait_until};

/// Not the kernel's default, so that restoring the default would be noticed.
pub const OWNERS: &str = "1073741824";
/// No whole number of pages: the kernel rounds.
const WANTED: u64 = (48 << 20) + 123;
const HIGH: &str = "50331648";
/// What a process that is to hold a group's memory down finds in its environment: its state directory and the group's path.
const HELD_STATE: &str = "ENFORCER_TEST_HELD_STATE";
const HELD_GROUP: &str = "ENFORCER_TEST_HELD_GROUP";
const ROOT: &str = "/sys/fs/cgroup";

fn memory_high(group: &Group) -> Result<String> {
    Ok(fs::read_to_string(group.memory_directory().join("memory.high"))?.trim().to_owned())
}

fn actuator(state: &Path) -> Result<Actuator> {
    Ok(Actuator::new(Mounts::below(Path::new(ROOT))?, Journal::open(state)?, false))
}

/// As the agent would have it.
fn target(path: &Path) -> Result<Target<'static>> {
    let mount = Mounts::below(Path::new(ROOT))?.v2.context("no v2 hierarchy")?;
    let inode = fs::metadata(mount.join(path))?.ino();
    let hierarchy = Hierarchy::V2;
    let directory = Directory { hierarchy, path: path.into(), inode, group: GroupId(1), is_top: true };
    let high = enforcer::cgroup::memory::whole_pages(WANTED);
    let setting = Setting::MemoryHigh(Some(high));
    Ok(Target { directory: Cow::Owned(directory), setting, below: Vec::new() })
}

fn owned_group(sandbox: &Sandbox) -> Result<Group> {
    let group = sandbox.memory_group("be", 1024)?;
    fs::write(group.memory_directory().join("memory.high"), OWNERS)?;
    Ok(group)
}

/// The group uses 128 MiB that cannot be reclaimed, there being no swap: whoever lowers its limit is kept busy.
pub fn lowered_and_put_back() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let group = owned_group(&sandbox)?;
    let files = Files::new("memory-high")?;
    let _hog = hog(&group, 1)?;
    let usage = group.memory_directory().join("memory.current");
    wait_until("the hog uses its memory", || {
        Ok(fs::read_to_string(&usage)?.trim().parse::<u64>()? > 100 << 20)
    })?;

    let mut actuator = actuator(files.path())?;
    let targets = [target(Path::new(&group.path))?];
    let (mut now, mut slowest, mut writes) = (Duration::ZERO, Duration::ZERO, 0);
    let begun = Instant::now();
    wait_until("the limit was lowered, and noted", || {
        let call = Instant::now();
        let applied = actuator.apply(now, &targets);
        slowest = slowest.max(call.elapsed());
        now += Duration::from_millis(100);
        writes += applied.writes;
        ensure!(applied.errors.is_empty() && applied.foreign == 0, "{applied:?}");
        Ok(writes > 0)
    })?;
    let took = begun.elapsed();
    ensure!(memory_high(&group)? == HIGH, "{}", memory_high(&group)?);
    ensure!(actuator.apply(now, &targets).writes == 0, "the rounded value was written again");
    println!("the loop waited {slowest:.1?} at most; the write was done after {took:.1?}");
    ensure!(slowest < Duration::from_millis(500), "the loop waited {slowest:?}");

    let begun = Instant::now();
    let finished = actuator.finish();
    ensure!(finished.errors.is_empty() && memory_high(&group)? == OWNERS, "{}", memory_high(&group)?);
    println!("put back within {:.1?}", begun.elapsed());

    // Put back while the write may still wait its turn or be under way.
    for _ in 0..20 {
        actuator.apply(now, &targets);
        actuator.finish();
        ensure!(memory_high(&group)? == OWNERS, "{}", memory_high(&group)?);
    }
    ensure!(actuator.held() == 0, "{} are held", actuator.held());
    Ok(())
}

/// The group that this process is to hold down, if it was started for that.
pub fn held_by_this_process() -> Option<PathBuf> {
    std::env::var_os(HELD_GROUP).map(PathBuf::from)
}

/// Holds a group's memory down until killed.
pub fn hold(group: &Path) -> ! {
    let state = std::env::var_os(HELD_STATE).expect("set together");
    let mut actuator = actuator(Path::new(&state)).expect("the journal can be opened");
    let targets = [target(group).expect("the group is there")];
    let begun = Instant::now();
    loop {
        actuator.apply(begun.elapsed(), &targets);
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn guardian() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let group = owned_group(&sandbox)?;
    let files = Files::new("memory-guardian")?;
    let mut command = exec_in(None, Signal::KILL, &std::env::current_exe()?)?;
    command.env(HELD_STATE, files.path()).env(HELD_GROUP, &group.path).stdin(Stdio::null());
    let mut holder = Process::start("the one that holds memory down", &mut command)?;
    wait_until("the limit was lowered", || Ok(memory_high(&group)? == HIGH))?;
    // It does not renew a lease, and is not to be taken for hung.
    let mut command = enforcer()?;
    command.args(["guardian", "--once", "--watchdog", "1h", "--cgroup-root", ROOT, "--state-dir"]);
    let _guardian = Process::start("the guardian", command.arg(files.path()).stdin(Stdio::null()))?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(memory_high(&group)? == HIGH, "put back while its holder lives: {}", memory_high(&group)?);

    let begun = Instant::now();
    holder.signal(Signal::KILL)?;
    wait_until("the owner's value is back", || Ok(memory_high(&group)? == OWNERS))?;
    println!("put back within {:.1?} of the kill", begun.elapsed());
    ensure!(!holder.is_running(), "it was to be killed");
    Ok(())
}

pub fn unavailable() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let group = sandbox.group("be", 1024)?;
    let directory = group.v2_directory().context("no v2 hierarchy")?;
    let read = SettingFile::new(Hierarchy::V2, directory, Knob::MemoryHigh).read();
    let error = read.err().context("memory.high can be read")?.to_string();
    ensure!(error.contains("no memory.high: the memory controller is on v1"), "{error}");
    let checked = enforcer()?.arg("check").output()?;
    let text = String::from_utf8(checked.stdout)?;
    let lines = || text.lines().skip_while(|line| !line.starts_with("no   lever: memory"));
    let (fact, cure) = (lines().next().unwrap_or_default(), lines().nth(1).unwrap_or_default());
    ensure!(fact.contains("no memory.high") && cure.contains("the memory controller is on v1"), "{text}");
    println!("{}", error.trim());
    Ok(())
}

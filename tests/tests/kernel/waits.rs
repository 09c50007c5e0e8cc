//! Run-queue waits, CPU time and blame.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer::{
    cgroup::hierarchy::Hierarchy,
    kernel::{
        counters::{Running, WaitTotals},
        probes::{Identity, Loaded, Probes, possible_cpus},
        slots::Full,
        support::{Sizes, Support, WaitSource},
    },
};
use enforcer_ebpf::{
    layout::{CULPRIT_UNATTRIBUTED, Drop, FIRST_SLOT, SLOT_OTHER},
    table::Key,
};
use enforcer_rig::{
    process::{Process, workload_in},
    sandbox::{Group, Sandbox},
    wait,
};
use enforcer_tests::agent::PATIENCE;

/// Equal weights: everybody waits for everybody.
const SHARES: u32 = 1024;
const VICTIM: u32 = 1;
const CULPRIT_LS: u32 = 3;
const CULPRIT_BE: [u32; 2] = [4, 5];
const MEASURED: Duration = Duration::from_secs(4);

pub fn sizes(slots: u32) -> Result<Sizes> {
    Ok(Sizes { cpus: possible_cpus()?, slots, victims: 2, culprits: 6 })
}

pub fn load(source: WaitSource, identity: Identity, slots: u32) -> Result<Loaded> {
    let support = Support::of_running_kernel(source == WaitSource::Wakeups)?;
    ensure!(support.wait_source == source, "this kernel has no sched_info");
    Ok(Probes::load(&support, identity, sizes(slots)?)?)
}

/// The key of a group's directory in a hierarchy.
pub fn key(group: &Group, hierarchy: Hierarchy) -> Result<Key> {
    let directory = match hierarchy {
        Hierarchy::V2 => group.v2_directory().context("no v2 hierarchy")?,
        Hierarchy::V1Cpu | Hierarchy::V1Cpuset => group.cpu_directory(),
        Hierarchy::V1Memory => bail!("no probe counts by directories of v1's memory controller"),
    };
    Ok(hierarchy.key(fs::metadata(directory)?.ino()))
}

/// A thread that always wants to run, on one CPU.
fn spinner(group: &Group) -> Result<Process> {
    let mut command = workload_in(group)?;
    command.args(["--cpu", "0", "antagonist", "cpu-spin", "--threads", "1"]);
    Process::start("a spinner", command.stdin(Stdio::null()).stdout(Stdio::null()))
}

pub fn by_sched_info() -> Result<()> {
    two_that_share_a_cpu(WaitSource::SchedInfo, Identity::V2, Hierarchy::V2)
}

pub fn by_wakeups() -> Result<()> {
    two_that_share_a_cpu(WaitSource::Wakeups, Identity::V2, Hierarchy::V2)
}

pub fn by_v1_directory() -> Result<()> {
    two_that_share_a_cpu(WaitSource::SchedInfo, Identity::V1Cpu, Hierarchy::V1Cpu)
}

/// Each runs half of the time and waits the other half.
fn two_that_share_a_cpu(source: WaitSource, identity: Identity, hierarchy: Hierarchy) -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let (ls, be) = (sandbox.group("ls", SHARES)?, sandbox.group("be", SHARES)?);
    let mut loaded = load(source, identity, 16)?;
    let slot = loaded.slots.allot(key(&ls, hierarchy)?, VICTIM, CULPRIT_LS, Duration::ZERO, |_| {})?;
    loaded.slots.allot(key(&be, hierarchy)?, 0, CULPRIT_BE[0], Duration::ZERO, |_| {})?;
    let (_a, _b) = (spinner(&ls)?, spinner(&be)?);
    sleep(Duration::from_millis(500));
    let (before, begun) = (loaded.counters.wait(slot), Instant::now());
    sleep(MEASURED);
    let (totals, seconds) = (loaded.counters.wait(slot).since(&before), begun.elapsed().as_secs_f64());

    let WaitTotals { switches, on_cpu_ns, waits, wait_ns, .. } = totals;
    let share = |ns: u64| ns as f64 / 1e9 / seconds;
    ensure!((0.35..0.65).contains(&share(on_cpu_ns)), "on the CPU for {:.2} of the time", share(on_cpu_ns));
    ensure!((0.35..0.65).contains(&share(wait_ns)), "waiting for {:.2} of the time", share(wait_ns));
    ensure!(waits > 20 && waits <= switches + 1, "{waits} waits, {switches} switches");
    let histogram = loaded.counters.wait_histogram(slot);
    let in_histogram: u64 = histogram.iter().map(|&count| u64::from(count)).sum();
    let all_waits = loaded.counters.wait(slot).waits;
    ensure!(in_histogram.abs_diff(all_waits) <= 5, "{in_histogram} in the histogram, {all_waits} waits");
    let by_be = loaded.counters.blame_ns(VICTIM, CULPRIT_BE[0]) as f64;
    let by_all: u64 =
        loaded.counters.culprits().map(|culprit| loaded.counters.blame_ns(VICTIM, culprit)).sum();
    ensure!(by_be > 0.85 * by_all as f64, "{by_be} ns of {by_all} charged to the one that ran");
    ensure!(loaded.counters.drops(Drop::NegativeWait) == 0 && loaded.counters.drops(Drop::NoClock) == 0);
    Ok(())
}

pub fn blame_of_one() -> Result<()> {
    blame(1)
}

pub fn blame_of_two() -> Result<()> {
    blame(2)
}

/// On one CPU, blame is an accounting identity: its sum over culprits is the kernel's own run-queue delay.
fn blame(culprits: usize) -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let ls = sandbox.group("ls", SHARES)?;
    let be: Vec<Group> =
        (0..culprits).map(|n| sandbox.group(&format!("be{n}"), SHARES)).collect::<Result<_>>()?;
    let mut loaded = load(WaitSource::SchedInfo, Identity::V2, 16)?;
    loaded.slots.allot(key(&ls, Hierarchy::V2)?, VICTIM, CULPRIT_LS, Duration::ZERO, |_| {})?;
    for (group, culprit) in be.iter().zip(CULPRIT_BE) {
        loaded.slots.allot(key(group, Hierarchy::V2)?, 0, culprit, Duration::ZERO, |_| {})?;
    }
    let _victim = spinner(&ls)?;
    let _culprits: Vec<Process> = be.iter().map(spinner).collect::<Result<_>>()?;
    sleep(Duration::from_millis(500));

    let counters = &loaded.counters;
    let charged =
        || counters.culprits().map(|culprit| counters.blame_ns(VICTIM, culprit)).collect::<Vec<_>>();
    let (delay_before, before) = (ls.run_delay()?, charged());
    sleep(MEASURED);
    let (delay_after, after) = (ls.run_delay()?, charged());
    let delay_ns = delay_after.saturating_sub(delay_before).as_nanos() as f64;
    let charged: Vec<f64> =
        after.iter().zip(&before).map(|(after, before)| (after - before) as f64).collect();
    let ratio = charged.iter().sum::<f64>() / delay_ns;
    let shares: Vec<f64> = charged.iter().map(|ns| ns / delay_ns).collect();
    println!("blame of {culprits}: sum over culprits / run_delay {ratio:.4}, shares {shares:.3?}");
    ensure!((0.95..=1.05).contains(&ratio), "sum over culprits / run_delay = {ratio:.4} ({shares:.3?})");
    let fair = 1.0 / culprits as f64;
    for culprit in &CULPRIT_BE[..culprits] {
        let share = shares[*culprit as usize];
        ensure!((fair * 0.7..=fair * 1.2).contains(&share), "culprit {culprit} got {share:.3} of the blame");
    }
    ensure!(shares[CULPRIT_UNATTRIBUTED as usize] < 0.05, "{shares:.3?}");
    Ok(())
}

/// A spinner alone on its CPU is seldom switched away from; its CPU time must not wait for that.
pub fn unfinished() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let be = sandbox.group("be", SHARES)?;
    let mut loaded = load(WaitSource::SchedInfo, Identity::V2, 16)?;
    let slot = loaded.slots.allot(key(&be, Hierarchy::V2)?, 0, CULPRIT_BE[0], Duration::ZERO, |_| {})?;
    let _spinner = spinner(&be)?;
    sleep(Duration::from_millis(500));
    let mut running = Running::default();
    let mut on_cpu_ns = || {
        loaded.counters.running(&mut running);
        let is_recent = running.recent().contains(&slot);
        (loaded.counters.wait(slot).on_cpu_ns + running.unfinished_ns(slot), is_recent)
    };
    let ((before, _), begun) = (on_cpu_ns(), Instant::now());
    sleep(Duration::from_secs(2));
    let ((after, is_recent), elapsed) = (on_cpu_ns(), begun.elapsed());
    let share = (after - before) as f64 / elapsed.as_nanos() as f64;
    ensure!((0.8..1.05).contains(&share) && is_recent, "{share:.3} of a CPU");
    Ok(())
}

/// One slot for two cgroups: the second counts as other, and gets the slot once the first is gone and the slot has
/// rested.
pub fn full_table() -> Result<()> {
    let sandbox = Sandbox::new("enforcer-test")?;
    let (first, second) = (sandbox.group("first", SHARES)?, sandbox.group("second", SHARES)?);
    let (first, second_key) = (key(&first, Hierarchy::V2)?, key(&second, Hierarchy::V2)?);
    let mut loaded = load(WaitSource::SchedInfo, Identity::V2, FIRST_SLOT + 1)?;
    let slot = loaded.slots.allot(first, 0, CULPRIT_LS, Duration::ZERO, |_| {})?;
    let at = Duration::from_millis;
    let refused = loaded.slots.allot(second_key, 0, CULPRIT_BE[0], at(1_000), |_| {});
    ensure!(refused == Err(Full::Slots), "{refused:?}");

    let other_before = loaded.counters.wait(SLOT_OTHER).on_cpu_ns;
    let _spinner = spinner(&second)?;
    sleep(Duration::from_secs(1));
    ensure!(loaded.counters.wait(slot).switches == 0, "the first cgroup was charged for the second");
    loaded.slots.release(first, at(2_000));
    let too_early = loaded.slots.allot(second_key, 0, CULPRIT_BE[0], at(2_500), |_| {});
    ensure!(too_early == Err(Full::Slots), "the slot has not rested: {too_early:?}");
    let again = loaded
        .slots
        .allot(second_key, 0, CULPRIT_BE[0], at(60_000), |slot| loaded.counters.clear_slot(slot))?;
    ensure!(again == slot, "{again}");
    // From its next turn on a CPU, which on a quiet machine is long in coming.
    wait::until("the second cgroup is counted in its slot", PATIENCE, wait::LOOK, || {
        Ok(loaded.counters.wait(slot).switches > 0)
    })?;
    ensure!(loaded.counters.wait(SLOT_OTHER).on_cpu_ns > other_before, "nothing was counted as other");
    Ok(())
}

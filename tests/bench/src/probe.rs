//! Extra time per context switch: two threads on one CPU hand a byte to and fro, with different programs attached in turn.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use enforcer::{
    cgroup::hierarchy::Hierarchy,
    kernel::{
        probes::{Identity, Loaded, Probes, possible_cpus},
        support::{Sizes, Support, WaitSource},
    },
};
use enforcer_rig::{interrupt, sandbox::Sandbox};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::compared;

/// A victim row and a culprit column, as for any LS group.
const VICTIM: u32 = 1;
const CULPRIT: u32 = 3;

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Round trips of the byte per measurement; each is two context switches.
    #[arg(long, default_value_t = 100_000)]
    round_trips: u32,
}

/// What is attached during a measurement.
#[derive(Clone, Copy)]
enum Attached {
    Nothing,
    Empty,
    Probe,
    /// The probe's variant for kernels without `CONFIG_SCHED_INFO`.
    ProbeByWakeups,
    RunqlatStyle,
}

const VARIANTS: [Attached; 5] =
    [Attached::Nothing, Attached::Empty, Attached::Probe, Attached::ProbeByWakeups, Attached::RunqlatStyle];

pub fn run(args: &Args) -> Result<Value> {
    let sandbox = Sandbox::new("enforcer-bench")?;
    let group = sandbox.group("ls", 1024)?;
    // The v2 directory on v2 and hybrid hosts, v1's otherwise: whichever the agent would use.
    let directory = group.directories().next().context("no cgroup hierarchy")?;
    let hierarchy = if group.v2_directory().is_some() { Hierarchy::V2 } else { Hierarchy::V1Cpu };
    let inode = fs::metadata(&directory)?.ino();
    fs::write(directory.join("cgroup.procs"), "0")?;
    let measured = measure_all(args, hierarchy, inode);
    // Out again, so that the directory can be removed.
    let parent = directory.ancestors().nth(2).context("a group lies two levels below its mount")?;
    fs::write(parent.join("cgroup.procs"), std::process::id().to_string())?;
    let [nothing, empty, probe, by_wakeups, runqlat] = measured?;
    let extra = |with: &[f64]| {
        let differences = with.iter().zip(&nothing).map(|(with, without)| with - without);
        spread(differences.collect())
    };
    let (empty, probe, by_wakeups, runqlat) =
        (extra(&empty), extra(&probe), extra(&by_wakeups), extra(&runqlat));
    Ok(json!({
        "empty_ns": empty.0,
        "probe_ns": probe.0,
        "probe_by_wakeups_ns": by_wakeups.0,
        "runqlat_style_ns": runqlat.0,
        "rounds": args.rounds,
        "switch_ns": spread(nothing).0,
        "probe_to_empty_ratio": probe.0 / empty.0,
        "ranges_ns": { "empty": empty.1, "probe": probe.1, "probe_by_wakeups": by_wakeups.1, "runqlat_style": runqlat.1 },
    }))
}

/// Median, and quartiles.
fn spread(mut values: Vec<f64>) -> (f64, [f64; 2]) {
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values[(values.len() - 1) * part / 4];
    (at(2), [at(1), at(3)])
}

fn measure_all(args: &Args, hierarchy: Hierarchy, inode: u64) -> Result<[Vec<f64>; 5]> {
    pin_to_last_cpu()?;
    let mut times = [const { Vec::new() }; 5];
    ping_pong(args.round_trips)?;
    for round in 0..args.rounds {
        interrupt::check()?;
        eprintln!("round {} of {}", round + 1, args.rounds);
        for (variant, times) in VARIANTS.into_iter().zip(&mut times) {
            let attached = attach(variant, hierarchy, inode)?;
            let per_switch =
                ping_pong(args.round_trips)?.as_nanos() as f64 / f64::from(args.round_trips) / 2.0;
            times.push(per_switch);
            attached.check(args.round_trips)?;
        }
    }
    Ok(times)
}

enum Programs {
    None,
    Compared(#[expect(dead_code, reason = "attached while held")] Ebpf),
    Probe(Box<Loaded>, u32),
}

impl Programs {
    /// A probe that saw nothing was not measured.
    fn check(&self, round_trips: u32) -> Result<()> {
        if let Self::Probe(loaded, slot) = self {
            let totals = loaded.counters.wait(*slot);
            anyhow::ensure!(
                totals.waits > u64::from(round_trips),
                "the probe saw {} waits only",
                totals.waits
            );
        }
        Ok(())
    }
}

fn attach(variant: Attached, hierarchy: Hierarchy, inode: u64) -> Result<Programs> {
    Ok(match variant {
        Attached::Nothing => Programs::None,
        Attached::Empty => Programs::Compared(compared::on_tracepoints(&[("empty", "sched_switch")])?),
        Attached::RunqlatStyle => Programs::Compared(compared::on_tracepoints(&[
            ("runqlat_wakeup", "sched_wakeup"),
            ("runqlat_wakeup_new", "sched_wakeup_new"),
            ("runqlat_switch", "sched_switch"),
        ])?),
        Attached::Probe => probe(WaitSource::SchedInfo, hierarchy, inode)?,
        Attached::ProbeByWakeups => probe(WaitSource::Wakeups, hierarchy, inode)?,
    })
}

fn probe(source: WaitSource, hierarchy: Hierarchy, inode: u64) -> Result<Programs> {
    let support = Support::of_running_kernel(source == WaitSource::Wakeups)?;
    anyhow::ensure!(support.wait_source == source, "this kernel has no sched_info");
    let sizes = Sizes { cpus: possible_cpus()?, slots: 1026, victims: 33, culprits: 67 };
    let mut loaded = Probes::load(&support, Identity::Both, sizes)?;
    let slot = loaded.slots.allot(hierarchy.key(inode), VICTIM, CULPRIT, Duration::ZERO, |_| {})?;
    Ok(Programs::Probe(Box::new(loaded), slot))
}

/// Time that so many round trips take between two threads.
fn ping_pong(round_trips: u32) -> Result<Duration> {
    let (mut from_a, mut to_b) = std::io::pipe()?;
    let (mut from_b, mut to_a) = std::io::pipe()?;
    let answering = std::thread::spawn(move || -> Result<()> {
        let mut byte = [0];
        for _ in 0..round_trips {
            from_a.read_exact(&mut byte)?;
            to_a.write_all(&byte)?;
        }
        Ok(())
    });
    let mut byte = [7];
    let begun = Instant::now();
    for _ in 0..round_trips {
        to_b.write_all(&byte)?;
        from_b.read_exact(&mut byte)?;
    }
    let time = begun.elapsed();
    answering.join().expect("the other thread does not panic")?;
    Ok(time)
}

/// Pins this thread and those that it starts to the last CPU that it may use.
fn pin_to_last_cpu() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu)).context("no CPU to run on")?;
    let mut cpus = CpuSet::new();
    cpus.set(last);
    sched_setaffinity(None, &cpus).context("cannot pin a thread to a CPU")
}

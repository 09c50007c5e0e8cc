//! From directories and counters to snapshots and the ledger.

use std::{collections::HashMap, fs::File, time::Duration};

use enforcer_ebpf::{
    histogram::{BUCKETS, Histogram},
    layout::{Drop, FIRST_CULPRIT, FIRST_VICTIM, NO_VICTIM, Objective},
};

use crate::{
    cgroup::{hierarchy::Hierarchy, tree::Directory},
    kernel::{
        counters::{Counters, RequestTotals, Running, WaitTotals},
        probes::{Probes, RequestLinks},
        slots::SlotTable,
    },
    model::{GroupId, GroupSnapshot, Snapshot},
    policy::{Class, Policy, Slo},
    report::ledger::Ledger,
    signal::{histogram::Counts, tally::Tally},
};

/// A directory that ran within this time counts as running.
const RUNNING: Duration = Duration::from_secs(5);

/// Counts for every directory of the policy.
#[derive(Debug)]
pub struct Meter {
    counters: Counters,
    slots: SlotTable,
    groups: Vec<Group>,
    directories: HashMap<Directory, Counted>,
    /// Directories that found no slot, tried again when one may be free.
    uncounted: Vec<Directory>,
    running: Running,
    taken_at: Duration,
    /// Reused: the differences of one histogram.
    fresh: Counts,
}

/// A group's place in the probes' tables, and what was read last.
#[derive(Debug)]
struct Group {
    class: Class,
    slo: Slo,
    victim: u32,
    culprit: u32,
    requests: RequestTotals,
    requests_reported: RequestTotals,
    request_histogram: Histogram,
    blame_ns: Vec<u64>,
    /// Since the last report.
    waits: WaitTotals,
    wait_counts: Counts,
}

/// A directory with a slot.
#[derive(Debug)]
struct Counted {
    slot: u32,
    totals: WaitTotals,
    /// The totals when the histogram was read last.
    reported: WaitTotals,
    histogram: Box<Histogram>,
    unfinished_ns: u64,
    ran_at: Option<Duration>,
    #[expect(dead_code, reason = "attached while held")]
    requests: Option<RequestLinks>,
}

impl Meter {
    /// Tells the probes what counts as slow for each LS group.
    pub fn new(policy: &Policy, counters: Counters, slots: SlotTable) -> Self {
        let mut next_victim = FIRST_VICTIM;
        let mut groups = Vec::new();
        for (index, group) in policy.groups.iter().enumerate() {
            let culprit = FIRST_CULPRIT + u32::try_from(index).expect("the policy limits groups");
            let victim = if group.class == Class::LS { next_victim } else { NO_VICTIM };
            if victim != NO_VICTIM {
                next_victim += 1;
                counters.set_objective(victim, objective(group.slo));
            }
            let blame = if victim == NO_VICTIM { 0 } else { FIRST_CULPRIT as usize + policy.groups.len() };
            groups.push(Group {
                class: group.class,
                slo: group.slo,
                victim,
                culprit,
                requests: RequestTotals::default(),
                requests_reported: RequestTotals::default(),
                request_histogram: [0; BUCKETS],
                blame_ns: vec![0; blame],
                waits: WaitTotals::default(),
                wait_counts: Counts::default(),
            });
        }
        Self {
            counters,
            slots,
            groups,
            directories: HashMap::new(),
            uncounted: Vec::new(),
            running: Running::default(),
            taken_at: Duration::ZERO,
            fresh: Counts::default(),
        }
    }

    /// Counts a directory from now on.
    pub fn appeared(&mut self, directory: Directory, now: Duration, probes: &mut Probes, path: &std::path::Path) {
        let group = &self.groups[directory.group.0];
        let key = directory.hierarchy.key(directory.inode);
        let allotted =
            self.slots.allot(key, group.victim, group.culprit, now, |slot| self.counters.clear_slot(slot));
        let slot = match allotted {
            Ok(slot) => slot,
            Err(full) => {
                if self.uncounted.is_empty() {
                    tracing::warn!(cgroup = %path.display(), "not counted on its own: {full}");
                }
                self.uncounted.push(directory);
                return;
            }
        };
        let serves = group.class == Class::LS && directory.hierarchy == Hierarchy::V2 && directory.is_top;
        let requests = if serves { attach(probes, path) } else { None };
        let counted = Counted {
            slot,
            totals: WaitTotals::default(),
            reported: WaitTotals::default(),
            histogram: Box::new([0; BUCKETS]),
            unfinished_ns: 0,
            ran_at: None,
            requests,
        };
        self.directories.insert(directory, counted);
    }

    /// Takes a last reading of a directory and forgets it.
    pub fn vanished(&mut self, directory: &Directory, now: Duration) {
        self.uncounted.retain(|uncounted| uncounted != directory);
        if let Some(mut counted) = self.directories.remove(directory) {
            let group = &mut self.groups[directory.group.0];
            counted.read(&self.counters, &self.running, now);
            counted.report(&self.counters, group);
            self.slots.release(directory.hierarchy.key(directory.inode), now);
        }
    }

    /// Directories that may find a slot now that others went.
    pub fn take_uncounted(&mut self) -> Vec<Directory> {
        std::mem::take(&mut self.uncounted)
    }

    /// Whether directories wait for a slot.
    pub const fn has_uncounted(&self) -> bool {
        !self.uncounted.is_empty()
    }

    /// Directories of a group in a hierarchy, and whether each ran lately.
    pub fn directories_of(&self, group: GroupId, hierarchy: Hierarchy) -> impl Iterator<Item = (&Directory, bool)> {
        let of_group = move |directory: &Directory| directory.group == group && directory.hierarchy == hierarchy;
        self.directories.iter().filter(move |(directory, _)| of_group(directory)).map(|(directory, counted)| {
            (directory, counted.ran_at.is_some_and(|at| self.taken_at < at + RUNNING))
        })
    }

    /// Directories of the same hierarchy below one.
    pub fn below(&self, top: &Directory) -> Vec<&Directory> {
        let is_below = |directory: &Directory| directory.path != top.path && directory.path.starts_with(&top.path);
        let all = self.directories_of(top.group, top.hierarchy);
        all.filter(|(directory, _)| is_below(directory)).map(|(directory, _)| directory).collect()
    }

    /// Looks at the node. `into` is reused.
    pub fn snapshot(&mut self, now: Duration, steal: Option<f64>, into: &mut Snapshot) {
        let elapsed_ns = now.saturating_sub(self.taken_at).as_nanos() as f64;
        self.taken_at = now;
        into.taken_at = now;
        into.steal = steal;
        into.groups.clear();
        into.groups.resize(self.groups.len(), GroupSnapshot::default());
        self.counters.running(&mut self.running);
        for (directory, counted) in &mut self.directories {
            let new = counted.read(&self.counters, &self.running, now);
            let group = &mut into.groups[directory.group.0];
            *group.cpu_cores.get_or_insert_default() += new.on_cpu_ns as f64 / elapsed_ns.max(1.0);
            if self.groups[directory.group.0].slo.run_queue_wait_p99.is_some() {
                *group.waits.get_or_insert_default() += Tally { total: new.waits, slow: new.slow };
            }
        }
        for (group, snapshot) in self.groups.iter_mut().zip(&mut into.groups) {
            if group.slo.request_latency_p99.is_some() {
                let totals = self.counters.requests(group.victim);
                let (total, slow) = (totals.served - group.requests.served, totals.slow - group.requests.slow);
                group.requests = totals;
                snapshot.requests = Some(Tally { total, slow });
            }
        }
    }

    /// Adds everything counted since the last report to the ledger.
    pub fn report(&mut self, ledger: &mut Ledger) {
        for (directory, counted) in &mut self.directories {
            counted.report(&self.counters, &mut self.groups[directory.group.0]);
        }
        for group in &mut ledger.groups {
            (group.cgroups, group.cgroups_uncounted) = (0, 0);
        }
        for directory in self.directories.keys() {
            ledger.groups[directory.group.0].cgroups += 1;
        }
        for directory in &self.uncounted {
            ledger.groups[directory.group.0].cgroups_uncounted += 1;
        }
        for (group, entry) in self.groups.iter_mut().zip(&mut ledger.groups) {
            let waits = std::mem::take(&mut group.waits);
            entry.cpu.add(Duration::from_nanos(waits.on_cpu_ns));
            entry.switches += waits.switches;
            if waits.waits > 0 {
                let tally = Tally { total: waits.waits, slow: waits.slow };
                entry.waits.add(&group.wait_counts, Duration::from_nanos(waits.wait_ns), tally);
                group.wait_counts.clear();
                for (culprit, (last_ns, blame)) in group.blame_ns.iter_mut().zip(&mut entry.blame).enumerate() {
                    let culprit = u32::try_from(culprit).expect("columns are few");
                    let blame_ns = self.counters.blame_ns(group.victim, culprit);
                    blame.add(Duration::from_nanos(blame_ns - *last_ns));
                    *last_ns = blame_ns;
                }
            }
            if let Some(durations) = &mut entry.requests {
                let totals = self.counters.requests(group.victim);
                let old = std::mem::replace(&mut group.requests_reported, totals);
                if totals.served != old.served {
                    let histogram = self.counters.request_histogram(group.victim);
                    self.fresh.clear();
                    self.fresh.add_difference(&histogram, &group.request_histogram);
                    group.request_histogram = histogram;
                    let tally = Tally { total: totals.served - old.served, slow: totals.slow - old.slow };
                    durations.add(&self.fresh, Duration::from_nanos(totals.latency_ns - old.latency_ns), tally);
                }
            }
        }
        ledger.drops = Drop::ALL.map(|cause| self.counters.drops(cause));
        ledger.slots_used = self.slots.used();
        ledger.slots_capacity = self.slots.capacity();
    }
}

impl Counted {
    /// What was counted since the last reading.
    fn read(&mut self, counters: &Counters, running: &Running, now: Duration) -> WaitTotals {
        let totals = counters.wait(self.slot);
        let unfinished_ns = running.unfinished_ns(self.slot);
        let mut new = totals.since(&self.totals);
        // A task that no switch interrupts is on the CPU all the same. Counted once: what was added early is taken off
        // when the switch comes.
        new.on_cpu_ns = (new.on_cpu_ns + unfinished_ns).saturating_sub(self.unfinished_ns);
        (self.totals, self.unfinished_ns) = (totals, unfinished_ns);
        if new.on_cpu_ns > 0 {
            self.ran_at = Some(now);
        }
        new
    }

    /// Hands over everything since the last report, the histogram included.
    fn report(&mut self, counters: &Counters, group: &mut Group) {
        if self.totals == self.reported {
            return;
        }
        group.waits += self.totals.since(&self.reported);
        self.reported = self.totals;
        let histogram = counters.wait_histogram(self.slot);
        group.wait_counts.add_difference(&histogram, &self.histogram);
        *self.histogram = histogram;
    }
}

fn attach(probes: &mut Probes, path: &std::path::Path) -> Option<RequestLinks> {
    if probes.request_latency_missing.is_some() {
        return None;
    }
    let attached = File::open(path).map_err(|err| err.to_string()).and_then(|directory| {
        probes.attach_request_latency(&directory).map_err(|err| err.to_string())
    });
    attached
        .inspect_err(|err| tracing::warn!(cgroup = %path.display(), "requests of this cgroup are not measured: {err}"))
        .ok()
}

fn objective(slo: Slo) -> Objective {
    let ns = |objective: Option<Duration>| {
        objective.map_or(u64::MAX, |objective| u64::try_from(objective.as_nanos()).unwrap_or(u64::MAX))
    };
    Objective { wait_ns: ns(slo.run_queue_wait_p99), latency_ns: ns(slo.request_latency_p99) }
}

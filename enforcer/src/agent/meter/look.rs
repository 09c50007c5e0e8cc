//! What the counters say of the node now.

use std::time::Duration;

use enforcer_ebpf::layout::{CULPRIT_IDLE, CULPRIT_OTHER, CULPRIT_UNATTRIBUTED, FIRST_CULPRIT};

use super::{
    Meter,
    group::{Group, Throttling},
};
use crate::{
    cgroup::{cpu_stat, hierarchy::Mounts},
    model::{Blame, Culprit, GroupId, GroupSnapshot, Learned, Signal, Snapshot},
    policy::{Class, Slo},
    signal::{average::averaged, sampling::Sampling, tally::Tally},
};

/// One of so many idle directories is looked at in a tick. One that starts to run is noticed at once all the same, by
/// the CPUs' memory of what ran last.
const IDLE_SHARE: u32 = 10;
/// Who ran while a group waited is told for so long after its last slow one.
const HOT: Duration = Duration::from_secs(1);
/// For so long after that, it is looked at every second how much the group's own quota takes; of the others, at one in so
/// many.
const THROTTLING: Duration = Duration::from_secs(10);
const CALM_LOOKS: u64 = 16;
/// What ran and used up its quota runs again after a period, which is a second at most.
const THROTTLED_FOR: Duration = Duration::from_secs(1);
/// What a directory uses is averaged over this time.
const AVERAGE: Duration = Duration::from_secs(1);
/// Cells of the blame table that are read in one tick at most, per CPU: some 0.1 ms.
const BLAME_CELLS: usize = 16 << 10;

impl Meter {
    /// Looks at the node. `into` is reused.
    pub fn snapshot(&mut self, now: Duration, steal: Option<f64>, into: &mut Snapshot) {
        let elapsed = now.saturating_sub(self.taken_at);
        self.stretch.look(elapsed, steal);
        self.taken_at = now;
        into.taken_at = now;
        into.steal = steal;
        into.groups.clear();
        into.groups.resize(self.groups.end(), GroupSnapshot::default());
        for (id, group) in self.groups.iter().filter(|(_, group)| !group.slots.is_empty()) {
            let snapshot = &mut into.groups[id.0];
            (snapshot.cpu_cores, snapshot.cpu_waits) = (Some(0.0), Some(0.0));
            snapshot.waits = group.slo.run_queue_wait_p99.map(|_| Tally::default());
        }
        self.counters.running(&mut self.running);
        self.ticks = self.ticks.wrapping_add(1);
        let mut due = std::mem::take(&mut self.active);
        for &slot in self.running.recent() {
            if let Some(Some(counted)) = self.counted.get_mut(slot as usize) {
                counted.ran_at = Some(now);
                due.push(slot);
            }
        }
        let slots = u32::try_from(self.counted.len()).expect("the policy limits cgroups");
        due.extend((self.ticks % IDLE_SHARE..slots).step_by(IDLE_SHARE as usize));
        due.sort_unstable();
        due.dedup();
        due.retain(|slot| self.look_at(*slot, now, elapsed, into));
        self.active = due;
        for (id, group) in self.groups.iter_mut() {
            let snapshot = &mut into.groups[id.0];
            let mut counted = group.slots.iter().filter_map(|slot| self.counted[*slot as usize].as_ref());
            if group.measures_requests(self.shed) && counted.any(|counted| counted.requests.is_some()) {
                let new = group.look_at_requests(&self.counters);
                snapshot.requests = group.slo.request_latency_p99.map(|_| new);
                snapshot.in_flight = Some(group.look.in_flight);
                snapshot.one_in = (group.sampling != Sampling::ALL).then(|| group.sampling.factor());
            }
            let is_slow = |tally: Option<Tally>| tally.is_some_and(|tally| tally.slow > 0);
            if is_slow(snapshot.requests) || is_slow(snapshot.waits) {
                group.hot_until = now + HOT;
            }
            for (signal, rate) in Signal::ALL.into_iter().zip(&mut group.rates) {
                rate.heard += signal.of(snapshot).map_or(0, |tally| tally.total);
            }
            snapshot.throttled = group.throttling.share;
            snapshot.levers = group.levers;
            let stalled = Duration::from_nanos(std::mem::take(&mut group.stalled_ns));
            if let (Some(stalls), Some(_)) = (&mut group.stalls, snapshot.cpu_cores) {
                let tally = stalls.observe(elapsed, stalled);
                group.stall_tally += tally;
                snapshot.memory_stalls = Some(tally);
            }
            snapshot.learned = learned(group.slo);
        }
        self.tell_blame(now, into);
    }

    /// Adds what a slot counted since it was looked at last. Whether its directory runs.
    fn look_at(&mut self, slot: u32, now: Duration, elapsed: Duration, into: &mut Snapshot) -> bool {
        let Some(Some(counted)) = self.counted.get_mut(slot as usize) else { return false };
        let id = counted.directory.group;
        let (group, snapshot) = (&mut self.groups[id], &mut into.groups[id.0]);
        let new = counted.read(&self.counters, &self.running, now);
        let elapsed_ns = (elapsed.as_nanos() as f64).max(1.0);
        let cores = new.on_cpu_ns as f64 / elapsed_ns;
        counted.cores = averaged(counted.cores, cores, elapsed, AVERAGE);
        *snapshot.cpu_cores.get_or_insert_default() += cores;
        *snapshot.cpu_waits.get_or_insert_default() += new.wait_ns as f64 / elapsed_ns;
        if group.class == Class::BE {
            self.stretch.be_ran(Duration::from_nanos(new.on_cpu_ns));
        }
        if let Some(waits) = &mut snapshot.waits {
            *waits += Tally { total: new.waits, slow: new.slow };
        }
        // Who does not run does not stall, or has not come out of it.
        if group.stalls.is_some() && new.on_cpu_ns > 0 {
            group.stalled_ns += counted.read_memory(&self.counters).stalled_ns();
        }
        counted.runs(now)
    }

    /// Who ran while the groups in trouble waited. Rows are as long as there are groups, so only so many are read.
    fn tell_blame(&mut self, now: Duration, into: &mut Snapshot) {
        into.blame.clear();
        let culprits = self.counters.culprits();
        let rows = (BLAME_CELLS / culprits.len()).max(1);
        let is_hot =
            |(id, group): (GroupId, &Group)| (group.is_victim() && now < group.hot_until).then_some(id);
        let mut hot: Vec<GroupId> = self.groups.iter().filter_map(is_hot).collect();
        if hot.len() > rows {
            // In turns, where not all can be asked.
            let first = self.ticks as usize % hot.len();
            hot.rotate_left(first);
        }
        for id in hot.into_iter().take(rows) {
            let group = &mut self.groups[id];
            for column in culprits.clone() {
                let ns = self.counters.blame_ns(group.victim, column);
                if ns == 0 {
                    continue;
                }
                let new_ns = ns.saturating_sub(group.asked_ns.insert(column, ns).unwrap_or_default());
                if new_ns > 0 {
                    let culprit = if self.ended.contains(&column) { Culprit::Other } else { culprit(column) };
                    into.blame.push(Blame { victim: id, culprit, waited: Duration::from_nanos(new_ns) });
                }
            }
        }
    }

    /// Looks how much the own quotas of groups in trouble take from them. Once a second, and less often at the others: the
    /// files are many, and trouble must not find that nothing is known.
    pub fn look_at_throttling(&mut self, now: Duration, mounts: &Mounts) {
        let hierarchy = mounts.cpu_hierarchy();
        let mut due = Vec::new();
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.class == Class::LS) {
            let ran_at = group.slots.iter().filter_map(|slot| self.counted[*slot as usize].as_ref()?.ran_at);
            let ran_at = ran_at.max();
            if let Throttling { looked: Some((at, _)), share } = &mut group.throttling
                && ran_at.is_none_or(|ran_at| ran_at + THROTTLED_FOR < *at)
            {
                // It cannot have been, and the file would say so.
                (*at, *share) = (now, Some(0.0));
                continue;
            }
            let is_calm = now >= group.hot_until + THROTTLING && group.throttling.looked.is_some();
            let is_its_turn = (now.as_secs() + id.0 as u64).is_multiple_of(CALM_LOOKS);
            if !is_calm || is_its_turn {
                due.push(id);
            }
        }
        for id in due {
            let directories = self.directories_of(id, hierarchy);
            let times = directories.filter_map(|directory| {
                cpu_stat::throttled(hierarchy, &mounts.point(hierarchy).join(&directory.path))
            });
            let time: Duration = times.sum();
            let throttling = &mut self.groups[id].throttling;
            let last = throttling.looked.replace((now, time)).filter(|(at, _)| *at < now);
            throttling.share = match last {
                Some((at, before)) => {
                    Some(time.saturating_sub(before).div_duration_f64(now.saturating_sub(at)).min(1.0))
                }
                None => time.is_zero().then_some(0.0),
            };
        }
    }
}

/// Who a culprit column stands for.
const fn culprit(column: u32) -> Culprit {
    match column {
        CULPRIT_OTHER => Culprit::Other,
        CULPRIT_IDLE => Culprit::Idle,
        CULPRIT_UNATTRIBUTED => Culprit::Unattributed,
        group => Culprit::Group(GroupId((group - FIRST_CULPRIT) as usize)),
    }
}

/// What decisions cannot know from the policy.
fn learned(slo: Slo) -> Learned {
    Learned {
        request_latency: slo.request_latency_auto.and(slo.request_latency_p99),
        run_queue_wait: slo.run_queue_wait_auto.and(slo.run_queue_wait_p99),
        memory_stall: slo.memory_stall_auto.and(slo.memory_stall),
    }
}

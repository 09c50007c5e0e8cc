//! From directories and counters to snapshots and the ledger.

mod counted;
mod group;
mod look;
mod report;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    time::Duration,
};

use enforcer_ebpf::layout::{FIRST_CULPRIT, NO_VICTIM};

use self::{counted::Counted, group::Group};
use super::lessons::Lesson;
use crate::{
    cgroup::{hierarchy::Hierarchy, tree::Directory},
    clock,
    decision::shed::Level,
    kernel::{
        counters::{Counters, Running},
        probes::{MemoryProbes, Probes},
        slots::SlotTable,
    },
    model::{GroupId, Levers, Signal},
    places::Places,
    policy::{self, Class},
    signal::{histogram::Counts, learned::Stretch, memory::StallCounter, tally::ALLOWED},
};

/// Full tables are logged this often; the metric tells how many cgroups it concerns.
const COMPLAINTS: Duration = Duration::from_mins(1);
/// How long a victim row rests.
const REST: Duration = Duration::from_secs(1);

/// Counts for every directory of the policy.
#[derive(Debug)]
pub struct Meter {
    counters: Counters,
    slots: SlotTable,
    groups: Places<Group>,
    /// Who has each victim row, or since when nobody has.
    victims: BTreeMap<u32, Row>,
    /// Culprit columns of groups that went: they keep what they hold until a new group comes.
    ended: BTreeSet<u32>,
    requests_are_measured: bool,
    memory_probes: bool,
    /// By slot.
    counted: Vec<Option<Counted>>,
    /// Slots of those that run.
    active: Vec<u32>,
    places: HashMap<Directory, u32>,
    /// Directories that found no slot, tried again when one may be free.
    uncounted: Vec<Directory>,
    complain_at: Duration,
    running: Running,
    taken_at: Duration,
    ticks: u32,
    /// Since the last report.
    stretch: Stretch,
    /// Reused: the differences of one histogram.
    fresh: Counts,
    shed: Level,
}

/// A victim row. One that comes back rests, because a CPU that idled since may still write there.
#[derive(Clone, Copy, Debug)]
enum Row {
    Taken,
    FreeSince(Duration),
}

/// Groups that may not be told apart: their requests are not measured, nor who runs while they wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmeasured {
    #[error("all {0} rows for groups with an objective are taken: raise limits.victims in the policy")]
    NoRow(usize),
}

impl Meter {
    /// Counts nothing yet.
    pub fn new(
        counters: Counters,
        slots: SlotTable,
        requests_are_measured: bool,
        memory: &MemoryProbes,
    ) -> Self {
        let victims = counters.victims().map(|row| (row, Row::FreeSince(Duration::ZERO))).collect();
        Self {
            counters,
            slots,
            groups: Places::default(),
            victims,
            ended: BTreeSet::new(),
            requests_are_measured,
            memory_probes: memory.any_stalls(),
            counted: Vec::new(),
            active: Vec::new(),
            places: HashMap::new(),
            uncounted: Vec::new(),
            complain_at: Duration::ZERO,
            running: Running::default(),
            taken_at: Duration::ZERO,
            ticks: 0,
            stretch: Stretch::default(),
            fresh: Counts::default(),
            shed: Level::Nothing,
        }
    }

    /// A group came, or what is promised to it has changed. Tells the probes what counts as slow. One that was promised
    /// nothing and now is has to come anew.
    ///
    /// # Errors
    /// Where it counts, but its requests and blame do not.
    pub fn join(&mut self, id: GroupId, policy: &policy::Group, now: Duration) -> Result<(), Unmeasured> {
        if let Some(known) = self.groups.get_mut(id) {
            if known.slo != policy.slo {
                known.slo = policy.slo;
                known.tell_objective(&self.counters);
                self.count_stalls(id);
            }
            return Ok(());
        }
        let column = u32::try_from(id.0).expect("the agent limits groups");
        let culprit = FIRST_CULPRIT + column;
        self.counters.clear_culprit(culprit);
        self.ended.remove(&culprit);
        for victim in self.groups.values_mut() {
            victim.blame_ns.remove(&culprit);
            victim.asked_ns.remove(&culprit);
        }
        let (victim, result) = if policy.is_victim() { self.row(now) } else { (NO_VICTIM, Ok(())) };
        let mut group = Group::new(policy, victim, culprit);
        if group.is_victim() {
            group.serves = self.requests_are_measured;
            self.counters.clear_victim(victim);
            group.counts_from_ns = clock::monotonic_ns();
            group.tell_objective(&self.counters);
        }
        self.groups.put(id, group);
        self.count_stalls(id);
        result
    }

    /// Takes a victim row, if there is one.
    fn row(&mut self, now: Duration) -> (u32, Result<(), Unmeasured>) {
        let count = self.victims.len();
        let rested =
            |row: &Row| matches!(row, Row::FreeSince(since) if since.is_zero() || *since + REST <= now);
        match self.victims.iter_mut().find(|(_, row)| rested(row)) {
            Some((victim, row)) => {
                *row = Row::Taken;
                (*victim, Ok(()))
            }
            None => (NO_VICTIM, Err(Unmeasured::NoRow(count))),
        }
    }

    /// A group went, after all its directories.
    pub fn leave(&mut self, id: GroupId, now: Duration) {
        let Some(group) = self.groups.take(id) else { return };
        if let Some(row) = self.victims.get_mut(&group.victim) {
            *row = Row::FreeSince(now);
        }
        self.ended.insert(group.culprit);
    }

    /// From now on this counts as slow, or as too much.
    pub fn set_objective(&mut self, Lesson { group: id, signal, promise }: Lesson) {
        let group = &mut self.groups[id];
        group.slo.set(signal, promise);
        group.tell_objective(&self.counters);
        if signal == Signal::MemoryStall {
            self.count_stalls(id);
        }
    }

    /// Counts stalls in the units of the objective, where something is promised and measured.
    fn count_stalls(&mut self, id: GroupId) {
        let group = &mut self.groups[id];
        let promised = group.slo.memory_stall.filter(|_| self.memory_probes);
        let counter = promised.map(|promised| StallCounter::new(promised, ALLOWED));
        if std::mem::replace(&mut group.stalls, counter).is_some() {
            return;
        }
        // What came before the promise does not count.
        for slot in &group.slots {
            if let Some(counted) = &mut self.counted[*slot as usize] {
                _ = counted.read_memory(&self.counters);
            }
        }
    }

    /// Counts a directory from now on. `path` is its absolute one.
    pub fn appeared(&mut self, directory: Directory, now: Duration, probes: &mut Probes, path: &Path) {
        let group = &self.groups[directory.group];
        if group.class == Class::BE {
            // What it did before it had a slot is not known.
            self.stretch.doubt();
        }
        let key = directory.hierarchy.key(directory.inode);
        let allotted =
            self.slots.allot(key, group.victim, group.culprit, now, |slot| self.counters.clear_slot(slot));
        let slot = match allotted {
            Ok(slot) => slot,
            Err(full) => {
                if self.complain_at <= now {
                    self.complain_at = now + COMPLAINTS;
                    tracing::warn!(cgroup = %path.display(), "not counted on its own: {full}");
                }
                self.uncounted.push(directory);
                return;
            }
        };
        let serves = group.answers_in(&directory) && group.measures_requests(self.shed);
        let requests = if serves { requests::attach(probes, path, group.is_sparse) } else { None };
        let index = slot as usize;
        if self.counted.len() <= index {
            self.counted.resize_with(index + 1, || None);
        }
        self.places.insert(directory.clone(), slot);
        if self.counted[index].is_none() {
            self.groups[directory.group].slots.push(slot);
        }
        self.counted[index] = Some(Counted::new(directory, slot, requests));
    }

    /// Takes a last reading of a directory and forgets it.
    pub fn vanished(&mut self, directory: &Directory, now: Duration) {
        self.uncounted.retain(|uncounted| uncounted != directory);
        let Some(slot) = self.places.remove(directory) else { return };
        let mut counted = self.counted[slot as usize].take().expect("BUG: a place without a directory");
        let last = counted.read(&self.counters, &self.running, now);
        let group = &mut self.groups[directory.group];
        if group.class == Class::BE {
            self.stretch.be_ran(Duration::from_nanos(last.on_cpu_ns));
        }
        counted.report(&self.counters, group);
        group.slots.retain(|of_group| *of_group != slot);
        self.slots.release(directory.hierarchy.key(directory.inode), now);
    }

    /// Directories that may find a slot now that others went.
    pub fn take_uncounted(&mut self) -> Vec<Directory> {
        std::mem::take(&mut self.uncounted)
    }

    /// Whether directories wait for a slot.
    pub const fn has_uncounted(&self) -> bool {
        !self.uncounted.is_empty()
    }

    fn counted_of(&self, group: GroupId) -> impl Iterator<Item = &Counted> {
        let slots = self.groups.get(group).map_or(&[][..], |group| &group.slots);
        slots.iter().filter_map(|slot| self.counted[*slot as usize].as_ref())
    }

    /// Directories of a group in a hierarchy.
    fn directories_of(&self, group: GroupId, hierarchy: Hierarchy) -> impl Iterator<Item = &Directory> {
        let all = self.counted_of(group).map(|counted| &counted.directory);
        all.filter(move |directory| directory.hierarchy == hierarchy)
    }

    /// Those that limits go to: the ones that match the policy themselves.
    pub fn tops_of(&self, group: GroupId, hierarchy: Hierarchy) -> impl Iterator<Item = &Directory> {
        self.directories_of(group, hierarchy).filter(|directory| directory.is_top)
    }

    /// CPUs that each of several of them uses, with everything below, in the same order. A task is counted in one hierarchy
    /// only, where its directory has the same path.
    pub fn cores_by_top(&self, group: GroupId, hierarchy: Hierarchy) -> Vec<f64> {
        let count = self.tops_of(group, hierarchy).count();
        if count < 2 {
            return vec![0.0; count];
        }
        let places: HashMap<&Path, usize> = self
            .tops_of(group, hierarchy)
            .enumerate()
            .map(|(place, top)| (top.path.as_path(), place))
            .collect();
        let mut cores = vec![0.0; count];
        for counted in self.counted_of(group).filter(|counted| counted.cores > 0.0) {
            let place = counted.directory.path.ancestors().find_map(|path| places.get(path));
            if let Some(place) = place {
                cores[*place] += counted.cores;
            }
        }
        cores
    }

    /// Those of all groups, in every hierarchy.
    pub fn tops(&self) -> impl Iterator<Item = &Directory> {
        self.counted.iter().flatten().map(|counted| &counted.directory).filter(|directory| directory.is_top)
    }

    /// Whether BE ran lately.
    pub fn be_runs(&self) -> bool {
        self.running().any(|(directory, _)| self.groups[directory.group].class == Class::BE)
    }

    /// Directories that ran lately, and when.
    pub fn running(&self) -> impl Iterator<Item = (&Directory, Option<Duration>)> {
        let active = self.active.iter().filter_map(|slot| self.counted[*slot as usize].as_ref());
        active.map(|counted| (&counted.directory, counted.ran_at))
    }

    /// Directories of the same hierarchy below one.
    pub fn below(&self, top: &Directory) -> Vec<&Directory> {
        let is_below =
            |directory: &Directory| directory.path != top.path && directory.path.starts_with(&top.path);
        let all = self.directories_of(top.group, top.hierarchy);
        all.filter(|directory| is_below(directory)).collect()
    }

    /// Notes what a BE group can be held back with.
    pub fn set_levers(&mut self, group: GroupId, levers: Levers) {
        self.groups[group].levers = levers;
    }
}

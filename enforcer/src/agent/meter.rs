//! From directories and counters to snapshots and the ledger.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::Path,
    time::Duration,
};

use enforcer_ebpf::{
    histogram::{BUCKETS, Histogram},
    layout::{CULPRIT_IDLE, CULPRIT_OTHER, CULPRIT_UNATTRIBUTED, Drop, FIRST_CULPRIT, NO_VICTIM, Objective},
};

use super::lessons::{Lesson, Lessons};
use crate::{
    cgroup::{
        cpu_stat,
        hierarchy::{Hierarchy, Mounts},
        tree::Directory,
    },
    clock,
    decision::shed::Level,
    kernel::{
        counters::{Counters, MemoryTotals, RequestTotals, Running, WaitTotals},
        probes::{MemoryProbes, Probes, RequestLinks},
        slots::SlotTable,
    },
    model::{Blame, Culprit, GroupId, GroupSnapshot, Learned, Levers, Signal, Snapshot},
    places::Places,
    policy::{self, Class, Slo},
    report::ledger::{Ledger, Waiting},
    signal::{
        answers::{Answers, Totals},
        histogram::Counts,
        in_flight::{Ages, Look},
        learned::Stretch,
        memory::StallCounter,
        pace,
        sampling::Sampling,
        tally::{ALLOWED, Tally},
    },
};

/// A directory that ran within this time counts as running and is looked at in every tick.
const RUNNING: Duration = Duration::from_secs(5);
/// Full tables are logged this often; the metric tells how many cgroups it concerns.
const COMPLAINTS: Duration = Duration::from_mins(1);
/// One of so many idle directories is looked at in a tick. One that starts to run is noticed at once all the same, by
/// the CPUs' memory of what ran last.
const IDLE_SHARE: u32 = 10;

/// How long a victim row rests.
const REST: Duration = Duration::from_secs(1);
/// Who ran while a group waited is told for so long after its last slow one.
const HOT: Duration = Duration::from_secs(1);
/// For so long after that, it is looked at every second how much the group's own quota takes; of the others, at one in so
/// many.
const THROTTLING: Duration = Duration::from_secs(10);
const CALM_LOOKS: u64 = 16;
/// What ran and used up its quota runs again after a period, which is a second at most.
const THROTTLED_FOR: Duration = Duration::from_secs(1);
/// Cells of the blame table that are read in one tick at most, per CPU: some 0.1 ms.
const BLAME_CELLS: usize = 16 << 10;

/// Counts for every directory of the policy.
#[derive(Debug)]
pub struct Meter {
    counters: Counters,
    slots: SlotTable,
    groups: Places<Group>,
    /// Who has each victim row, or since when nobody has.
    victims: BTreeMap<u32, Row>,
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

/// A group's place in the probes' tables, and what was read last.
#[derive(Debug)]
struct Group {
    class: Class,
    slo: Slo,
    victim: u32,
    culprit: u32,
    /// Of its directories.
    slots: Vec<u32>,
    /// Requests are measured.
    serves: bool,
    /// `None`: no request was ever in flight.
    ages: Option<Box<Ages>>,
    answers: Answers,
    look: Look,
    requests_reported: RequestTotals,
    request_histogram: LastHistogram,
    /// Per culprit column, as far as it is known to be more than zero.
    blame_ns: HashMap<u32, u64>,
    /// Since the last report.
    waits: WaitTotals,
    wait_counts: Counts,
    /// Had slow ones until a moment ago: who ran meanwhile is told.
    hot_until: Duration,
    /// Blame when it was told last, or at the last report.
    asked_ns: HashMap<u32, u64>,
    throttling: Throttling,
    levers: Levers,
    rates: [Rate; Signal::ALL.len()],
    sampling: Sampling,
    /// Programs are attached that look for sparse requests only.
    is_sparse: bool,
    /// Since the last report.
    memory: MemoryTotals,
    /// Where something is promised and measured.
    stalls: Option<StallCounter>,
    /// In this tick.
    stalled_ns: u64,
}

/// What the group's own quota took.
#[derive(Debug, Default)]
struct Throttling {
    looked: Option<(Duration, Duration)>,
    share: Option<f64>,
}

/// How often a signal is heard.
#[derive(Debug, Default)]
struct Rate {
    heard: u64,
    hz: f64,
}

/// What a histogram of the probes held at the last report; room is taken when it first held anything.
#[derive(Debug, Default)]
struct LastHistogram(Option<Box<Histogram>>);

impl LastHistogram {
    /// Adds what came since then to `counts`.
    fn add_new_to(&mut self, counts: &mut Counts, now: &Histogram) {
        let last = self.0.get_or_insert_with(|| Box::new([0; BUCKETS]));
        counts.add_difference(now, last);
        last.copy_from_slice(now);
    }
}

/// A directory with a slot.
#[derive(Debug)]
struct Counted {
    directory: Directory,
    slot: u32,
    totals: WaitTotals,
    /// The totals when the histogram was read last.
    reported: WaitTotals,
    histogram: LastHistogram,
    memory: MemoryTotals,
    memory_reported: MemoryTotals,
    unfinished_ns: u64,
    ran_at: Option<Duration>,
    requests: Option<RequestLinks>,
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
    pub fn join(&mut self, id: GroupId, group: &policy::Group, now: Duration) -> Result<(), Unmeasured> {
        let stalls = group.slo.memory_stall.filter(|_| self.memory_probes);
        let stalls = stalls.map(|promised| StallCounter::new(promised, ALLOWED));
        if let Some(known) = self.groups.get_mut(id) {
            if known.slo != group.slo {
                (known.slo, known.stalls) = (group.slo, stalls);
                self.counters.set_objective(known.victim, objective(known.slo, known.sampling));
            }
            return Ok(());
        }
        let column = u32::try_from(id.0).expect("the agent limits groups");
        let culprit = FIRST_CULPRIT + column;
        self.counters.clear_culprit(culprit);
        let (victim, result) = if group.is_victim() { self.row(now) } else { (NO_VICTIM, Ok(())) };
        if victim != NO_VICTIM {
            self.counters.clear_victim(victim);
            self.counters.set_objective(victim, objective(group.slo, Sampling::ALL));
        }
        self.groups.put(
            id,
            Group {
                class: group.class,
                slo: group.slo,
                victim,
                culprit,
                slots: Vec::new(),
                serves: victim != NO_VICTIM && self.requests_are_measured,
                ages: None,
                answers: Answers::default(),
                look: Look::default(),
                requests_reported: RequestTotals::default(),
                request_histogram: LastHistogram::default(),
                blame_ns: HashMap::new(),
                waits: WaitTotals::default(),
                wait_counts: Counts::default(),
                hot_until: Duration::ZERO,
                asked_ns: HashMap::new(),
                throttling: Throttling::default(),
                levers: Levers::default(),
                rates: Default::default(),
                sampling: Sampling::ALL,
                is_sparse: false,
                memory: MemoryTotals::default(),
                stalls,
                stalled_ns: 0,
            },
        );
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
        for victim in self.groups.values_mut() {
            victim.blame_ns.remove(&group.culprit);
            victim.asked_ns.remove(&group.culprit);
        }
    }

    /// From now on this counts as slow.
    pub fn set_objective(&mut self, Lesson { group, signal, threshold }: Lesson) {
        let group = &mut self.groups[group];
        group.slo.set(signal, threshold);
        self.counters.set_objective(group.victim, objective(group.slo, group.sampling));
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
        let requests = if serves { attach(probes, path, group.is_sparse) } else { None };
        let index = slot as usize;
        if self.counted.len() <= index {
            self.counted.resize_with(index + 1, || None);
        }
        self.places.insert(directory.clone(), slot);
        if self.counted[index].is_none() {
            self.groups[directory.group].slots.push(slot);
        }
        self.counted[index] = Some(Counted {
            directory,
            slot,
            totals: WaitTotals::default(),
            reported: WaitTotals::default(),
            histogram: LastHistogram::default(),
            memory: MemoryTotals::default(),
            memory_reported: MemoryTotals::default(),
            unfinished_ns: 0,
            ran_at: None,
            requests,
        });
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

    /// Leaves out so much, and takes up again what is no longer left out. How many directories' requests that concerns.
    pub fn shed(&mut self, level: Level, probes: &mut Probes, mounts: &Mounts) -> usize {
        self.shed = level;
        let mut changed = 0;
        for counted in self.counted.iter_mut().flatten() {
            let (group, directory) = (&self.groups[counted.directory.group], &counted.directory);
            let wanted = group.answers_in(directory) && group.measures_requests(level);
            if wanted == counted.requests.is_some() {
                continue;
            }
            counted.requests = if wanted {
                attach(probes, &mounts.point(directory.hierarchy).join(&directory.path), group.is_sparse)
            } else {
                None
            };
            changed += 1;
        }
        changed
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
    fn directories_of(
        &self,
        group: GroupId,
        hierarchy: Hierarchy,
    ) -> impl Iterator<Item = (&Directory, bool)> {
        let slots = self.groups.get(group).map_or(&[][..], |group| &group.slots);
        let all = slots.iter().filter_map(|slot| self.counted[*slot as usize].as_ref());
        all.filter(move |counted| counted.directory.hierarchy == hierarchy)
            .map(|counted| (&counted.directory, counted.runs(self.taken_at)))
    }

    /// Those that limits go to: the ones that match the policy themselves.
    pub fn tops_of(&self, group: GroupId, hierarchy: Hierarchy) -> impl Iterator<Item = (&Directory, bool)> {
        self.directories_of(group, hierarchy).filter(|(directory, _)| directory.is_top)
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
        all.filter(|(directory, _)| is_below(directory)).map(|(directory, _)| directory).collect()
    }

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
        due.extend(self.running.recent());
        for &slot in self.running.recent() {
            if let Some(Some(counted)) = self.counted.get_mut(slot as usize) {
                counted.ran_at = Some(now);
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
            if group.serves && group.measures_requests(self.shed) {
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
                snapshot.memory_stalls = Some(stalls.observe(elapsed, stalled));
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
        *snapshot.cpu_cores.get_or_insert_default() += new.on_cpu_ns as f64 / elapsed_ns;
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
        let is_hot = |(id, group): (GroupId, &Group)| {
            (group.victim != NO_VICTIM && now < group.hot_until).then_some(id)
        };
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
                let new_ns = ns - group.asked_ns.insert(column, ns).unwrap_or_default();
                if new_ns > 0 {
                    let waited = Duration::from_nanos(new_ns);
                    into.blame.push(Blame { victim: id, culprit: culprit(column), waited });
                }
            }
        }
    }

    /// Notes what a BE group can be held back with.
    pub fn set_levers(&mut self, group: GroupId, levers: Levers) {
        self.groups[group].levers = levers;
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
            let times = directories.filter_map(|(directory, _)| {
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

    /// Tells the probes how thick slow ones may come, from how often each signal was heard since the last call.
    fn set_paces(&mut self, elapsed: Duration) {
        for group in self.groups.values_mut().filter(|group| group.victim != NO_VICTIM) {
            for (signal, rate) in Signal::ALL.into_iter().zip(&mut group.rates) {
                let hz = std::mem::take(&mut rate.heard) as f64 / elapsed.as_secs_f64().max(1e-3);
                rate.hz = f64::midpoint(rate.hz, hz);
                self.counters.set_pace(group.victim, signal, pace::pace(rate.hz));
            }
        }
    }

    /// Looks at more or fewer of the requests of groups whose rate changed, by what was heard until the last report.
    pub fn sample_requests(&mut self, probes: &mut Probes, mounts: &Mounts) {
        let mut changed = Vec::new();
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.serves) {
            let rate_hz =
                group.rates[Signal::RequestLatency as usize].hz * f64::from(group.sampling.factor());
            let before = group.sampling;
            group.sampling = before.at(rate_hz);
            // Requests that began before they became sparse are looked for until the next report; and all are before they
            // cease to be.
            let is_sparse = group.sampling != Sampling::ALL && before != Sampling::ALL;
            let is_other = is_sparse != std::mem::replace(&mut group.is_sparse, is_sparse);
            if is_other || group.sampling != before {
                changed.push((id, is_other));
            }
        }
        for (id, is_other) in changed {
            if is_other {
                self.count_requests(id, probes, mounts);
            }
            let group = &self.groups[id];
            let one_in = group.sampling.factor();
            tracing::debug!(victim = group.victim, one_in, "another part of the requests is looked at");
            self.counters.set_objective(group.victim, objective(group.slo, group.sampling));
        }
        if self.groups.values().all(|group| !group.is_sparse) {
            self.counters.nothing_pending();
        }
    }

    /// Puts the programs for all requests of a group, or for a part of them, in place.
    fn count_requests(&mut self, id: GroupId, probes: &mut Probes, mounts: &Mounts) {
        let (is_sparse, slots) = (self.groups[id].is_sparse, &self.groups[id].slots);
        for slot in slots {
            let Some(counted) = &mut self.counted[*slot as usize] else { continue };
            let path = mounts.point(counted.directory.hierarchy).join(&counted.directory.path);
            if let Some(links) = &mut counted.requests
                && let Ok(directory) = File::open(&path)
                && let Err(err) = probes.count_requests(links, &directory, is_sparse)
            {
                tracing::debug!(cgroup = %path.display(), %err, "the program that was there goes on");
            }
        }
    }

    /// Ends the stretch at hand. How long it is, if it says what the node is like without BE.
    fn listen(&mut self, lessons: &mut Lessons, unwatched: usize) -> Duration {
        let mut stretch = std::mem::take(&mut self.stretch);
        if unwatched > 0 {
            // BE may run for a while in a directory that no rescan has found yet.
            stretch.doubt();
        }
        if self.uncounted.iter().any(|directory| self.groups[directory.group].class == Class::BE) {
            stretch.doubt();
        }
        if lessons.begin(&stretch) { stretch.elapsed() } else { Duration::ZERO }
    }

    /// Adds everything counted since the last report, `elapsed` ago, to the ledger, and lets `lessons` hear it.
    pub fn report(&mut self, ledger: &mut Ledger, elapsed: Duration, lessons: &mut Lessons) {
        self.set_paces(elapsed);
        ledger.quiet += self.listen(lessons, ledger.unwatched);
        let mut learned = Vec::new();
        for group in ledger.groups.values_mut() {
            (group.cgroups, group.cgroups_uncounted) = (0, 0);
        }
        for counted in self.counted.iter_mut().flatten() {
            let group = counted.directory.group;
            counted.report(&self.counters, &mut self.groups[group]);
            ledger.groups[group].cgroups += 1;
        }
        for directory in &self.uncounted {
            ledger.groups[directory.group].cgroups_uncounted += 1;
        }
        for (id, group) in self.groups.iter_mut() {
            let entry = &mut ledger.groups[id];
            entry.levers = group.levers;
            entry.slo = group.slo;
            entry.put_requests_by(group.victim != NO_VICTIM && !group.measures_requests(self.shed));
            let waits = std::mem::take(&mut group.waits);
            entry.cpu.add_ns(waits.on_cpu_ns);
            entry.switches += waits.switches;
            if waits.waits > 0 {
                let tally = Tally { total: waits.waits, slow: waits.slow };
                entry.waits.add(&group.wait_counts, Duration::from_nanos(waits.wait_ns), tally);
                entry.spend(self.taken_at, Signal::RunQueueWait, tally);
                learned.extend(lessons.hear(id, Signal::RunQueueWait, &group.wait_counts));
                group.wait_counts.clear();
            }
            entry.memory.add(&std::mem::take(&mut group.memory));
            if waits.waits > 0 && group.victim != NO_VICTIM {
                for culprit in self.counters.culprits() {
                    let blame_ns = self.counters.blame_ns(group.victim, culprit);
                    if blame_ns > 0 {
                        let last_ns = group.blame_ns.insert(culprit, blame_ns).unwrap_or_default();
                        if self.taken_at >= group.hot_until {
                            group.asked_ns.insert(culprit, blame_ns);
                        }
                        entry.blame.entry(culprit).or_default().add_ns(blame_ns - last_ns);
                    }
                }
            }
            if let Some(durations) = &mut entry.requests
                && group.victim != NO_VICTIM
            {
                let totals = self.counters.requests(group.victim);
                let old = std::mem::replace(&mut group.requests_reported, totals);
                let Look { in_flight, written_off, .. } = group.look;
                let factor = u64::from(group.sampling.factor());
                entry.one_in = group.sampling.factor();
                entry.waiting = Some(Waiting { in_flight, unanswered: totals.unanswered, written_off });
                // Those that ended unanswered and slow have a tally and no latency.
                if totals.served != old.served || totals.unanswered_slow != old.unanswered_slow {
                    self.fresh.clear();
                    let histogram = self.counters.request_histogram(group.victim);
                    group.request_histogram.add_new_to(&mut self.fresh, &histogram);
                    let lost = totals.unanswered_slow - old.unanswered_slow;
                    // Each stands for those beside it that were not looked at.
                    let tally = Tally {
                        total: (totals.served - old.served + lost) * factor,
                        slow: (totals.slow - old.slow + lost) * factor,
                    };
                    let latency_ns = (totals.latency_ns - old.latency_ns) * factor;
                    durations.add(&self.fresh.times(factor), Duration::from_nanos(latency_ns), tally);
                    entry.spend(self.taken_at, Signal::RequestLatency, tally);
                    learned.extend(lessons.hear(id, Signal::RequestLatency, &self.fresh));
                }
            }
        }
        for lesson in learned {
            self.set_objective(lesson);
        }
        ledger.drops = Drop::ALL.map(|cause| self.counters.drops(cause));
        ledger.slots_used = self.slots.used();
        ledger.slots_capacity = self.slots.capacity();
    }
}

impl Group {
    /// What the group's requests say since the last look, and what is in flight.
    fn look_at_requests(&mut self, counters: &Counters) -> Tally {
        // In this order, so that no age is overstated, and what ends meanwhile is missed for once rather than counted
        // twice.
        let totals = counters.requests(self.victim);
        let now_ns = clock::monotonic_ns();
        self.look = if totals.any_in_flight() || self.ages.as_ref().is_some_and(|ages| ages.is_busy()) {
            let ages = self.ages.get_or_insert_default();
            ages.look(&counters.in_flight(self.victim), now_ns, self.slo.request_latency_p99)
        } else {
            self.ages.as_ref().map_or_else(Look::default, |ages| ages.look_at_nothing())
        };
        let RequestTotals { served, slow, unanswered_slow, .. } = totals;
        self.answers.observe(Totals { served, slow, unanswered_slow }, &self.look, now_ns)
    }

    /// Whether requests to a directory of its are answered there.
    fn answers_in(&self, directory: &Directory) -> bool {
        self.victim != NO_VICTIM && directory.hierarchy == Hierarchy::V2 && directory.is_top
    }

    /// Whether its requests are measured although so much is left out.
    fn measures_requests(&self, shed: Level) -> bool {
        let is_promised =
            || self.slo.request_latency_p99.is_some() || self.slo.auto(Signal::RequestLatency).is_some();
        match shed {
            Level::Nothing | Level::Looks => true,
            Level::UnpromisedRequests => is_promised(),
            Level::Requests => false,
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

impl Counted {
    fn runs(&self, now: Duration) -> bool {
        self.ran_at.is_some_and(|at| now < at + RUNNING)
    }

    /// What was counted since the last reading.
    fn read(&mut self, counters: &Counters, running: &Running, now: Duration) -> WaitTotals {
        let unfinished_ns = running.unfinished_ns(self.slot);
        if counters.switches(self.slot) == self.totals.switches && unfinished_ns == self.unfinished_ns {
            return WaitTotals::default();
        }
        let totals = counters.wait(self.slot);
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

    /// What want of memory did to it since the last reading.
    fn read_memory(&mut self, counters: &Counters) -> MemoryTotals {
        let totals = counters.memory(self.slot);
        totals.since(&std::mem::replace(&mut self.memory, totals))
    }

    /// Hands over everything since the last report, the histogram included.
    fn report(&mut self, counters: &Counters, group: &mut Group) {
        if self.totals == self.reported {
            return;
        }
        group.waits += self.totals.since(&self.reported);
        self.reported = self.totals;
        self.histogram.add_new_to(&mut group.wait_counts, &counters.wait_histogram(self.slot));
        let memory = counters.memory(self.slot);
        group.memory += memory.since(&std::mem::replace(&mut self.memory_reported, memory));
    }
}

fn attach(probes: &mut Probes, path: &Path, sparse: bool) -> Option<RequestLinks> {
    if probes.request_latency_missing.is_some() {
        return None;
    }
    let attached = File::open(path).map_err(|err| err.to_string()).and_then(|directory| {
        let links = probes.attach_request_latency(&directory, sparse);
        links.map_err(|err| err.to_string())
    });
    attached
        .inspect_err(|err| {
            // One that went meanwhile serves nothing.
            if path.is_dir() {
                tracing::warn!(cgroup = %path.display(), "requests of this cgroup are not measured: {err}");
            }
        })
        .ok()
}

/// What decisions cannot know from the policy.
fn learned(slo: Slo) -> Learned {
    let of = |signal| slo.auto(signal).and_then(|_| slo.threshold(signal));
    Learned { request_latency: of(Signal::RequestLatency), run_queue_wait: of(Signal::RunQueueWait) }
}

fn objective(slo: Slo, sampling: Sampling) -> Objective {
    let ns = |objective: Option<Duration>| {
        objective.map_or(u64::MAX, |objective| u64::try_from(objective.as_nanos()).unwrap_or(u64::MAX))
    };
    let (wait_ns, latency_ns) = (ns(slo.run_queue_wait_p99), ns(slo.request_latency_p99));
    Objective { wait_ns, latency_ns, sampled: sampling.mask() }
}

//! Memory of the groups, by the files of their directories, and who is likely to use what a victim lacks.

use std::{collections::HashMap, ffi::OsString, path::Path, time::Duration};

use enforcer_ebpf::layout::StallCause;

use super::{
    lessons::{Lesson, Lessons},
    meter::Meter,
};
use crate::{
    cgroup::{
        hierarchy::Mounts,
        memory::{MemoryFiles, Reading},
        tree::Directory,
    },
    kernel::probes::MemoryProbes,
    model::{GroupId, Snapshot},
    places::Places,
    policy::{self, Class},
    report::ledger::{GroupLedger, Ledger, Time},
    signal::memory::{Intake, Stalled, likely_user},
};

/// Files are looked at so often while an LS group stalls for want of memory.
const LOOK: Duration = Duration::from_secs(1);
/// At other times only every so many looks.
const CALM_LOOKS: u32 = 10;
/// What did not run since it was looked at cannot have grown.
const IDLE_LOOKS: u32 = 60;

/// What the files say.
#[derive(Debug)]
pub struct MemoryMeter {
    /// The probes do not count them.
    reads_oom_kills: bool,
    groups: Places<Group>,
    /// The directories that limits would go to, by path: a group may have the same path in two hierarchies. By its bytes, for
    /// hashing a path as such takes it apart, and there may be a thousand.
    directories: HashMap<OsString, Looked>,
    look_at: Duration,
    looks: u32,
    /// An LS group stalled since the last report but one.
    hurry: bool,
}

#[derive(Debug, Default)]
struct Group {
    is_ls: bool,
    bytes: Option<u64>,
    unreclaimable_bytes: Option<u64>,
    intake: Intake,
    /// Since the last report.
    new: Difference,
    /// Stalled time by cause, when it was looked at last.
    stalled: [Duration; StallCause::COUNT],
    /// Who is likely to use what it stalled for since.
    user: Option<GroupId>,
}

/// What totals grew by. `None`: unknown.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    reclaimed_bytes: Option<u64>,
    refaulted_bytes: Option<u64>,
    limit_hits: Option<u64>,
    oom_kills: Option<u64>,
    stalled_some: Option<Duration>,
}

#[derive(Debug)]
struct Looked {
    group: GroupId,
    inode: u64,
    files: MemoryFiles,
    reading: Reading,
    taken_at: Duration,
    /// Something at or below it.
    ran_at: Option<Duration>,
    /// Per second, between the last two looks.
    intake: Intake,
    /// In which of the looks it has its turn where it has not one in each.
    turn: u32,
    generation: u32,
}

impl MemoryMeter {
    /// Knows no groups yet.
    pub fn new(probes: &MemoryProbes) -> Self {
        Self {
            reads_oom_kills: probes.oom_kills_missing.is_some(),
            groups: Places::default(),
            directories: HashMap::new(),
            look_at: Duration::ZERO,
            looks: 0,
            hurry: false,
        }
    }

    /// A group came.
    pub fn join(&mut self, id: GroupId, group: &policy::Group) {
        if self.groups.get(id).is_none() {
            self.groups.put(id, Group { is_ls: group.class == Class::LS, ..Group::default() });
        }
    }

    /// A group went.
    pub fn leave(&mut self, id: GroupId) {
        self.groups.take(id);
        self.directories.retain(|_, looked| looked.group != id);
        // Whoever lacked memory for it does so no longer.
        for group in self.groups.values_mut() {
            group.user = group.user.filter(|user| *user != id);
        }
    }

    /// Reads the files whose turn it is. Called as often as one likes.
    pub fn look(&mut self, now: Duration, meter: &Meter, mounts: &Mounts) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        self.looks = self.looks.wrapping_add(1);
        // A pod's tasks are in its containers' directories.
        for (directory, ran_at) in meter.running() {
            for path in directory.path.ancestors() {
                if let Some(looked) = self.directories.get_mut(path.as_os_str()) {
                    looked.ran_at = looked.ran_at.max(ran_at);
                }
            }
        }
        for directory in meter.tops() {
            self.look_at_directory(now, directory, mounts);
        }
        self.directories.retain(|_, looked| looked.generation == self.looks);
        for group in self.groups.values_mut() {
            (group.bytes, group.unreclaimable_bytes, group.intake) = (None, None, Intake::default());
        }
        for looked in self.directories.values() {
            let group = &mut self.groups[looked.group];
            add(&mut group.bytes, looked.reading.bytes);
            add(&mut group.unreclaimable_bytes, looked.reading.unreclaimable_bytes);
            let Intake { grown_bytes, reclaimed_bytes, refaulted_bytes, limit_hits } = looked.intake;
            add(&mut group.intake.grown_bytes, grown_bytes);
            add(&mut group.intake.reclaimed_bytes, reclaimed_bytes);
            add(&mut group.intake.refaulted_bytes, refaulted_bytes);
            add(&mut group.intake.limit_hits, limit_hits);
        }
    }

    fn look_at_directory(&mut self, now: Duration, directory: &Directory, mounts: &Mounts) {
        let &Directory { ref path, inode, group, .. } = directory;
        let (looks, hurry, oom_kills) = (self.looks, self.hurry, self.reads_oom_kills);
        if let Some(looked) = self.directories.get_mut(path.as_os_str()) {
            if looked.generation == looks {
                // Seen in the other hierarchy.
                return;
            }
            looked.generation = looks;
            if looked.inode == inode {
                let ran = looked.ran_at >= Some(looked.taken_at);
                let every = match (ran, hurry) {
                    (true, true) => 1,
                    (true, false) => CALM_LOOKS,
                    (false, _) => IDLE_LOOKS,
                };
                if looks % every == looked.turn % every {
                    self.groups[group].new.add(looked.look(now, oom_kills));
                }
                return;
            }
        }
        let files = MemoryFiles::of(mounts, path);
        let reading = files.read(oom_kills);
        let turn = u32::try_from(inode % u64::from(IDLE_LOOKS)).unwrap_or_default();
        let intake = Intake::default();
        let (taken_at, ran_at, generation) = (now, None, looks);
        let looked = Looked { group, inode, files, reading, taken_at, ran_at, intake, turn, generation };
        self.directories.insert(path.clone().into_os_string(), looked);
        // Known from now on, and nothing yet.
        self.groups[group].new.add(Difference::between(&reading, &reading));
    }

    /// What a directory of a group used when it was looked at last, by its path below the mount point. `None`: not known.
    pub fn bytes_of(&self, path: &Path) -> Option<u64> {
        self.directories.get(path.as_os_str())?.reading.bytes
    }

    /// What a group uses and the kernel cannot take away, when it was looked at last. `None`: not known.
    pub fn unreclaimable_bytes(&self, id: GroupId) -> Option<u64> {
        self.groups.get(id)?.unreclaimable_bytes
    }

    /// Adds what decisions need.
    pub fn fill(&self, snapshot: &mut Snapshot) {
        for (id, group) in self.groups.iter() {
            let snapshot = &mut snapshot.groups[id.0];
            snapshot.memory_bytes = group.bytes;
            snapshot.memory_user = group.user;
        }
    }

    /// Adds everything since the last report to the ledger, which holds the stalls already, and lets `lessons` hear of them.
    /// What it learned.
    pub fn report(&mut self, ledger: &mut Ledger, lessons: &mut Lessons) -> Vec<Lesson> {
        let intakes: Vec<(GroupId, Intake)> =
            self.groups.iter().map(|(id, group)| (id, group.intake)).collect();
        // BE that hardly runs may still be in the way by what it takes, or would take if it were let.
        let is_held = |group: &GroupLedger| group.restraint.is_some_and(|it| it.memory_high.is_some());
        let be_is_held = ledger.groups.values().any(is_held);
        let mut learned = Vec::new();
        self.hurry = false;
        for (id, group) in self.groups.iter_mut() {
            let GroupLedger { memory, cgroups, .. } = &mut ledger.groups[id];
            let new = std::mem::take(&mut group.new);
            memory.bytes = group.bytes;
            add(&mut memory.reclaimed_bytes, new.reclaimed_bytes);
            add(&mut memory.refaulted_bytes, new.refaulted_bytes);
            add(&mut memory.psi_some, new.stalled_some);
            if !memory.oom_kills_by_probe {
                add(&mut memory.oom_kills, new.oom_kills);
            }
            if !group.is_ls {
                continue;
            }
            let stalled = StallCause::ALL.map(|cause| memory.stalled(cause));
            let before = std::mem::replace(&mut group.stalled, stalled);
            let since = |cause: StallCause| stalled[cause as usize].saturating_sub(before[cause as usize]);
            let stalled = Stalled {
                at_a_limit: since(StallCause::MemcgReclaim),
                node_short: since(StallCause::DirectReclaim) + since(StallCause::Compaction),
            };
            let all = stalled.at_a_limit + stalled.node_short;
            let user = likely_user(id, stalled, &intakes);
            group.user = user;
            if !all.is_zero() {
                self.hurry = true;
                memory.blame.entry(user).or_default().add(all);
            }
            let is_measured = memory.stalled_by(Time::total).is_some() && *cgroups > 0;
            let is_be = |user: GroupId| ledger.groups.get(user).is_some_and(|user| user.class == Class::BE);
            if is_measured && !be_is_held && !user.is_some_and(is_be) {
                learned.extend(lessons.hear_stalls(id, all));
            }
        }
        learned
    }
}

impl Looked {
    /// What came since the last look.
    fn look(&mut self, now: Duration, oom_kills: bool) -> Difference {
        let old = std::mem::replace(&mut self.reading, self.files.read(oom_kills));
        let new = Difference::between(&old, &self.reading);
        let seconds = now.saturating_sub(std::mem::replace(&mut self.taken_at, now)).as_secs_f64().max(1e-3);
        let rate = |total: Option<u64>| total.map(|total| total as f64 / seconds);
        let grown = self.reading.bytes.zip(old.bytes).map(|(new, old)| (new as f64 - old as f64) / seconds);
        self.intake = Intake {
            grown_bytes: grown,
            reclaimed_bytes: rate(new.reclaimed_bytes),
            refaulted_bytes: rate(new.refaulted_bytes),
            limit_hits: rate(new.limit_hits),
        };
        new
    }
}

impl Difference {
    fn between(old: &Reading, new: &Reading) -> Self {
        let count = |old: Option<u64>, new: Option<u64>| Some(new?.saturating_sub(old?));
        Self {
            reclaimed_bytes: count(old.reclaimed_bytes, new.reclaimed_bytes),
            refaulted_bytes: count(old.refaulted_bytes, new.refaulted_bytes),
            limit_hits: count(old.limit_hits, new.limit_hits),
            oom_kills: count(old.oom_kills, new.oom_kills),
            stalled_some: new.stalled_some.zip(old.stalled_some).map(|(new, old)| new.saturating_sub(old)),
        }
    }

    fn add(&mut self, more: Self) {
        add(&mut self.reclaimed_bytes, more.reclaimed_bytes);
        add(&mut self.refaulted_bytes, more.refaulted_bytes);
        add(&mut self.limit_hits, more.limit_hits);
        add(&mut self.oom_kills, more.oom_kills);
        add(&mut self.stalled_some, more.stalled_some);
    }
}

/// The sum of what is known.
fn add<T: std::ops::AddAssign>(sum: &mut Option<T>, more: Option<T>) {
    match (sum.as_mut(), more) {
        (Some(sum), Some(more)) => *sum += more,
        (None, Some(more)) => *sum = Some(more),
        (_, None) => {}
    }
}

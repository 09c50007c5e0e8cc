//! Makes the node match the plan, and undoes it all.
//!
//! The owner's value of a file is in the [`journal`] before enforcer first writes to it, and is put back when the plan
//! no longer names the directory, on exit, and at the next start after a crash. What somebody else wrote meanwhile is
//! their wish: it becomes the owner's value.

pub mod journal;
pub mod lease;
pub mod split;
mod writer;

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use self::{
    journal::{Entry, Journal},
    writer::{Progress, Writer},
};
use crate::{
    cgroup::{
        hierarchy::{Hierarchy, Mounts},
        setting::{self, Knob, Setting, SettingFile},
        tree::Directory,
    },
    model::CpuLimit,
};

/// How often files are compared with what was written.
const COMPARE: Duration = Duration::from_secs(1);
/// A directory that somebody else keeps writing is left to them for so long: two agents must not fight.
const YIELD: Duration = Duration::from_secs(10);

/// At the end, writes that the kernel is busy with are waited for so long: it takes a value first and reclaims afterwards,
/// so the owner's value, written meanwhile, stays.
const END: Duration = Duration::from_secs(1);

/// A file that could not be read or written; the others were.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cgroup(#[from] setting::Error),
    #[error(transparent)]
    Journal(#[from] journal::Error),
}

/// What one call did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Settings written, restorations included.
    pub writes: u64,
    /// Files in which somebody else's value was found.
    pub foreign: u64,
    pub errors: Vec<Error>,
}

/// What is to be in force in one directory.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    pub directory: Cow<'a, Directory>,
    pub setting: Setting,
    /// Directories below, whose own quotas a v1 kernel does not allow to be higher.
    pub below: Vec<&'a Directory>,
}

/// The only writer.
#[derive(Debug)]
pub struct Actuator {
    mounts: Mounts,
    journal: Journal,
    /// Parents before their children, which is the order of restoring: a v1 parent's quota must be raised first.
    held: BTreeMap<(Knob, PathBuf), Held>,
    compare_at: Duration,
    shadow: bool,
    writer: Writer,
    standing: Standing,
    /// Standing settings are looked at again when this is due, or when the others change.
    standing_at: Duration,
    /// What was wanted beside them last.
    planned: BTreeSet<(Knob, PathBuf)>,
}

/// What is to be in force until it is replaced, whatever the plan says beside it.
pub type Standing = BTreeMap<(Knob, PathBuf), (Directory, Setting)>;

#[derive(Debug)]
struct Held {
    file: SettingFile,
    entry: Entry,
    yielded_until: Duration,
    /// A write that may block, handed over.
    pending: Option<Progress>,
}

/// What a call makes be in force.
type Wanted<'a> = BTreeMap<(Knob, PathBuf), (&'a Directory, Setting)>;

impl Actuator {
    /// Holds nothing yet. In shadow mode nothing is ever written.
    pub fn new(mounts: Mounts, journal: Journal, shadow: bool) -> Self {
        let writer = Writer::default();
        Self {
            mounts,
            journal,
            held: BTreeMap::new(),
            compare_at: Duration::ZERO,
            shadow,
            writer,
            standing: Standing::new(),
            standing_at: Duration::ZERO,
            planned: BTreeSet::new(),
        }
    }

    /// Directories whose owner's value is replaced now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Replaces all standing settings.
    pub fn stand(&mut self, standing: Standing) {
        if standing != self.standing {
            (self.standing, self.standing_at) = (standing, Duration::ZERO);
        }
    }

    /// Makes exactly these settings be in force beside the standing ones, and where both want something, the tighter one.
    pub fn apply(&mut self, now: Duration, targets: &[Target<'_>]) -> Applied {
        let mut applied = Applied::default();
        if self.shadow {
            return applied;
        }
        self.collect(&mut applied);
        if now >= self.compare_at {
            self.compare_at = now + COMPARE;
            self.compare(now, &mut applied);
        }
        let mut wanted = Wanted::new();
        for target in targets {
            let key = (target.setting.knob(), self.path_of(&target.directory));
            wanted.insert(key, (&target.directory, target.setting.clone()));
            if target.directory.hierarchy == Hierarchy::V1Cpu && target.setting.knob() == Knob::Quota {
                self.want_no_quota_below(target, &mut wanted);
            }
        }
        let standing = std::mem::take(&mut self.standing);
        self.add_standing(now, &standing, &mut wanted);
        self.release_all_but(|key| wanted.contains_key(key) || standing.contains_key(key), &mut applied);
        let mut due = self.intend(now, wanted, &mut applied);
        // Children before their parents: a v1 parent's quota is lowered after its children's, and raised before them.
        due.sort_by_cached_key(|key| {
            let raises = self.held.get(key).is_some_and(|held| held.entry.raises_quota());
            if raises {
                (0, Some(key.1.clone()), None)
            } else {
                (1, None, Some((key.0, Reverse(key.1.clone()))))
            }
        });
        self.standing = standing;
        if self.save(&mut applied) {
            for key in due {
                self.write(&key, &mut applied);
            }
        }
        applied
    }

    /// There may be many standing settings, and they seldom change: most of the time it is enough that they are held.
    fn add_standing<'a>(&mut self, now: Duration, standing: &'a Standing, wanted: &mut Wanted<'a>) {
        let is_same = self.planned.iter().eq(wanted.keys());
        let is_due = !is_same || now >= self.standing_at;
        let mut quotas = Vec::new();
        if is_due {
            let limits = wanted.iter().filter(|((knob, _), (directory, _))| {
                *knob == Knob::Quota && directory.hierarchy == Hierarchy::V1Cpu
            });
            quotas.extend(limits.map(|((_, path), _)| path.clone()));
            self.planned = wanted.keys().cloned().collect();
            self.standing_at = now + COMPARE;
        }
        for (key, (directory, setting)) in standing {
            if let Some((_, planned)) = wanted.get_mut(key) {
                *planned = planned.clone().within(setting);
            } else if is_due {
                let path = &key.1;
                let lies_below = |quota: &PathBuf| path != quota && path.starts_with(quota);
                // The quota above does its work; v1 allows no higher one below.
                let setting = match setting {
                    Setting::Quota(limit) if quotas.iter().any(lies_below) => {
                        Setting::Quota(CpuLimit { quota_us: None, ..*limit })
                    }
                    setting => setting.clone(),
                };
                wanted.insert(key.clone(), (directory, setting));
            }
        }
    }

    /// The journal knows of it.
    fn write(&mut self, key: &(Knob, PathBuf), applied: &mut Applied) {
        let held = self.held.get_mut(key).expect("BUG: due and not held");
        if held.entry.ours.may_block() {
            let file = SettingFile::new(held.entry.hierarchy, key.1.clone(), key.0);
            held.pending = self.writer.submit(file, held.entry.ours.clone());
            if held.pending.is_none() {
                held.entry.take_back();
            }
            return;
        }
        let written = held.file.write(&held.entry.ours);
        self.note(key, written, applied);
    }

    fn note(&mut self, key: &(Knob, PathBuf), written: Result<(), setting::Error>, applied: &mut Applied) {
        match written {
            Ok(()) => applied.writes += 1,
            Err(setting::Error::Gone(_)) => drop(self.held.remove(key)),
            Err(err) => {
                // Tried again at the next tick.
                if let Some(held) = self.held.get_mut(key) {
                    held.entry.take_back();
                }
                applied.errors.push(err.into());
            }
        }
    }

    /// Takes note of the writes that were handed over and are done.
    fn collect(&mut self, applied: &mut Applied) {
        let outcome = |held: &mut Held| {
            let outcome = held.pending.as_ref()?.take_outcome()?;
            held.pending = None;
            Some(outcome)
        };
        let all = self.held.iter_mut();
        let done: Vec<_> = all.filter_map(|(key, held)| Some((key.clone(), outcome(held)?))).collect();
        for (key, written) in done {
            self.note(&key, written, applied);
        }
    }

    /// Puts every owner's value back and waits until that is certain, or for a second.
    pub fn finish(&mut self) -> Applied {
        let until = Instant::now() + END;
        let mut applied = self.release_all();
        while self.held.values().any(|held| held.pending.is_some()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            let more = self.release_all();
            applied.writes += more.writes;
            applied.errors.extend(more.errors);
        }
        applied
    }

    /// Puts every owner's value back.
    pub fn release_all(&mut self) -> Applied {
        let mut applied = Applied::default();
        self.collect(&mut applied);
        self.standing_at = Duration::ZERO;
        self.release_all_but(|_| false, &mut applied);
        self.save(&mut applied);
        applied
    }

    /// Quotas below a v1 directory that is to be lowered are lifted; the directory's own does their work.
    fn want_no_quota_below<'a>(&self, target: &Target<'a>, wanted: &mut Wanted<'a>) {
        for &below in &target.below {
            let path = self.path_of(below);
            let owners = match self.held.get(&(Knob::Quota, path.clone())) {
                Some(held) => Ok(held.entry.owner.clone()),
                None => SettingFile::new(below.hierarchy, path.clone(), Knob::Quota).read(),
            };
            if let Ok(Setting::Quota(owners)) = owners
                && owners.quota_us.is_some()
            {
                let none = Setting::Quota(CpuLimit { quota_us: None, ..owners });
                wanted.insert((Knob::Quota, path), (below, none));
            }
        }
    }

    /// Notes what is about to be written, in that order. What is in force already, or left to somebody else for a while,
    /// is left out.
    fn intend(&mut self, now: Duration, wanted: Wanted<'_>, applied: &mut Applied) -> Vec<(Knob, PathBuf)> {
        let mut due = Vec::new();
        for (key, (directory, setting)) in wanted {
            if !self.held.contains_key(&key) {
                match hold(directory, &key) {
                    Ok(held) => drop(self.held.insert(key.clone(), held)),
                    Err(setting::Error::Gone(_)) => continue,
                    Err(err) => {
                        applied.errors.push(err.into());
                        continue;
                    }
                }
            }
            let held = self.held.get_mut(&key).expect("BUG: just inserted");
            let setting = setting.within(&held.entry.owner);
            if held.entry.ours != setting && held.pending.is_none() && now >= held.yielded_until {
                held.entry.intend(setting);
                due.push(key);
            }
        }
        due
    }

    fn release_all_but(&mut self, is_wanted: impl Fn(&(Knob, PathBuf)) -> bool, applied: &mut Applied) {
        self.held.retain(|key, held| {
            if is_wanted(key) {
                return true;
            }
            // What waits its turn is called off. What is being written right now is overwritten, and looked at again
            // when it is done, in case it came second.
            held.pending.take_if(|pending| pending.call_off());
            match held.entry.restore(&held.file) {
                Ok(written) => {
                    applied.writes += u64::from(written);
                    if held.pending.is_some() && held.entry.ours != held.entry.owner {
                        held.entry.intend(held.entry.owner.clone());
                    }
                    held.pending.is_some()
                }
                Err(setting::Error::Gone(_)) => false,
                Err(err) => {
                    // Kept, and tried again at the next tick and at the next start.
                    applied.errors.push(err.into());
                    true
                }
            }
        });
    }

    /// Looks whether the files still hold what was written.
    fn compare(&mut self, now: Duration, applied: &mut Applied) {
        self.held.retain(|(_, path), held| match held.file.read() {
            Ok(found) if held.entry.is_in_force(&found) => true,
            // It may be written right now.
            Ok(found) if held.pending.is_some() && held.entry.knows(&found) => true,
            Ok(found) => {
                tracing::info!(cgroup = %path.display(), %found, ours = %held.entry.ours, "somebody else set this");
                applied.foreign += 1;
                held.entry.adopt(&found);
                held.yielded_until = now + YIELD;
                true
            }
            Err(setting::Error::Gone(_)) => false,
            Err(err) => {
                applied.errors.push(err.into());
                true
            }
        });
    }

    /// Whether everything that is held is on disk.
    fn save(&mut self, applied: &mut Applied) -> bool {
        let saved = self.journal.save(self.held.values().map(|held| &held.entry));
        saved.map_err(|err| applied.errors.push(err.into())).is_ok()
    }

    fn path_of(&self, directory: &Directory) -> PathBuf {
        self.mounts.point(directory.hierarchy).join(&directory.path)
    }
}

/// Remembers the owner's value.
fn hold(directory: &Directory, (knob, path): &(Knob, PathBuf)) -> Result<Held, setting::Error> {
    let file = SettingFile::new(directory.hierarchy, path.clone(), *knob);
    let owner = file.read()?;
    let entry = Entry::new(directory.hierarchy, path.clone(), directory.inode, owner);
    Ok(Held { file, entry, yielded_until: Duration::ZERO, pending: None })
}

impl Drop for Actuator {
    /// The last resort, for a panic on the loop; a normal exit has released everything by then.
    fn drop(&mut self) {
        for err in self.finish().errors {
            tracing::error!(%err, "a limit could not be restored; `enforcer restore` tries again");
        }
    }
}

#[cfg(test)]
mod tests;

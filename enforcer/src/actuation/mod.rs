//! Makes the node match the plan, and undoes it all.
//!
//! The owner's value of a file is in the [`journal`] before enforcer first writes to it, and is put back when the plan
//! no longer names the directory, on exit, and at the next start after a crash. What somebody else wrote meanwhile is
//! their wish: it becomes the owner's value.

pub mod journal;
pub mod key;
pub mod lease;
pub mod split;
mod writer;

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::{
    journal::{Entry, Journal},
    key::Key,
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

/// How often files are compared with what was written: those that the plan names, and some of the others.
const COMPARE: Duration = Duration::from_secs(1);
/// Of the others so many, or a tenth if there are more of them.
const COMPARED: usize = 100;
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
    held: BTreeMap<Key, Held>,
    compare_at: Duration,
    /// The last one that was compared; the next ones' turn is next.
    compared: Option<Key>,
    shadow: bool,
    writer: Writer,
    standing: Standing,
    /// Standing settings that are new: the others are held already.
    fresh: BTreeSet<Key>,
    /// All standing settings are looked at again when this is due, or when the others change.
    standing_at: Duration,
    /// What was wanted beside them last.
    planned: BTreeSet<Key>,
    /// Something is held that nobody wants any more.
    has_loose_ends: bool,
}

/// What is to be in force until it is replaced, whatever the plan says beside it.
pub type Standing = BTreeMap<Key, (Directory, Setting)>;

#[derive(Debug)]
struct Held {
    file: SettingFile,
    entry: Entry,
    yielded_until: Duration,
    /// A write that may block, handed over.
    pending: Option<Progress>,
}

/// What a call makes be in force.
type Wanted<'a> = BTreeMap<Key, (&'a Directory, Setting)>;

impl Actuator {
    /// Holds nothing yet. In shadow mode nothing is ever written.
    pub fn new(mounts: Mounts, journal: Journal, shadow: bool) -> Self {
        let writer = Writer::default();
        Self {
            mounts,
            journal,
            held: BTreeMap::new(),
            compare_at: Duration::ZERO,
            compared: None,
            shadow,
            writer,
            standing: Standing::new(),
            fresh: BTreeSet::new(),
            standing_at: Duration::ZERO,
            planned: BTreeSet::new(),
            has_loose_ends: false,
        }
    }

    /// Directories whose owner's value is replaced now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// From now on these are standing settings, and `gone`, as far as they are not among them, no longer are.
    pub fn stand(&mut self, gone: &[Key], new: Standing) {
        // Nothing would ever take them in, and they would pile up.
        if self.shadow {
            return;
        }
        for key in gone.iter().filter(|key| !new.contains_key(key)) {
            self.has_loose_ends |= self.standing.remove(key).is_some();
        }
        self.fresh.extend(new.keys().cloned());
        self.standing.extend(new);
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
            let key = Key::new(target.setting.knob(), self.path_of(&target.directory));
            wanted.insert(key, (&target.directory, target.setting.clone()));
            if target.directory.hierarchy == Hierarchy::V1Cpu && target.setting.knob() == Knob::Quota {
                self.want_no_quota_below(target, &mut wanted);
            }
        }
        let standing = std::mem::take(&mut self.standing);
        let is_other_plan = self.add_standing(now, &standing, &mut wanted);
        if is_other_plan || self.has_loose_ends {
            let is_wanted = |key: &Key| standing.contains_key(key) || wanted.contains_key(key);
            self.has_loose_ends = !self.release_all_but(is_wanted, &mut applied);
        }
        let mut due = self.intend(now, wanted, &mut applied);
        // Children before their parents: a v1 parent's quota is lowered after its children's, and raised before them.
        due.sort_by_cached_key(|key| {
            let raises = self.held.get(key).is_some_and(|held| held.entry.raises_quota());
            if raises {
                (0, Some(key.path.clone()), None)
            } else {
                (1, None, Some((key.knob, Reverse(key.path.clone()))))
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

    /// There may be thousands of standing settings, and they seldom change: most of the time it is enough that they are
    /// held. Whether other settings are planned than before.
    fn add_standing<'a>(&mut self, now: Duration, standing: &'a Standing, wanted: &mut Wanted<'a>) -> bool {
        let is_other_plan = !self.planned.iter().eq(wanted.keys());
        let quotas: Vec<PathBuf> = wanted
            .iter()
            .filter(|(key, (directory, _))| {
                key.knob == Knob::Quota && directory.hierarchy == Hierarchy::V1Cpu
            })
            .map(|(key, _)| key.path.clone())
            .collect();
        if is_other_plan {
            self.planned = wanted.keys().cloned().collect();
        }
        for (key, (_, planned)) in wanted.iter_mut() {
            if let Some((_, setting)) = standing.get(key) {
                *planned = planned.clone().within(setting);
            }
        }
        let fresh = std::mem::take(&mut self.fresh);
        if is_other_plan || now >= self.standing_at {
            self.standing_at = now + COMPARE;
            for (key, value) in standing {
                want_standing(key, value, &quotas, wanted);
            }
        } else {
            for key in &fresh {
                if let Some((key, value)) = standing.get_key_value(key) {
                    want_standing(key, value, &quotas, wanted);
                }
            }
        }
        is_other_plan
    }

    /// The journal knows of it.
    fn write(&mut self, key: &Key, applied: &mut Applied) {
        let held = self.held.get_mut(key).expect("BUG: due and not held");
        if held.entry.ours.may_block() {
            let file = SettingFile::new(held.entry.hierarchy, key.path.clone(), key.knob);
            held.pending = self.writer.submit(file, held.entry.ours.clone());
            if held.pending.is_none() {
                held.entry.take_back();
            }
            return;
        }
        let written = held.file.write(&held.entry.ours);
        self.note(key, written, applied);
    }

    fn note(&mut self, key: &Key, written: Result<(), setting::Error>, applied: &mut Applied) {
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
        self.has_loose_ends = !self.release_all_but(|_| false, &mut applied);
        self.save(&mut applied);
        applied
    }

    /// Quotas below a v1 directory that is to be lowered are lifted; the directory's own does their work.
    fn want_no_quota_below<'a>(&self, target: &Target<'a>, wanted: &mut Wanted<'a>) {
        for &below in &target.below {
            let path = self.path_of(below);
            let key = Key::new(Knob::Quota, path.clone());
            let owners = match self.held.get(&key) {
                Some(held) => Ok(held.entry.owner.clone()),
                None => SettingFile::new(below.hierarchy, path, Knob::Quota).read(),
            };
            if let Ok(Setting::Quota(owners)) = owners
                && owners.quota_us.is_some()
            {
                let none = Setting::Quota(CpuLimit { quota_us: None, ..owners });
                wanted.insert(key, (below, none));
            }
        }
    }

    /// Notes what is about to be written, in that order. What is in force already, or left to somebody else for a while,
    /// is left out.
    fn intend(&mut self, now: Duration, wanted: Wanted<'_>, applied: &mut Applied) -> Vec<Key> {
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

    /// Whether all that is not wanted is released; the rest is tried again at the next call.
    fn release_all_but(&mut self, is_wanted: impl Fn(&Key) -> bool, applied: &mut Applied) -> bool {
        let mut left = 0;
        self.held.retain(|key, held| {
            if is_wanted(key) {
                return true;
            }
            // What waits its turn is called off. What is being written right now is overwritten, and looked at again
            // when it is done, in case it came second.
            held.pending.take_if(|pending| pending.call_off());
            let stays = match held.entry.restore(&held.file) {
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
            };
            left += usize::from(stays);
            stays
        });
        left == 0
    }

    /// Looks whether the files still hold what was written.
    fn compare(&mut self, now: Duration, applied: &mut Applied) {
        let some = COMPARED.max(self.held.len() / 10);
        let after = self.compared.take().map_or(Bound::Unbounded, Bound::Excluded);
        // A set: what is planned may have its turn as well.
        let mut keys: BTreeSet<Key> =
            self.held.range((after, Bound::Unbounded)).take(some).map(|(key, _)| key.clone()).collect();
        // From the beginning, once the end is reached.
        self.compared = keys.last().filter(|_| keys.len() == some).cloned();
        keys.extend(self.planned.iter().cloned());
        for key in keys {
            if let Some(held) = self.held.get_mut(&key)
                && !held.compare(&key.path, now, applied)
            {
                self.held.remove(&key);
            }
        }
    }

    /// Whether everything that is held is on disk.
    fn save(&mut self, applied: &mut Applied) -> bool {
        let saved = self.journal.save(&self.held);
        saved.map_err(|err| applied.errors.push(err.into())).is_ok()
    }

    fn path_of(&self, directory: &Directory) -> PathBuf {
        self.mounts.point(directory.hierarchy).join(&directory.path)
    }
}

impl Held {
    /// Looks whether the file still holds what was written. Whether there is still a file.
    fn compare(&mut self, path: &Path, now: Duration, applied: &mut Applied) -> bool {
        match self.file.read() {
            Ok(found) if self.entry.is_in_force(&found) => true,
            // It may be written right now.
            Ok(found) if self.pending.is_some() && self.entry.knows(&found) => true,
            Ok(found) => {
                tracing::info!(cgroup = %path.display(), %found, ours = %self.entry.ours, "somebody else set this");
                applied.foreign += 1;
                self.entry.adopt(&found);
                self.yielded_until = now + YIELD;
                true
            }
            Err(setting::Error::Gone(_)) => false,
            Err(err) => {
                applied.errors.push(err.into());
                true
            }
        }
    }
}

impl AsRef<Entry> for Held {
    fn as_ref(&self) -> &Entry {
        &self.entry
    }
}

/// Where a plan sets a quota above, that one does its work; v1 allows no higher one below.
fn want_standing<'a>(
    key: &'a Key,
    (directory, setting): &'a (Directory, Setting),
    quotas: &[PathBuf],
    wanted: &mut Wanted<'a>,
) {
    if wanted.contains_key(key) {
        return;
    }
    let lies_below = |quota: &PathBuf| is_below(&key.path, quota);
    let setting = match setting {
        Setting::Quota(limit) if quotas.iter().any(lies_below) => {
            Setting::Quota(CpuLimit { quota_us: None, ..*limit })
        }
        setting => setting.clone(),
    };
    wanted.insert(key.clone(), (directory, setting));
}

fn is_below(path: &Path, above: &Path) -> bool {
    path != above && path.starts_with(above)
}

/// Remembers the owner's value.
fn hold(directory: &Directory, Key { knob, path }: &Key) -> Result<Held, setting::Error> {
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

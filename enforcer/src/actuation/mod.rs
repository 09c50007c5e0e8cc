//! Makes the node match the plan, and undoes it all.
//!
//! The owner's value of a file is in the [`journal`] before enforcer first writes to it, and is put back when the plan
//! no longer names the directory, on exit, and at the next start after a crash. What somebody else wrote meanwhile is
//! their wish: it becomes the owner's value.

mod compare;
mod holdings;
pub mod journal;
pub mod key;
pub mod lease;
pub mod split;
pub mod standing;
mod writer;

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use self::{
    compare::COMPARE,
    holdings::{Held, Holdings},
    journal::Journal,
    key::Key,
    standing::Standing,
    writer::Writer,
};
use crate::cgroup::{
    hierarchy::{Hierarchy, Mounts},
    setting::{self, Knob, Setting, SettingFile},
    tree::Directory,
};

/// At the end, writes that the kernel is busy with are waited for so long. Of most it takes the value first and reclaims afterwards,
/// so the owner's value, written meanwhile, stays; a v1 memory limit comes last, and is put right when it has come.
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
    held: Holdings,
    /// Held settings that were handed over to be written.
    pending: BTreeSet<Key>,
    /// Held settings that may not be wanted any more.
    loose: BTreeSet<Key>,
    compare_at: Duration,
    /// The last one that was compared; the next ones' turn is next.
    compared: Option<Key>,
    shadow: bool,
    writer: Writer,
    standing: Standing,
    /// Standing settings that may not be in force. The others are, and are not looked at: there may be thousands.
    unsettled: BTreeSet<Key>,
    /// When that is seen to.
    settle_at: Duration,
    /// What was wanted beside them last.
    planned: BTreeSet<Key>,
}

/// What a call makes be in force.
type Wanted<'a> = BTreeMap<Key, (&'a Directory, Setting)>;

impl Actuator {
    /// Holds nothing yet. In shadow mode nothing is ever written.
    pub fn new(mounts: Mounts, journal: Journal, shadow: bool) -> Self {
        Self {
            mounts,
            journal,
            held: Holdings::default(),
            pending: BTreeSet::new(),
            loose: BTreeSet::new(),
            compare_at: Duration::ZERO,
            compared: None,
            shadow,
            writer: Writer::default(),
            standing: Standing::new(),
            unsettled: BTreeSet::new(),
            settle_at: Duration::ZERO,
            planned: BTreeSet::new(),
        }
    }

    /// Directories whose owner's value is replaced now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether what is written can be put back by others, should this process die.
    ///
    /// # Errors
    /// [`journal::Error::Removed`].
    pub fn check_journal(&self) -> Result<(), journal::Error> {
        self.journal.check()
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
        self.add_standing(now, &standing, &mut wanted);
        self.release_loose(|key| standing.contains_key(key) || wanted.contains_key(key), &mut applied);
        let mut due = self.intend(now, wanted, &mut applied);
        // Children before their parents: a v1 parent's quota is lowered after its children's, and raised before them.
        due.sort_by_cached_key(|key| {
            let raises = self.held.get(key).is_some_and(|held| held.entry().raises_quota());
            if raises {
                (0, Some(key.path.clone()), None)
            } else {
                (1, None, Some((key.knob, Reverse(key.path.clone()))))
            }
        });
        self.standing = standing;
        let is_saved = self.save(&mut applied);
        for key in due {
            if is_saved {
                self.write(&key, &mut applied);
            } else {
                self.take_back(&key);
            }
        }
        applied
    }

    /// The journal knows of it.
    fn write(&mut self, key: &Key, applied: &mut Applied) {
        let held = self.held.get_mut(key).expect("BUG: due and not held");
        if !held.entry().is_of_its_directory() {
            // Another one has its name by now, and its owner's value is not known.
            return self.held.remove(key);
        }
        let (hierarchy, ours) = (held.entry().hierarchy, &held.entry().ours);
        if !ours.may_block() {
            let written = held.file.write(ours);
            return self.note(key, written, applied);
        }
        let file = SettingFile::new(hierarchy, key.path.clone(), key.knob);
        held.pending = self.writer.submit(file, ours.clone());
        if held.pending.is_some() {
            self.pending.insert(key.clone());
        } else {
            self.take_back(key);
        }
    }

    fn note(&mut self, key: &Key, written: Result<(), setting::Error>, applied: &mut Applied) {
        match written {
            Ok(()) => applied.writes += 1,
            Err(setting::Error::Gone(_)) => self.held.remove(key),
            Err(err) => {
                self.take_back(key);
                applied.errors.push(err.into());
            }
        }
    }

    /// It was not written, and is tried again.
    fn take_back(&mut self, key: &Key) {
        if let Some(entry) = self.held.entry_mut(key) {
            entry.take_back();
        }
        self.unsettled.insert(key.clone());
    }

    /// Takes note of the writes that were handed over and are done.
    fn collect(&mut self, applied: &mut Applied) {
        for key in std::mem::take(&mut self.pending) {
            let pending = self.held.get_mut(&key).and_then(|held| held.pending.take());
            let Some(pending) = pending else { continue };
            if let Some(written) = pending.take_outcome() {
                self.note(&key, written, applied);
            } else {
                self.held.get_mut(&key).expect("BUG: just there").pending = Some(pending);
                self.pending.insert(key);
            }
        }
    }

    /// Puts every owner's value back and waits until that is certain, or for a second.
    pub fn finish(&mut self) -> Applied {
        let until = Instant::now() + END;
        let mut applied = self.release_all();
        while !self.pending.is_empty() && Instant::now() < until {
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
        self.unsettled.extend(self.standing.keys().cloned());
        self.settle_at = Duration::ZERO;
        self.loose = self.held.keys().cloned().collect();
        self.release_loose(|_| false, &mut applied);
        self.save(&mut applied);
        applied
    }

    /// Whether what is held under this name, if anything, is of this directory. What is of an earlier one of the same name is
    /// dropped, as soon as nothing is being written there.
    fn belongs_to(&mut self, key: &Key, inode: u64) -> bool {
        let Some(held) = self.held.get_mut(key).filter(|held| held.entry().inode != inode) else {
            return true;
        };
        held.pending.take_if(|pending| pending.call_off());
        if held.pending.is_some() {
            return false;
        }
        self.held.remove(key);
        true
    }

    /// Notes what is about to be written, in that order. What is in force already, or left to somebody else for a while,
    /// is left out.
    fn intend(&mut self, now: Duration, wanted: Wanted<'_>, applied: &mut Applied) -> Vec<Key> {
        let mut due = Vec::new();
        for (key, (directory, setting)) in wanted {
            if !self.belongs_to(&key, directory.inode) {
                self.unsettled.insert(key);
                continue;
            }
            let is_new = self.held.get(&key).is_none();
            let held = match self.held.get(&key) {
                Some(held) => held,
                None => match Held::take(directory, &key) {
                    Ok(held) => self.held.insert(key.clone(), held),
                    Err(setting::Error::Gone(_)) => continue,
                    Err(err) => {
                        self.unsettled.insert(key);
                        applied.errors.push(err.into());
                        continue;
                    }
                },
            };
            let setting = setting.within(&held.entry().owner);
            if held.entry().ours == setting {
                continue;
            }
            if held.pending.is_some() || now < held.yielded_until {
                self.unsettled.insert(key);
                continue;
            }
            // What somebody else wrote since the last look must not be written over unseen. A new one was read just now.
            if !is_new {
                self.compare_one(&key, now, applied);
            }
            let Some(held) = self.held.get(&key) else { continue };
            if now < held.yielded_until {
                continue;
            }
            self.held.entry_mut(&key).expect("BUG: just there").intend(setting);
            due.push(key);
        }
        due
    }

    /// Puts back the owners' values where nothing else is wanted; where that is not possible yet, at the next call.
    fn release_loose(&mut self, is_wanted: impl Fn(&Key) -> bool, applied: &mut Applied) {
        for key in std::mem::take(&mut self.loose) {
            if is_wanted(&key) {
                continue;
            }
            let Some(held) = self.held.get_mut(&key) else { continue };
            // What waits its turn is called off. What is being written right now is overwritten, and looked at again
            // when it is done, in case it came second.
            held.pending.take_if(|pending| pending.call_off());
            let is_pending = held.pending.is_some();
            let stays = match held.entry().restore(&held.file) {
                Ok(written) => {
                    applied.writes += u64::from(written);
                    is_pending
                }
                Err(setting::Error::Gone(_)) => false,
                Err(err) => {
                    // Kept, and tried again at the next tick and at the next start.
                    applied.errors.push(err.into());
                    true
                }
            };
            if !stays {
                self.held.remove(&key);
                continue;
            }
            if is_pending
                && let Some(entry) = self.held.entry_mut(&key)
                && entry.ours != entry.owner
            {
                entry.intend(entry.owner.clone());
            }
            self.loose.insert(key);
        }
    }

    /// Whether everything that is held is on disk.
    fn save(&mut self, applied: &mut Applied) -> bool {
        let saved = self.held.save(&mut self.journal);
        saved.map_err(|err| applied.errors.push(err.into())).is_ok()
    }

    fn path_of(&self, directory: &Directory) -> PathBuf {
        self.mounts.point(directory.hierarchy).join(&directory.path)
    }
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

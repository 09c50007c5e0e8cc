//! Owner's values, on disk before they are replaced.
//!
//! A small JSON file on a tmpfs (`/run/enforcer/journal.json`), replaced as a whole by rename, so that it is never seen
//! half-written.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::key::Key;
use crate::cgroup::{
    hierarchy::{Hierarchy, Mounts},
    setting::{self, Knob, Setting, SettingFile},
};

const FILE: &str = "journal.json";
const LOCK: &str = "lock";

/// Why owner's values cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}; name a writable directory with --state-dir")]
    Io { path: PathBuf, source: io::Error },
    #[error("another enforcer holds {0}: stop it first, or name another directory with --state-dir")]
    Busy(PathBuf),
    #[error("{path} is no journal ({what}): look at it, restore by hand what it names, and remove it")]
    Garbled { path: PathBuf, what: String },
}

/// One setting of a directory that enforcer replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub hierarchy: Hierarchy,
    /// Absolute.
    pub directory: PathBuf,
    /// Tells a directory from a later one of the same name.
    pub inode: u64,
    /// What was there before.
    pub owner: Setting,
    /// What enforcer wrote last, or was about to write.
    pub ours: Setting,
    /// What it had written before that.
    pub before: Setting,
}

impl AsRef<Self> for Entry {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Entry {
    /// Nothing written yet.
    pub fn new(hierarchy: Hierarchy, directory: PathBuf, inode: u64, owner: Setting) -> Self {
        Self { hierarchy, directory, inode, ours: owner.clone(), before: owner.clone(), owner }
    }

    fn key(&self) -> Key {
        Key::new(self.knob(), self.directory.clone())
    }

    /// Which knob it is.
    pub const fn knob(&self) -> Knob {
        self.owner.knob()
    }

    /// Notes a value that is about to be written.
    pub fn intend(&mut self, setting: Setting) {
        self.before = std::mem::replace(&mut self.ours, setting);
    }

    /// Whether what is about to be written is a higher quota than what is there.
    pub fn raises_quota(&self) -> bool {
        let cores = |setting: &Setting| match setting {
            Setting::Quota(limit) => Some(limit.cores().unwrap_or(f64::INFINITY)),
            _ => None,
        };
        cores(&self.ours).zip(cores(&self.before)).is_some_and(|(ours, before)| ours > before)
    }

    /// It was not written after all.
    pub fn take_back(&mut self) {
        self.ours = self.before.clone();
    }

    /// Takes a value that somebody else wrote for the owner's.
    pub fn adopt(&mut self, found: &Setting) {
        self.owner = found.clone();
        self.before = found.clone();
        self.ours = found.clone();
    }

    /// Whether what was written last is in force. On v1 the period says nothing where there is no quota.
    pub fn is_in_force(&self, found: &Setting) -> bool {
        match (&self.ours, found) {
            (Setting::Quota(ours), Setting::Quota(found)) if ours.quota_us.is_none() => {
                found.quota_us.is_none()
            }
            (ours, found) => ours == found,
        }
    }

    /// Whether `found` can be there without anybody else having written. On v1 a quota is two files, and a crash between
    /// the two writes leaves a mixture.
    pub fn knows(&self, found: &Setting) -> bool {
        let known = [&self.owner, &self.ours, &self.before];
        let Setting::Quota(found) = found else { return known.contains(&found) };
        let mut quotas = known.into_iter().filter_map(|known| match known {
            Setting::Quota(limit) => Some(limit),
            _ => None,
        });
        quotas.clone().any(|known| known.quota_us == found.quota_us)
            && quotas.any(|known| known.period_us == found.period_us)
    }

    /// Puts the owner's value back, unless somebody else wrote meanwhile. Whether something was written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn restore(&self, file: &SettingFile) -> Result<bool, setting::Error> {
        let found = file.read()?;
        if found == self.owner || !self.knows(&found) {
            return Ok(false);
        }
        file.write(&self.owner)?;
        Ok(true)
    }
}

/// What [`Journal::restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    pub written: u64,
    /// Directories that went, or hold the owner's or somebody else's value already.
    pub untouched: u64,
    pub errors: Vec<setting::Error>,
}

/// The journal of one node, held by one process at a time.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// What is on disk, and how each entry is written there: of thousands a few change at a time.
    saved: BTreeMap<Key, (Entry, String)>,
    #[expect(dead_code, reason = "locked while open")]
    lock: fs::File,
}

impl Journal {
    /// Opens the journal in `state_dir`, which is made if need be.
    ///
    /// # Errors
    /// [`Error`]; a garbled journal is never overwritten.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        fs::create_dir_all(state_dir).map_err(at(state_dir))?;
        let lock_path = state_dir.join(LOCK);
        let lock = fs::File::create(&lock_path).map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|err| match err {
            rustix::io::Errno::WOULDBLOCK => Error::Busy(state_dir.to_owned()),
            err => Error::Io { path: lock_path, source: err.into() },
        })?;
        let path = state_dir.join(FILE);
        let saved = read(&path)?.into_iter().map(|entry| (entry.key(), written(entry))).collect();
        Ok(Self { path, saved, lock })
    }

    /// Opens the journal as soon as whoever holds it lets go of it: a guardian holds it for a moment.
    ///
    /// # Errors
    /// As [`Journal::open`], where `patience` is over.
    pub fn open_within(state_dir: &Path, patience: Duration) -> Result<Self, Error> {
        let until = Instant::now() + patience;
        loop {
            match Self::open(state_dir) {
                Err(Error::Busy(_)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                result => return result,
            }
        }
    }

    /// Writes down which values are replaced now, if that changed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&mut self, entries: &BTreeMap<Key, impl AsRef<Entry>>) -> Result<(), Error> {
        let saved = self.saved.values().map(|(entry, _)| entry);
        if entries.values().map(AsRef::as_ref).eq(saved) {
            return Ok(());
        }
        self.saved.retain(|key, _| entries.contains_key(key));
        for (key, entry) in entries {
            let entry = entry.as_ref();
            match self.saved.get_mut(key) {
                Some(saved) if saved.0 == *entry => {}
                Some(saved) => *saved = written(entry.clone()),
                None => drop(self.saved.insert(key.clone(), written(entry.clone()))),
            }
        }
        let lines: Vec<&str> = self.saved.values().map(|(_, text)| text.as_str()).collect();
        let text = format!("[\n{}\n]\n", lines.join(",\n"));
        let new = self.path.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)).map_err(|source| {
            // Nothing of it counts as saved.
            self.saved.clear();
            Error::Io { path: self.path.clone(), source }
        })
    }

    /// Restores what a former process left behind, and forgets it.
    ///
    /// # Errors
    /// Where the journal cannot be written; single files that could not be restored are listed in the result and stay
    /// in the journal.
    pub fn restore(&mut self, mounts: &Mounts) -> Result<Restored, Error> {
        let saved = std::mem::take(&mut self.saved).into_values().map(|(entry, _)| entry);
        let (restored, left) = restore_all(saved.collect(), mounts);
        // What was saved is no longer known to be there: write in any case.
        if left.is_empty() {
            match fs::remove_file(&self.path) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
            }
        } else {
            let left: BTreeMap<Key, Entry> = left.into_iter().map(|entry| (entry.key(), entry)).collect();
            self.save(&left)?;
        }
        Ok(restored)
    }
}

/// Restores what the process that holds the journal in `state_dir` has replaced. The journal stays as it is: that
/// process may yet carry out a write that it had begun.
///
/// # Errors
/// Where the journal cannot be read.
pub fn restore_over_its_head(state_dir: &Path, mounts: &Mounts) -> Result<Restored, Error> {
    let (restored, _) = restore_all(read(&state_dir.join(FILE))?, mounts);
    Ok(restored)
}

/// An entry and its line.
fn written(entry: Entry) -> (Entry, String) {
    let text = serde_json::to_string(&entry).expect("BUG: entries are plain data");
    (entry, text)
}

fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|err| Error::Garbled { path: path.to_owned(), what: err.to_string() }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// Also returns what could not be restored.
fn restore_all(mut entries: Vec<Entry>, mounts: &Mounts) -> (Restored, Vec<Entry>) {
    let mut restored = Restored::default();
    let mut left = Vec::new();
    // The quick levers first, a frozen group above all; then parents, because a v1 child may not be above its parent.
    entries.sort_by_cached_key(Entry::key);
    for entry in entries {
        match restore_one(&entry, mounts) {
            Ok(true) => restored.written += 1,
            Ok(false) | Err(setting::Error::Gone(_)) => restored.untouched += 1,
            Err(err) => {
                restored.errors.push(err);
                left.push(entry);
            }
        }
    }
    (restored, left)
}

/// Never outside the mounted hierarchies, whatever the file says.
fn restore_one(entry: &Entry, mounts: &Mounts) -> Result<bool, setting::Error> {
    let inside = |mount: &Path| {
        entry.directory.starts_with(mount)
            && !entry.directory.components().any(|part| part == Component::ParentDir)
    };
    if !mounts.mount(entry.hierarchy).is_some_and(inside) {
        return Err(setting::Error::Gone(entry.directory.clone()));
    }
    let is_same = fs::metadata(&entry.directory).is_ok_and(|metadata| metadata.ino() == entry.inode);
    if !is_same {
        return Err(setting::Error::Gone(entry.directory.clone()));
    }
    entry.restore(&SettingFile::new(entry.hierarchy, entry.directory.clone(), entry.knob()))
}

//! Owner's values, on disk before they are replaced.
//!
//! A file on a tmpfs (`/run/enforcer/journal.jsonl`), one line of JSON per change: of thousands of settings a few change at a
//! time. When it has grown, or could not be appended to, it is replaced as a whole by rename. A line without an end says
//! nothing: what it announces was not written.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::key::Key;
use crate::cgroup::{
    hierarchy::{Hierarchy, Mounts},
    setting::{self, Knob, Priority, Setting, SettingFile},
};

const FILE: &str = "journal.jsonl";
const LOCK: &str = "lock";
/// Lines that are out of date may be as many as the others, and so many more.
const OUTDATED: usize = 100;
/// Of the buffer for lines so many bytes are kept: the lines of all settings of a large node are many more.
const REUSED: usize = 16 << 10;

/// Why owner's values cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}; name a writable directory with --state-dir")]
    Io { path: PathBuf, source: io::Error },
    #[error("another enforcer holds {0}: stop it first, or name another directory with --state-dir")]
    Busy(PathBuf),
    #[error("{path} is no journal ({what}): look at it, restore by hand what it names, and remove it")]
    Garbled { path: PathBuf, what: String },
    #[error(
        "{0} was removed while this enforcer ran, so that its limits could no longer be written down: give it a state \
         directory of its own with --state-dir, which nobody else tidies up"
    )]
    Removed(PathBuf),
}

/// What a line says of a setting. The last one holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<E> {
    /// The owner's value is replaced, or about to be.
    Held(E),
    /// It is in force again, or the directory went.
    Released { knob: Knob, directory: PathBuf },
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
    /// the two writes leaves a mixture. One after `cpu.idle` was undone leaves the weight that the kernel gives then.
    pub fn knows(&self, found: &Setting) -> bool {
        let known = [&self.owner, &self.ours, &self.before];
        if *found == Setting::Priority(Priority::by_default(self.hierarchy)) {
            return known.contains(&found) || known.contains(&&Setting::Priority(Priority::Idle));
        }
        let Setting::Quota(found) = found else { return known.contains(&found) };
        let mut quotas = known.into_iter().filter_map(|known| match known {
            Setting::Quota(limit) => Some(limit),
            _ => None,
        });
        quotas.clone().any(|known| known.quota_us == found.quota_us)
            && quotas.any(|known| known.period_us == found.period_us)
    }

    /// Whether the directory is the one of which it was read, and no later one of the same name.
    pub fn is_of_its_directory(&self) -> bool {
        fs::metadata(&self.directory).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Puts the owner's value back, unless somebody else wrote meanwhile. Whether something was written.
    ///
    /// # Errors
    /// What the file system says; [`setting::Error::Gone`] where a later directory has the name, or the controller was taken off
    /// it: what was set went with the file.
    pub fn restore(&self, file: &SettingFile) -> Result<bool, setting::Error> {
        if !self.is_of_its_directory() {
            return Err(setting::Error::Gone(self.directory.clone()));
        }
        let found = file.read().map_err(|err| match err {
            setting::Error::Missing { directory, .. } => setting::Error::Gone(directory),
            err => err,
        })?;
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
    /// What an earlier process left behind.
    left: Vec<Entry>,
    /// Open at its end, with so many lines. `None`: written anew at the next change.
    file: Option<(fs::File, usize)>,
    /// Reused: the lines of one change.
    text: Vec<u8>,
    /// Locked while open.
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
        let left = read(&path)?;
        Ok(Self { path, left, file: None, text: Vec::new(), lock })
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

    /// Whether whoever looks for it finds this lock. Once its directory was removed, a guardian takes the agent for dead.
    ///
    /// # Errors
    /// [`Error::Removed`].
    pub fn check(&self) -> Result<(), Error> {
        let is_there = self.lock.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        let state_dir = || self.path.parent().unwrap_or(Path::new("/")).to_owned();
        if is_there { Ok(()) } else { Err(Error::Removed(state_dir())) }
    }

    /// Writes down what holds now of the settings that changed since the last call. `entries`: all whose owner's values are
    /// replaced.
    ///
    /// # Errors
    /// What the file system says; then it cannot be relied upon that any of it is there.
    pub fn save<'a>(
        &mut self,
        changed: impl IntoIterator<Item = &'a Key>,
        entries: &BTreeMap<Key, impl AsRef<Entry>>,
    ) -> Result<(), Error> {
        self.text.clear();
        let mut lines = 0;
        for key in changed {
            let line = match entries.get(key) {
                Some(entry) => Line::Held(entry.as_ref()),
                None => Line::Released { knob: key.knob, directory: key.path.clone() },
            };
            push(&line, &mut self.text);
            lines += 1;
        }
        if lines == 0 || self.append(lines, entries.len()) {
            return Ok(());
        }
        match self.write_anew(entries) {
            // Nothing is held, and nothing that says otherwise is there.
            Err(err) if err.kind() == io::ErrorKind::NotFound && entries.is_empty() => Ok(()),
            written => written.map_err(|source| Error::Io { path: self.path.clone(), source }),
        }
    }

    /// Whether the lines are in the file now. `held`: lines that a new one would have.
    fn append(&mut self, lines: usize, held: usize) -> bool {
        // Half a line may be there after an error: only a new file will do.
        let Some((mut file, count)) = self.file.take() else { return false };
        let count = count + lines;
        let is_there = file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        let has_grown = held == 0 || count > 2 * held + OUTDATED;
        if !is_there || has_grown || file.write_all(&self.text).is_err() {
            return false;
        }
        self.file = Some((file, count));
        true
    }

    fn write_anew(&mut self, entries: &BTreeMap<Key, impl AsRef<Entry>>) -> io::Result<()> {
        self.text.clear();
        for entry in entries.values() {
            push(&Line::Held(entry.as_ref()), &mut self.text);
        }
        let new = self.path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&self.text)?;
        self.text.clear();
        self.text.shrink_to(REUSED);
        fs::rename(&new, &self.path)?;
        self.file = Some((file, entries.len()));
        Ok(())
    }

    /// Restores what a former process left behind, and forgets it.
    ///
    /// # Errors
    /// Where the journal cannot be written; single files that could not be restored are listed in the result and stay
    /// in the journal.
    pub fn restore(&mut self, mounts: &Mounts) -> Result<Restored, Error> {
        let (restored, left) = restore_all(std::mem::take(&mut self.left), mounts);
        self.file = None;
        let written = if left.is_empty() {
            match fs::remove_file(&self.path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
                _ => Ok(()),
            }
        } else {
            let entries: BTreeMap<Key, &Entry> = left.iter().map(|entry| (entry.key(), entry)).collect();
            self.write_anew(&entries)
        };
        self.left = left;
        written.map(|()| restored).map_err(|source| Error::Io { path: self.path.clone(), source })
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

fn push(line: &Line<&Entry>, text: &mut Vec<u8>) {
    serde_json::to_writer(&mut *text, line).expect("BUG: lines are plain data");
    text.push(b'\n');
}

/// In the order of restoring: the quick levers first, a frozen group above all; then parents, because a v1 child may not be above
/// its parent.
fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    let mut entries = BTreeMap::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Held(entry)) => drop(entries.insert(Entry::key(&entry), entry)),
            Ok(Line::Released { knob, directory }) => drop(entries.remove(&Key::new(knob, directory))),
            // Whoever wrote it was killed meanwhile, or is at it right now.
            Err(err) if err.is_eof() && !line.ends_with(b"\n") => {}
            Err(err) => return Err(Error::Garbled { path: path.to_owned(), what: err.to_string() }),
        }
    }
    Ok(entries.into_values().collect())
}

/// Also returns what could not be restored.
fn restore_all(entries: Vec<Entry>, mounts: &Mounts) -> (Restored, Vec<Entry>) {
    let mut restored = Restored::default();
    let mut left = Vec::new();
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
        return Err(setting::Error::Outside(entry.directory.clone()));
    }
    entry.restore(&SettingFile::new(entry.hierarchy, entry.directory.clone(), entry.knob()))
}

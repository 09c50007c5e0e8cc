//! Makes the node match the plan, and undoes it all.
//!
//! The owner's value of a file is in the [`journal`] before enforcer first writes to it, and is put back when the plan
//! no longer names the directory, on exit, and at the next start after a crash. What somebody else wrote meanwhile is
//! their wish: it becomes the owner's value.

pub mod journal;
pub mod lease;
pub mod split;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use self::journal::{Entry, Journal};
use crate::{
    cgroup::{
        cpu_limit::{self, CpuLimitFile},
        hierarchy::{Hierarchy, Mounts},
        tree::Directory,
    },
    model::CpuLimit,
};

/// How often files are compared with what was written.
const COMPARE: Duration = Duration::from_secs(1);
/// A directory that somebody else keeps writing is left to them for so long: two agents must not fight.
const YIELD: Duration = Duration::from_secs(10);

/// A file that could not be read or written; the others were.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cgroup(#[from] cpu_limit::Error),
    #[error(transparent)]
    Journal(#[from] journal::Error),
}

/// What one call did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Limits written, restorations included.
    pub writes: u64,
    /// Files in which somebody else's value was found.
    pub foreign: u64,
    pub errors: Vec<Error>,
}

/// Where a limit goes: the group's share of it, and what lies below.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    pub directory: &'a Directory,
    pub limit: CpuLimit,
    /// Directories below, whose own limits a v1 kernel does not allow to be higher.
    pub below: Vec<&'a Directory>,
}

/// The only writer.
#[derive(Debug)]
pub struct Actuator {
    mounts: Mounts,
    journal: Journal,
    /// By directory, parents first: a v1 parent must be raised before its children.
    held: BTreeMap<PathBuf, Held>,
    compare_at: Duration,
    shadow: bool,
}

#[derive(Debug)]
struct Held {
    file: CpuLimitFile,
    entry: Entry,
    yielded_until: Duration,
}

impl Actuator {
    /// Holds nothing yet. In shadow mode nothing is ever written.
    pub const fn new(mounts: Mounts, journal: Journal, shadow: bool) -> Self {
        Self { mounts, journal, held: BTreeMap::new(), compare_at: Duration::ZERO, shadow }
    }

    /// Directories whose owner's value is replaced now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Makes exactly these limits be in force.
    pub fn apply(&mut self, now: Duration, targets: &[Target<'_>]) -> Applied {
        let mut applied = Applied::default();
        if self.shadow {
            return applied;
        }
        if now >= self.compare_at {
            self.compare_at = now + COMPARE;
            self.compare(now, &mut applied);
        }
        let mut wanted: BTreeMap<PathBuf, (&Directory, CpuLimit)> = BTreeMap::new();
        for target in targets {
            wanted.insert(self.path_of(target.directory), (target.directory, target.limit));
            if target.directory.hierarchy == Hierarchy::V1Cpu {
                self.want_no_limit_below(target, &mut wanted);
            }
        }
        self.release_all_but(&wanted, &mut applied);
        // Children first: they must not be above their parents when those are lowered.
        for (path, (directory, limit)) in wanted.into_iter().rev() {
            match self.put(now, &path, directory, limit) {
                Ok(written) => applied.writes += u64::from(written),
                Err(Error::Cgroup(cpu_limit::Error::Gone(_))) => drop(self.held.remove(&path)),
                Err(err) => applied.errors.push(err),
            }
        }
        self.save(&mut applied);
        applied
    }

    /// Puts every owner's value back.
    pub fn release_all(&mut self) -> Applied {
        let mut applied = Applied::default();
        self.release_all_but(&BTreeMap::new(), &mut applied);
        self.save(&mut applied);
        applied
    }

    /// Limits below a v1 directory that is to be lowered are lifted; the directory's own limit does their work.
    fn want_no_limit_below<'a>(
        &self,
        target: &Target<'a>,
        wanted: &mut BTreeMap<PathBuf, (&'a Directory, CpuLimit)>,
    ) {
        for &below in &target.below {
            let path = self.path_of(below);
            let owners = match self.held.get(&path) {
                Some(held) => Ok(held.entry.owner),
                None => CpuLimitFile::new(below.hierarchy, path.clone()).read(),
            };
            if let Ok(owners) = owners
                && owners.quota_us.is_some()
            {
                wanted.insert(path, (below, CpuLimit { quota_us: None, ..owners }));
            }
        }
    }

    /// Whether something was written.
    fn put(
        &mut self,
        now: Duration,
        path: &Path,
        directory: &Directory,
        limit: CpuLimit,
    ) -> Result<bool, Error> {
        if let Some(held) = self.held.get(path)
            && (held.entry.ours == limit || now < held.yielded_until)
        {
            return Ok(false);
        }
        if !self.held.contains_key(path) {
            let file = CpuLimitFile::new(directory.hierarchy, path.to_owned());
            let owner = file.read()?;
            let entry = Entry::new(directory.hierarchy, path.to_owned(), directory.inode, owner);
            self.held.insert(path.to_owned(), Held { file, entry, yielded_until: Duration::ZERO });
        }
        let held = self.held.get_mut(path).expect("BUG: just inserted");
        held.entry.intend(limit);
        self.journal.save(self.held.values().map(|held| &held.entry))?;
        self.held[path].file.write(limit)?;
        Ok(true)
    }

    fn release_all_but(&mut self, wanted: &BTreeMap<PathBuf, (&Directory, CpuLimit)>, applied: &mut Applied) {
        self.held.retain(|path, held| {
            if wanted.contains_key(path) {
                return true;
            }
            match held.entry.restore(&held.file) {
                Ok(written) => {
                    applied.writes += u64::from(written);
                    false
                }
                Err(cpu_limit::Error::Gone(_)) => false,
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
        self.held.retain(|path, held| match held.file.read() {
            Ok(found) if held.entry.knows(found) => true,
            Ok(found) => {
                tracing::info!(cgroup = %path.display(), %found, ours = %held.entry.ours, "somebody else set this limit");
                applied.foreign += 1;
                held.entry.adopt(found);
                held.yielded_until = now + YIELD;
                true
            }
            Err(cpu_limit::Error::Gone(_)) => false,
            Err(err) => {
                applied.errors.push(err.into());
                true
            }
        });
    }

    fn save(&mut self, applied: &mut Applied) {
        if let Err(err) = self.journal.save(self.held.values().map(|held| &held.entry)) {
            applied.errors.push(err.into());
        }
    }

    fn path_of(&self, directory: &Directory) -> PathBuf {
        self.mounts.point(directory.hierarchy).join(&directory.path)
    }
}

impl Drop for Actuator {
    /// The last resort, for a panic on the loop; a normal exit has released everything by then.
    fn drop(&mut self) {
        for err in self.release_all().errors {
            tracing::error!(%err, "a limit could not be restored; `enforcer restore` tries again");
        }
    }
}

#[cfg(test)]
mod tests;

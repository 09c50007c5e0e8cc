//! Settings whose owner's values are replaced, and which of them changed since they were written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use super::{
    journal::{self, Entry, Journal},
    key::Key,
    writer::Progress,
};
use crate::cgroup::{
    setting::{self, SettingFile},
    tree::Directory,
};

/// One of them.
#[derive(Debug)]
pub struct Held {
    pub file: SettingFile,
    entry: Entry,
    /// Somebody else set it: it is left to them for a while.
    pub yielded_until: Duration,
    /// A write that may block, handed over.
    pub pending: Option<Progress>,
}

impl Held {
    /// Remembers the owner's value.
    ///
    /// # Errors
    /// What the file system says; [`setting::Error::Gone`] where a later directory has the name already: what holds there is
    /// not this one's owner's wish.
    pub fn take(directory: &Directory, Key { knob, path }: &Key) -> Result<Self, setting::Error> {
        let file = SettingFile::new(directory.hierarchy, path.clone(), *knob);
        let owner = file.read()?;
        let entry = Entry::new(directory.hierarchy, path.clone(), directory.inode, owner);
        if !entry.is_of_its_directory() {
            return Err(setting::Error::Gone(path.clone()));
        }
        Ok(Self { file, entry, yielded_until: Duration::ZERO, pending: None })
    }

    /// What is, or will be, in the journal.
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl AsRef<Entry> for Held {
    fn as_ref(&self) -> &Entry {
        &self.entry
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Parents before their children, which is the order of restoring: a v1 parent's quota must be raised first.
    all: BTreeMap<Key, Held>,
    changed: BTreeSet<Key>,
}

impl Holdings {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.all.keys()
    }

    /// So many that come after a key; from the beginning without one.
    pub fn after(&self, key: Option<&Key>, count: usize) -> impl Iterator<Item = &Key> {
        let after = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range::<Key, _>((after, Bound::Unbounded)).take(count).map(|(key, _)| key)
    }

    pub fn get(&self, key: &Key) -> Option<&Held> {
        self.all.get(key)
    }

    /// To change what is not in the journal.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Held> {
        self.all.get_mut(key)
    }

    /// To change what is.
    pub fn entry_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        let held = self.all.get_mut(key)?;
        self.changed.insert(key.clone());
        Some(&mut held.entry)
    }

    /// One that was not there.
    pub fn insert(&mut self, key: Key, held: Held) -> &Held {
        self.changed.insert(key.clone());
        self.all.entry(key).or_insert(held)
    }

    pub fn remove(&mut self, key: &Key) {
        if self.all.remove(key).is_some() {
            self.changed.insert(key.clone());
        }
    }

    /// Writes down what changed since it was written down last.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&mut self, journal: &mut Journal) -> Result<(), journal::Error> {
        journal.save(&self.changed, &self.all)?;
        self.changed.clear();
        Ok(())
    }
}

//! Does the node still hold what was written? What somebody else wrote is their wish.

use std::{collections::BTreeSet, time::Duration};

use super::{Actuator, Applied, key::Key};
use crate::cgroup::setting::{self, Setting};

/// How often files are compared with what was written: those that the plan names, and some of the others.
pub(super) const COMPARE: Duration = Duration::from_secs(1);
/// Of the others at least so many: a look at a file costs some 40 us, and hardly any is ever written by anybody else.
const COMPARED: usize = 30;
/// All of many are compared in so many turns.
const ALL_COMPARED: usize = 60;
/// A directory that somebody else keeps writing is left to them for so long: two agents must not fight.
pub(super) const YIELD: Duration = Duration::from_secs(10);

impl Actuator {
    /// Looks whether the files still hold what was written.
    pub(super) fn compare(&mut self, now: Duration, applied: &mut Applied) {
        let some = COMPARED.max(self.held.len() / ALL_COMPARED);
        let after = self.compared.take();
        // A set: what is planned may have its turn as well.
        let mut keys: BTreeSet<Key> = self.held.after(after.as_ref(), some).cloned().collect();
        // From the beginning, once the end is reached.
        self.compared = keys.last().filter(|_| keys.len() == some).cloned();
        keys.extend(self.planned.iter().cloned());
        for key in keys {
            self.compare_one(&key, now, applied);
        }
    }

    pub(super) fn compare_one(&mut self, key: &Key, now: Duration, applied: &mut Applied) {
        let Some(held) = self.held.get(key) else { return };
        let entry = held.entry();
        match held.file.read() {
            Ok(found) if entry.is_in_force(&found) => {}
            // It may be written right now.
            Ok(found) if held.pending.is_some() && entry.knows(&found) => {}
            Ok(_) if !entry.is_of_its_directory() => {
                self.held.remove(key);
                self.unsettled.insert(key.clone());
            }
            // A write of ours that came after the owner's value had been put back.
            Ok(found) if entry.ours == entry.owner && found == entry.before => {
                if let Some(entry) = self.held.entry_mut(key) {
                    entry.intend(found);
                }
                self.loose.insert(key.clone());
                self.unsettled.insert(key.clone());
            }
            Ok(found) => {
                tracing::info!(cgroup = %key.path.display(), %found, ours = %entry.ours, "somebody else set this");
                applied.foreign += 1;
                self.yield_to(&found, key, now);
            }
            Err(setting::Error::Gone(_)) => self.held.remove(key),
            Err(err) => applied.errors.push(err.into()),
        }
    }

    /// Leaves a setting to somebody else for a while.
    fn yield_to(&mut self, found: &Setting, key: &Key, now: Duration) {
        if let Some(entry) = self.held.entry_mut(key) {
            entry.adopt(found);
        }
        if let Some(held) = self.held.get_mut(key) {
            held.yielded_until = now + YIELD;
        }
        self.unsettled.insert(key.clone());
    }
}

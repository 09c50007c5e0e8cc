//! Which cgroup counts where: slots, handed out and taken back.
//!
//! A slot that comes back rests before it is given away again: a CPU that idled since may still hold a segment that
//! names it.

use std::{
    collections::{HashMap, VecDeque},
    mem::offset_of,
    sync::atomic::Ordering::{Relaxed, Release},
    time::Duration,
};

use enforcer_ebpf::{
    layout::{FIRST_SLOT, Place},
    table::{Entry, Key, WAYS},
};

use super::mapped::MappedArray;

/// How long a slot rests after its cgroup went. LS waits that reach back further are rarer than anything worth telling,
/// and where a hundred cgroups come and go per second, a hundred slots rest.
const REST: Duration = Duration::from_secs(1);

/// Why a cgroup cannot be counted on its own; its tasks count as "other" meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("all slots are taken: raise limits.cgroups in the policy")]
    Slots,
    #[error("the cgroup's bucket of the slot table is full; it will be tried again when another cgroup goes")]
    Bucket,
}

/// The allotment of slots and the kernel's table of it.
#[derive(Debug)]
pub struct SlotTable {
    table: MappedArray,
    slots: u32,
    next_unused: u32,
    resting: VecDeque<(Duration, u32)>,
    places: HashMap<Key, Place>,
}

impl SlotTable {
    pub(super) fn new(slots: u32, table: MappedArray) -> Self {
        Self { table, slots, next_unused: FIRST_SLOT, resting: VecDeque::new(), places: HashMap::new() }
    }

    /// Slots in use, reserved ones not counted.
    pub fn used(&self) -> usize {
        self.places.len()
    }

    /// Slots that can be in use at once.
    pub const fn capacity(&self) -> u32 {
        self.slots - FIRST_SLOT
    }

    /// Gives a cgroup a slot and makes the probes count there. The slot's counters must be cleared by the caller
    /// before: see [`super::counters::Counters::clear_slot`], passed in as `clear`.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn allot(
        &mut self,
        key: Key,
        victim: u32,
        culprit: u32,
        now: Duration,
        clear: impl FnOnce(u32),
    ) -> Result<u32, Full> {
        if let Some(place) = self.places.get(&key) {
            return Ok(place.slot());
        }
        let way = self.find_way(key, Key::EMPTY).ok_or(Full::Bucket)?;
        let slot = self.free_slot(now).ok_or(Full::Slots)?;
        clear(slot);
        let place = Place::new(slot, victim, culprit);
        self.word(key, way, offset_of!(Entry, place)).store(place.0, Relaxed);
        self.word(key, way, offset_of!(Entry, key)).store(key.0, Release);
        self.places.insert(key, place);
        Ok(slot)
    }

    /// Takes a cgroup's slot back. Its counters keep their last values until the slot is given away again.
    pub fn release(&mut self, key: Key, now: Duration) {
        let Some(place) = self.places.remove(&key) else { return };
        if let Some(way) = self.find_way(key, key) {
            self.word(key, way, offset_of!(Entry, key)).store(Key::EMPTY.0, Release);
        }
        self.resting.push_back((now, place.slot()));
    }

    fn free_slot(&mut self, now: Duration) -> Option<u32> {
        let rested = self.resting.front().is_some_and(|(since, _)| *since + REST <= now);
        if rested {
            return self.resting.pop_front().map(|(_, slot)| slot);
        }
        if self.next_unused < self.slots {
            self.next_unused += 1;
            return Some(self.next_unused - 1);
        }
        None
    }

    /// Where in the bucket of `key` the entry with key `wanted` is.
    fn find_way(&self, key: Key, wanted: Key) -> Option<usize> {
        (0..WAYS).find(|&way| self.word(key, way, offset_of!(Entry, key)).load(Relaxed) == wanted.0)
    }

    fn word(&self, key: Key, way: usize, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.table.word(key.bucket() as usize, way * size_of::<Entry>() + offset)
    }
}

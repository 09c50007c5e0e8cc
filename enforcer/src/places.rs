//! Something for each group, by its place. Groups come and go, and places are used again.

use std::ops::{Index, IndexMut};

use crate::model::GroupId;

/// What is there by place; most places of a node without pods are vacant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places<T>(Vec<Option<T>>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Places<T> {
    /// Puts something in a place; what was there before.
    pub fn put(&mut self, id: GroupId, thing: T) -> Option<T> {
        if self.0.len() <= id.0 {
            self.0.resize_with(id.0 + 1, || None);
        }
        self.0[id.0].replace(thing)
    }

    /// Vacates a place; what was there.
    pub fn take(&mut self, id: GroupId) -> Option<T> {
        self.0.get_mut(id.0)?.take()
    }

    pub fn get(&self, id: GroupId) -> Option<&T> {
        self.0.get(id.0)?.as_ref()
    }

    pub fn get_mut(&mut self, id: GroupId) -> Option<&mut T> {
        self.0.get_mut(id.0)?.as_mut()
    }

    /// In the order of places.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (GroupId, &T)> {
        self.0.iter().enumerate().filter_map(|(place, thing)| Some((GroupId(place), thing.as_ref()?)))
    }

    /// In the order of places.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (GroupId, &mut T)> {
        self.0.iter_mut().enumerate().filter_map(|(place, thing)| Some((GroupId(place), thing.as_mut()?)))
    }

    /// In the order of places.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// In the order of places.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// Places that were ever used: all ids lie below.
    pub const fn end(&self) -> usize {
        self.0.len()
    }

    /// The lowest vacant place for which `may_be_used`, or the one after the last.
    pub fn vacant(&self, mut may_be_used: impl FnMut(GroupId) -> bool) -> GroupId {
        let vacant = self.0.iter().enumerate().filter(|(_, thing)| thing.is_none());
        let found = vacant.map(|(place, _)| GroupId(place)).find(|id| may_be_used(*id));
        found.unwrap_or(GroupId(self.0.len()))
    }
}

impl<T> FromIterator<T> for Places<T> {
    fn from_iter<I: IntoIterator<Item = T>>(things: I) -> Self {
        Self(things.into_iter().map(Some).collect())
    }
}

/// Of a group that is there.
impl<T> Index<GroupId> for Places<T> {
    type Output = T;

    fn index(&self, id: GroupId) -> &T {
        self.get(id).expect("BUG: a group that is not there")
    }
}

impl<T> IndexMut<GroupId> for Places<T> {
    fn index_mut(&mut self, id: GroupId) -> &mut T {
        self.get_mut(id).expect("BUG: a group that is not there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacant_place_is_used_again() {
        let mut places: Places<&str> = ["a", "b"].into_iter().collect();
        assert_eq!(places.vacant(|_| true), GroupId(2));
        assert_eq!(places.take(GroupId(0)), Some("a"));
        assert_eq!((places.vacant(|_| true), places.vacant(|id| id.0 > 0)), (GroupId(0), GroupId(2)));
        assert_eq!(places.put(GroupId(4), "e"), None);
        assert_eq!(places.iter().collect::<Vec<_>>(), [(GroupId(1), &"b"), (GroupId(4), &"e")]);
        assert_eq!((places.get(GroupId(9)), places[GroupId(4)]), (None, "e"));
    }
}

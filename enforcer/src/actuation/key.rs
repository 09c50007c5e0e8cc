//! One setting of one directory.

use std::{cmp::Ordering, path::PathBuf};

use crate::cgroup::setting::Knob;

/// In an order in which the quickest to undo comes first, and a directory before those below it: that is the order of
/// restoring.
///
/// By bytes: part by part, as [`std::path::Path`] has it, looking one up among thousands takes ten times as long.
#[derive(Clone, Debug)]
pub struct Key {
    pub knob: Knob,
    /// Absolute.
    pub path: PathBuf,
}

impl Key {
    pub const fn new(knob: Knob, path: PathBuf) -> Self {
        Self { knob, path }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.knob.cmp(&other.knob).then_with(|| self.path.as_os_str().cmp(other.path.as_os_str()))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_children() {
        let key = |knob, path: &str| Key::new(knob, path.into());
        let mut keys = ["/a/b", "/a-b", "/a", "/a/b/c"].map(|path| key(Knob::Quota, path)).to_vec();
        keys.push(key(Knob::Freeze, "/z"));
        keys.sort();
        let paths: Vec<_> = keys.iter().map(|key| key.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/z", "/a", "/a-b", "/a/b", "/a/b/c"]);
    }
}

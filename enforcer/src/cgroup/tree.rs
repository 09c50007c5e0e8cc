//! Follows the directories that the policy names, in every mounted hierarchy.
//!
//! inotify says where something changed; what changed is always looked up. A slow rescan catches what inotify could not
//! (queue overflow, no watches left). A directory is known by its inode, so one that was removed and made again under
//! the same name is a new one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

use super::{
    hierarchy::{Hierarchy, Mounts},
    kubepods,
    pattern::Pattern,
};
use crate::model::GroupId;

/// How often everything is looked at again, although inotify reported nothing.
const RESCAN: Duration = Duration::from_mins(3);
/// The same while some directories could not be watched.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(2);
/// So long at a time: whoever asks has other things to do.
const SLICE: Duration = Duration::from_millis(3);
/// Links of a directory without subdirectories, where the file system counts these; Linux' cgroups do
/// (`kernfs_refresh_inode`).
const LEAF_LINKS: u64 = 2;

/// A directory that belongs to a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Directory {
    pub hierarchy: Hierarchy,
    /// Below the hierarchy's mount point.
    pub path: PathBuf,
    pub inode: u64,
    pub group: GroupId,
    /// It matches the group's pattern itself and lies below no other match: limits go here.
    pub is_top: bool,
}

/// What happened to a directory of some group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Appeared(Directory),
    Vanished(Directory),
}

/// The directories in sight.
#[derive(Debug)]
pub struct Tree {
    mounts: Mounts,
    patterns: Vec<(GroupId, Pattern)>,
    /// Pods by the name of their directories; `None`: pods are not looked for.
    pods: Option<Pods>,
    inotify: Option<Inotify>,
    watched: HashMap<WatchDescriptor, Place>,
    seen: BTreeMap<Place, Seen>,
    rescan_at: Duration,
    /// A rescan that goes on: what is still to be looked at.
    rescan: Option<Vec<Place>>,
    generation: u64,
    unwatched: usize,
    buffer: Vec<u8>,
}

/// Where a directory is: below the mount point of which hierarchy.
type Place = (Hierarchy, PathBuf);

/// Which pod belongs to which group, and where its directories are. Either may be known first.
#[derive(Debug, Default)]
struct Pods {
    groups: HashMap<String, GroupId>,
    directories: HashMap<String, BTreeSet<Place>>,
}

#[derive(Debug)]
struct Seen {
    inode: u64,
    /// It is a pod's own directory.
    pod: Option<String>,
    owner: Option<Owner>,
    watch: Option<WatchDescriptor>,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    group: GroupId,
    is_top: bool,
}

impl Tree {
    /// Nothing is looked at before the first [`Tree::poll`]. `pods`: those of a kubelet are looked for as well, see
    /// [`Tree::assign`].
    pub fn new(mounts: Mounts, patterns: Vec<(GroupId, Pattern)>, pods: bool) -> Self {
        let inotify = Inotify::init()
            .inspect_err(|err| tracing::warn!(%err, "no inotify: new cgroups are found by rescans only"))
            .ok();
        Self {
            mounts,
            patterns,
            pods: pods.then(Pods::default),
            inotify,
            watched: HashMap::new(),
            seen: BTreeMap::new(),
            rescan_at: Duration::ZERO,
            rescan: None,
            generation: 0,
            unwatched: 0,
            buffer: vec![0; 16 << 10],
        }
    }

    pub const fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// Directories that could not be watched and are found by rescans only.
    pub const fn unwatched(&self) -> usize {
        self.unwatched
    }

    /// Gives a pod's directories to a group, whether they are there already or not. `uid`: by which they are named. What changed
    /// by that.
    pub fn assign(&mut self, uid: &str, group: GroupId) -> Vec<Change> {
        self.give(uid, Some(group))
    }

    /// A pod of that name belonged to this group. Another one of the same name may belong to another by now, and keeps what it has.
    pub fn unassign(&mut self, uid: &str, group: GroupId) -> Vec<Change> {
        let is_its = |pods: &Pods| pods.groups.get(uid) == Some(&group);
        if self.pods.as_ref().is_some_and(is_its) { self.give(uid, None) } else { Vec::new() }
    }

    fn give(&mut self, uid: &str, group: Option<GroupId>) -> Vec<Change> {
        let Some(pods) = &mut self.pods else { return Vec::new() };
        match group {
            Some(group) => _ = pods.groups.insert(uid.to_owned(), group),
            None => _ = pods.groups.remove(uid),
        }
        let mut changes = Vec::new();
        for top in pods.directories.get(uid).into_iter().flatten() {
            let below = self.seen.range_mut(top.clone()..);
            for (place, seen) in below.take_while(|(place, _)| is_at_or_below(place, top)) {
                changes.extend(seen.directory(place).map(Change::Vanished));
                seen.owner = group.map(|group| Owner { group, is_top: place == top });
                changes.extend(seen.directory(place).map(Change::Appeared));
            }
        }
        // Children before their parents when they go.
        changes.sort_by_key(|change| matches!(change, Change::Appeared(_)));
        changes
    }

    /// Names of the pods whose directories are there and that belong to no group.
    #[cfg(test)]
    fn strangers(&self) -> impl Iterator<Item = &str> {
        let pods = self.pods.iter();
        pods.flat_map(|pods| pods.directories.keys().filter(|uid| !pods.groups.contains_key(*uid)))
            .map(String::as_str)
    }

    /// What changed since the last call, oldest first. Looks at everything the first time, and when inotify lost something;
    /// otherwise blocks for some milliseconds at most, and where there is `haste` only for what inotify reported.
    pub fn poll(&mut self, now: Duration, haste: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut everything = self.generation == 0;
        for (place, mask) in self.events() {
            if mask.contains(EventMask::Q_OVERFLOW) {
                everything = true;
            }
            let Some((hierarchy, path)) = place else { continue };
            if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
                self.visit((hierarchy, path), &mut changes);
            } else if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                self.forget(hierarchy, &path, &mut changes);
            }
        }
        if everything {
            self.rescan = None;
            self.scan(now, None, &mut changes);
        } else if !haste && (self.rescan.is_some() || now >= self.rescan_at) {
            self.scan(now, Some(Instant::now() + SLICE), &mut changes);
        }
        changes
    }

    /// Directories of interest that inotify reported, by path; `None` for the queue's own events.
    fn events(&mut self) -> Vec<(Option<Place>, EventMask)> {
        let mut events = Vec::new();
        let Some(inotify) = &mut self.inotify else { return events };
        loop {
            let batch = match inotify.read_events(&mut self.buffer) {
                Ok(batch) => batch,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return events,
                Err(err) => {
                    tracing::warn!(%err, "inotify cannot be read: looking at everything again");
                    events.push((None, EventMask::Q_OVERFLOW));
                    return events;
                }
            };
            for event in batch {
                if event.mask.contains(EventMask::IGNORED) {
                    self.watched.remove(&event.wd);
                    continue;
                }
                let is_directory = event.mask.contains(EventMask::ISDIR);
                let place = event.name.filter(|_| is_directory).and_then(|name: &OsStr| {
                    let (hierarchy, parent) = self.watched.get(&event.wd)?;
                    Some((*hierarchy, parent.join(name)))
                });
                events.push((place, event.mask));
            }
        }
    }

    /// Begins to look at everything, or goes on with that, until a certain time.
    fn scan(&mut self, now: Duration, until: Option<Instant>, changes: &mut Vec<Change>) {
        let mut left = self.rescan.take().unwrap_or_else(|| {
            self.generation += 1;
            self.mounts.iter().map(|(hierarchy, _)| (hierarchy, PathBuf::new())).collect()
        });
        while let Some(place) = left.pop() {
            self.look(&place, &mut left, changes);
            if until.is_some_and(|until| Instant::now() >= until) {
                self.rescan = Some(left);
                return;
            }
        }
        let gone: Vec<_> = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.generation != self.generation)
            .map(|(place, _)| place.clone())
            .collect();
        for (hierarchy, path) in gone {
            self.forget(hierarchy, &path, changes);
        }
        self.unwatched = self.seen.values().filter(|seen| seen.watch.is_none()).count();
        self.rescan_at = now + if self.unwatched > 0 { RESCAN_UNWATCHED } else { RESCAN };
    }

    /// Looks at a directory and everything below it.
    fn visit(&mut self, place: Place, changes: &mut Vec<Change>) {
        let mut left = vec![place];
        while let Some(place) = left.pop() {
            self.look(&place, &mut left, changes);
        }
    }

    /// Looks at one directory. Those below it are left to be looked at.
    fn look(&mut self, place: &Place, left: &mut Vec<Place>, changes: &mut Vec<Change>) {
        let (hierarchy, path) = (place.0, place.1.as_path());
        let pod = self.pod_of(path);
        let owner = self.owner_of(hierarchy, path, pod.as_deref());
        let Some(name) = path.to_str() else { return };
        let leads_somewhere =
            || self.pods.is_some() || self.patterns.iter().any(|(_, pattern)| pattern.may_match_below(name));
        if owner.is_none() && !leads_somewhere() {
            return;
        }
        let directory = self.mounts.point(hierarchy).join(path);
        let Ok(metadata) = fs::metadata(&directory) else {
            self.forget(hierarchy, path, changes);
            return;
        };
        let inode = metadata.ino();
        if self.seen.get(place).is_some_and(|seen| seen.inode != inode) {
            self.forget(hierarchy, path, changes);
        }
        let is_new = if let Some(seen) = self.seen.get_mut(place) {
            seen.generation = self.generation;
            false
        } else {
            if let (Some(pods), Some(pod)) = (&mut self.pods, &pod) {
                pods.directories.entry(pod.clone()).or_default().insert(place.clone());
            }
            let seen = Seen { inode, pod, owner, watch: None, generation: self.generation };
            changes.extend(seen.directory(place).map(Change::Appeared));
            self.seen.insert(place.clone(), seen);
            true
        };
        // Watch first, list afterwards: what is made in between is reported twice rather than never.
        let was_watched = self.watch(place, &directory, is_new);
        let metadata = if was_watched { Ok(metadata) } else { fs::metadata(&directory) };
        if metadata.is_ok_and(|metadata| metadata.nlink() != LEAF_LINKS) {
            left.extend(subdirectories(&directory).map(|name| (hierarchy, path.join(name))));
        }
    }

    /// Whether it was watched before. Of one that is not new, it is counted already that it cannot be.
    fn watch(&mut self, place: &Place, directory: &Path, is_new: bool) -> bool {
        let seen = self.seen.get_mut(place).expect("BUG: watching what was not seen");
        if seen.watch.is_some() {
            return true;
        }
        let Some(watches) = self.inotify.as_ref().map(Inotify::watches) else {
            self.unwatched += usize::from(is_new);
            return false;
        };
        match add_watch(watches, directory) {
            Ok(watch) => {
                self.watched.insert(watch.clone(), place.clone());
                seen.watch = Some(watch);
            }
            // It went meanwhile; the watch on its parent tells.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                if self.unwatched == 0 {
                    tracing::warn!(
                        %err, directory = %directory.display(),
                        "a cgroup cannot be watched and is found by rescans every {RESCAN_UNWATCHED:?}; \
                         raise fs.inotify.max_user_watches"
                    );
                }
                self.unwatched += usize::from(is_new);
            }
        }
        false
    }

    /// Drops a directory and everything below it.
    fn forget(&mut self, hierarchy: Hierarchy, path: &Path, changes: &mut Vec<Change>) {
        let top = (hierarchy, path.to_owned());
        let below = self.seen.range(top.clone()..).map(|(place, _)| place);
        let gone: Vec<Place> = below.take_while(|place| is_at_or_below(place, &top)).cloned().collect();
        // Children before their parents.
        for place in gone.into_iter().rev() {
            let Some(seen) = self.seen.remove(&place) else { continue };
            if let Some(watch) = &seen.watch {
                self.watched.remove(watch);
            }
            changes.extend(seen.directory(&place).map(Change::Vanished));
            if let (Some(pods), Some(pod)) = (&mut self.pods, seen.pod)
                && let Some(directories) = pods.directories.get_mut(&pod)
            {
                directories.remove(&place);
                if directories.is_empty() {
                    pods.directories.remove(&pod);
                }
            }
        }
    }

    /// The pod whose own directory this is, by its name there.
    fn pod_of(&self, path: &Path) -> Option<String> {
        self.pods.as_ref()?;
        let is_pods = |path: &Path| kubepods::parse(path.to_str()?);
        let pod = is_pods(path)?;
        // Below a pod's directory all paths are that pod's.
        let is_own = pod.container.is_none() && path.parent().is_none_or(|parent| is_pods(parent).is_none());
        is_own.then_some(pod.uid)
    }

    fn owner_of(&self, hierarchy: Hierarchy, path: &Path, pod: Option<&str>) -> Option<Owner> {
        if let Some(parent) = path.parent()
            && let Some(Seen { owner: Some(owner), .. }) = self.seen.get(&(hierarchy, parent.to_owned()))
        {
            return Some(Owner { group: owner.group, is_top: false });
        }
        let name = path.to_str()?;
        let by_name =
            self.patterns.iter().find(|(_, pattern)| pattern.matches(name)).map(|(group, _)| *group);
        let of_pod = || self.pods.as_ref()?.groups.get(pod?).copied();
        Some(Owner { group: by_name.or_else(of_pod)?, is_top: true })
    }
}

/// Paths are ordered by their components, so what is below a directory follows it without a gap.
fn is_at_or_below((hierarchy, path): &Place, top: &Place) -> bool {
    *hierarchy == top.0 && path.starts_with(&top.1)
}

impl Seen {
    fn directory(&self, place: &Place) -> Option<Directory> {
        let Owner { group, is_top } = self.owner?;
        Some(Directory { hierarchy: place.0, path: place.1.clone(), inode: self.inode, group, is_top })
    }
}

fn add_watch(mut watches: Watches, directory: &Path) -> io::Result<WatchDescriptor> {
    let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::MOVED_TO;
    watches.add(directory, mask | WatchMask::ONLYDIR)
}

/// Names of the directories in `directory`; empty if it went meanwhile.
fn subdirectories(directory: &Path) -> impl Iterator<Item = std::ffi::OsString> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree over plain directories: inotify and inodes work there as they do in cgroupfs.
    struct Host {
        root: tempfile::TempDir,
        tree: Tree,
        now: Duration,
    }

    impl Host {
        fn new(patterns: &[(usize, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let mounts = Mounts { v2: Some(root.path().to_owned()), ..Mounts::default() };
            let patterns =
                patterns.iter().map(|(group, text)| (GroupId(*group), Pattern::new(text).unwrap())).collect();
            Self { root, tree: Tree::new(mounts, patterns, true), now: Duration::ZERO }
        }

        fn make(&self, path: &str) {
            fs::create_dir_all(self.root.path().join(path)).unwrap();
        }

        fn remove(&self, path: &str) {
            fs::remove_dir(self.root.path().join(path)).unwrap();
        }

        /// One line per change since the last call: `+group path` or `-group path`, `!` after a top directory.
        fn changes(&mut self) -> Vec<String> {
            self.now += Duration::from_millis(100);
            lines(&self.tree.poll(self.now, false))
        }
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        let line = |sign: char, directory: &Directory| {
            let top = if directory.is_top { "!" } else { "" };
            format!("{sign}{} {}{top}", directory.group.0, directory.path.display())
        };
        let lines = changes.iter().map(|change| match change {
            Change::Appeared(directory) => line('+', directory),
            Change::Vanished(directory) => line('-', directory),
        });
        lines.collect()
    }

    const UID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

    #[test]
    fn a_pods_directories_belong_to_its_group_whichever_is_known_first() {
        let pod = format!("kubepods/burstable/pod{UID}");
        let expected = [format!("+7 {pod}!"), format!("+7 {pod}/5f2c1c9a8e0d")];
        // The directory first.
        let mut host = Host::new(&[]);
        host.make(&format!("{pod}/5f2c1c9a8e0d"));
        assert!(host.changes().is_empty());
        assert_eq!(host.tree.strangers().collect::<Vec<_>>(), [UID]);
        assert_eq!(lines(&host.tree.assign(UID, GroupId(7))), expected);
        assert_eq!(host.tree.strangers().count(), 0);
        // The group first.
        let mut host = Host::new(&[]);
        host.changes();
        assert!(host.tree.assign(UID, GroupId(7)).is_empty());
        host.make(&format!("{pod}/5f2c1c9a8e0d"));
        assert_eq!(host.changes(), expected);
    }

    #[test]
    fn either_may_go_first_as_well() {
        let pod = format!("kubepods/besteffort/pod{UID}");
        let mut host = Host::new(&[]);
        host.make(&pod);
        host.changes();
        host.tree.assign(UID, GroupId(1));
        // Another group takes it over.
        let moved = host.tree.assign(UID, GroupId(2));
        assert_eq!(lines(&moved), [format!("-1 {pod}!"), format!("+2 {pod}!")]);
        assert!(host.tree.unassign(UID, GroupId(1)).is_empty(), "no longer its");
        assert_eq!(lines(&host.tree.unassign(UID, GroupId(2))), [format!("-2 {pod}!")]);
        assert_eq!(host.tree.strangers().collect::<Vec<_>>(), [UID]);
        host.remove(&pod);
        assert!(host.changes().is_empty());
        assert_eq!(host.tree.strangers().count(), 0);
    }

    #[test]
    fn the_directories_of_kubelet_itself_are_nobodys() {
        let mut host = Host::new(&[]);
        host.make("kubepods.slice/kubepods-besteffort.slice");
        host.make("system.slice/ssh.service");
        assert!(host.changes().is_empty());
        assert_eq!(host.tree.strangers().count(), 0);
    }

    #[test]
    fn what_is_there_at_the_start_is_found_with_everything_below_it() {
        let mut host = Host::new(&[(0, "web"), (1, "jobs/*")]);
        host.make("web/a/b");
        host.make("jobs/7");
        host.make("other/web");
        let mut found = host.changes();
        found.sort();
        assert_eq!(found, ["+0 web!", "+0 web/a", "+0 web/a/b", "+1 jobs/7!"]);
        assert!(host.changes().is_empty(), "nothing is reported twice");
    }

    #[test]
    fn directories_that_come_and_go_are_followed() {
        let mut host = Host::new(&[(1, "jobs/*")]);
        host.changes();
        host.make("jobs");
        assert!(host.changes().is_empty());
        host.make("jobs/7/inner");
        assert_eq!(host.changes(), ["+1 jobs/7!", "+1 jobs/7/inner"]);
        host.remove("jobs/7/inner");
        host.remove("jobs/7");
        assert_eq!(host.changes(), ["-1 jobs/7/inner", "-1 jobs/7!"]);
    }

    #[test]
    fn a_directory_made_again_under_its_old_name_is_a_new_one() {
        let mut host = Host::new(&[(0, "web")]);
        host.make("web");
        host.changes();
        // A sibling takes the inode number meanwhile, as in cgroupfs, which never reuses one soon.
        host.remove("web");
        host.make("placeholder");
        host.make("web");
        let changes = host.changes();
        assert_eq!(changes, ["-0 web!", "+0 web!"]);
    }

    #[test]
    fn a_rescan_finds_what_no_event_told() {
        let mut host = Host::new(&[(0, "web")]);
        host.make("web/a");
        host.changes();
        host.tree.inotify = None;
        host.make("web/b");
        fs::remove_dir(host.root.path().join("web/a")).unwrap();
        assert!(host.changes().is_empty());
        host.now += RESCAN;
        assert_eq!(host.changes(), ["+0 web/b", "-0 web/a"]);
    }

    #[test]
    fn a_rescan_goes_on_where_it_left_off() {
        let mut host = Host::new(&[(0, "web")]);
        for place in 0..5 {
            host.make(&format!("web/{place}"));
        }
        host.changes();
        host.tree.inotify = None;
        host.make("web/new");
        host.remove("web/0");
        let mut changes = Vec::new();
        // One directory at a time.
        let slices = (1..100).find(|_| {
            host.tree.scan(host.now, Some(Instant::now()), &mut changes);
            host.tree.rescan.is_none()
        });
        assert!(slices > Some(5), "{slices:?}");
        assert_eq!(lines(&changes), ["+0 web/new", "-0 web/0"]);
    }
}

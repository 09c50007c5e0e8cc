//! Groups and their directories come and go.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use super::{Agent, levers, pods};
use crate::{
    cgroup::tree::{Change, Directory},
    model::GroupId,
    policy::{Class, Group},
};

/// Complaints about the same thing come this often at most.
const COMPLAINTS: Duration = Duration::from_mins(1);

impl Agent {
    /// A group came, or what holds for it has changed. One of the policy is in the recording's header.
    pub(super) fn join(&mut self, id: GroupId, group: Group) {
        let now = self.snapshot.taken_at;
        if let (Some(recorder), true) = (&mut self.recorder, id.0 >= self.policy.groups.len()) {
            recorder.join(id, &group);
        }
        let measured = self.meter.join(id, &group, now);
        // Where one finds no room, many do not.
        if let Err(unmeasured) = measured
            && now >= self.complain_at
        {
            self.complain_at = now + COMPLAINTS;
            tracing::warn!(group = group.name, "requests and waits are not measured: {unmeasured}");
        }
        self.governor.join(id, &group);
        self.memory.join(id, &group);
        for lesson in self.lessons.join(id, &group) {
            self.meter.set_objective(lesson);
        }
        self.roster.push((id, Some(group.clone())));
        self.groups.put(id, group);
    }

    /// A group went. Its directories belong to nobody any more.
    fn leave(&mut self, id: GroupId, now: Duration) {
        if let Some(recorder) = &mut self.recorder {
            recorder.leave(id);
        }
        self.governor.leave(id);
        self.memory.leave(id);
        self.lessons.leave(id);
        self.meter.leave(id, now);
        self.groups.take(id);
        self.roster.push((id, None));
    }

    /// Pods come and go as the API server says.
    pub(super) fn follow_pods(&mut self, now: Duration, changes: Vec<pods::Change>) {
        for change in changes {
            match change {
                pods::Change::Join { id, group, cgroup_uid } => {
                    let is_known = self.groups.get(id).is_some();
                    self.join(id, group);
                    if !is_known {
                        let changes = self.tree.assign(&cgroup_uid, id);
                        self.take_in(changes, now);
                    }
                }
                pods::Change::Leave { id, cgroup_uid } => {
                    let changes = self.tree.unassign(&cgroup_uid, id);
                    self.take_in(changes, now);
                    self.leave(id, now);
                }
            }
        }
    }

    pub(super) fn follow_cgroups(&mut self, now: Duration, haste: bool) {
        let changes = self.tree.poll(now, haste);
        self.take_in(changes, now);
    }

    /// Directories came and went.
    fn take_in(&mut self, changes: Vec<Change>, now: Duration) {
        let mut regrouped: Vec<GroupId> = Vec::new();
        let mut may_have_room = self.meter.has_uncounted() && now >= self.report_at;
        for change in changes {
            let (Change::Appeared(directory) | Change::Vanished(directory)) = &change;
            if directory.is_top && !regrouped.contains(&directory.group) {
                regrouped.push(directory.group);
            }
            if let Some(cluster) = &mut self.cluster {
                cluster.touch(directory.group);
            }
            match change {
                Change::Appeared(directory) => self.count(directory, now),
                Change::Vanished(directory) => {
                    self.meter.vanished(&directory, now);
                    may_have_room |= self.meter.has_uncounted();
                }
            }
        }
        if may_have_room {
            for directory in self.meter.take_uncounted() {
                self.count(directory, now);
            }
        }
        for group in regrouped {
            let Some(policy) = self.groups.get(group) else { continue };
            if policy.class == Class::BE {
                let levers = levers::of(group, &self.meter, self.tree.mounts());
                self.meter.set_levers(group, levers.and(policy.levers));
            }
        }
    }

    fn count(&mut self, directory: Directory, now: Duration) {
        let path = self.tree.mounts().point(directory.hierarchy).join(&directory.path);
        // Those that were there before the agent were not waited for.
        self.joins.extend(age(&path).filter(|age| *age < self.started.elapsed()));
        self.meter.appeared(directory, now, &mut self.probes, &path);
    }
}

/// How long ago a cgroup directory was made: its change time, until something is made in it.
fn age(directory: &Path) -> Option<Duration> {
    let metadata = std::fs::metadata(directory).ok()?;
    let since_epoch =
        Duration::new(metadata.ctime().try_into().ok()?, metadata.ctime_nsec().try_into().ok()?);
    (UNIX_EPOCH + since_epoch).elapsed().ok()
}

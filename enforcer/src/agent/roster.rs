//! Groups and their directories come and go.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use super::{Agent, citizen::Citizen, levers, pods};
use crate::{
    cgroup::tree::{Change, Directory},
    model::GroupId,
    policy::{Class, Group},
};

/// Complaints about the same thing come this often at most.
const COMPLAINTS: Duration = Duration::from_mins(1);
/// Seconds until every group's levers were looked at again.
const LEVER_LOOKS: u64 = 10;

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
        let mut touch = |directory: &Directory, cluster: &mut Option<Citizen>| {
            if directory.is_top && !regrouped.contains(&directory.group) {
                regrouped.push(directory.group);
            }
            if let Some(cluster) = cluster {
                cluster.touch(directory.group);
            }
        };
        for change in changes {
            let (Change::Appeared(directory) | Change::Vanished(directory)) = &change;
            touch(directory, &mut self.cluster);
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
                touch(&directory, &mut self.cluster);
                self.count(directory, now);
            }
        }
        for group in regrouped {
            self.look_at_levers(group);
        }
    }

    /// What a group can be held back with changes when its directories do, and when controllers are enabled or taken off
    /// them, of which nothing tells: some groups per second have their turn.
    pub(super) fn look_at_some_levers(&mut self, now: Duration) {
        let has_its_turn = |id: &GroupId| (now.as_secs() + id.0 as u64).is_multiple_of(LEVER_LOOKS);
        let groups: Vec<GroupId> = self.groups.iter().map(|(id, _)| id).filter(has_its_turn).collect();
        for group in groups {
            self.look_at_levers(group);
        }
    }

    fn look_at_levers(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(id).filter(|group| group.class == Class::BE) else { return };
        let levers = levers::of(id, &self.meter, self.tree.mounts());
        self.meter.set_levers(id, levers.and(group.levers));
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

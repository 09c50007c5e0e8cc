//! The pods of this node as groups: who is there, what it is to the others, what it was promised.
//!
//! The API server says so; the last word is kept on disk, so that an agent that starts while no API server answers knows its
//! pods all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    cluster::{
        notes::{About, Kind, Note, PodRef},
        pod::{Pod, Role},
    },
    model::GroupId,
    places::Places,
    policy::{self, Class, Group, Kubernetes},
};

/// A place that was left is not used again for so long: the CPUs may still remember who ran there.
const REST: Duration = Duration::from_secs(1);
/// Of what is known, a copy is written at most so often.
const SAVE: Duration = Duration::from_secs(5);
const FILE: &str = "pods.json";

/// A group that came, changed or went.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The pod's directories are named by this UID.
    Join {
        id: GroupId,
        group: Group,
        cgroup_uid: String,
    },
    Leave {
        id: GroupId,
        cgroup_uid: String,
    },
}

/// All pods of this node.
#[derive(Debug)]
pub struct Roster {
    settings: Kubernetes,
    /// By UID.
    members: BTreeMap<String, Member>,
    taken: Places<String>,
    left: Vec<(GroupId, Duration)>,
    /// Groups of the policy; pods have the places after them.
    first: usize,
    file: PathBuf,
    is_changed: bool,
    saved_at: Duration,
    notes: Vec<Note>,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Member {
    pub pod: Pod,
    /// `None`: it has ended, or there is no place left.
    pub id: Option<GroupId>,
    /// What was wrong with its annotation, told already.
    complained: Option<String>,
}

impl Member {
    pub fn class(&self) -> Class {
        class(&self.pod)
    }
}

impl Roster {
    /// `first`: the place of the first pod.
    pub fn new(settings: Kubernetes, first: usize, state_dir: &Path) -> Self {
        Self {
            settings,
            members: BTreeMap::new(),
            taken: Places::default(),
            left: Vec::new(),
            first,
            file: state_dir.join(FILE),
            is_changed: false,
            saved_at: Duration::ZERO,
            notes: Vec::new(),
        }
    }

    /// What the last agent knew.
    pub fn remembered(&self) -> Vec<Pod> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(err) => {
                if err.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(%err, file = %self.file.display(), "pods of an earlier agent are not known");
                }
                return Vec::new();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|err| {
            tracing::warn!(%err, file = %self.file.display(), "pods of an earlier agent are not known");
            Vec::new()
        })
    }

    /// By UID.
    pub fn member(&self, uid: &str) -> Option<&Member> {
        self.members.get(uid)
    }

    /// The member that is this group.
    pub fn member_of(&self, id: GroupId) -> Option<&Member> {
        self.taken.get(id).and_then(|uid| self.members.get(uid))
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The pod that is this group.
    pub fn pod(&self, id: GroupId) -> Option<&Pod> {
        self.member_of(id).map(|member| &member.pod)
    }

    /// What people are to be told.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// A pod came, or is another one now.
    pub fn put(&mut self, pod: Pod, now: Duration) -> Vec<Change> {
        let mut changes = Vec::new();
        let uid = pod.uid.clone();
        let member = self.members.get(&uid).cloned();
        if member.as_ref().is_some_and(|member| member.pod == pod && (member.id.is_some() || !pod.is_active))
        {
            return changes;
        }
        self.is_changed = true;
        let (group, wrong) = group(&self.settings, &pod);
        let mut complained = member.as_ref().and_then(|member| member.complained.clone());
        if wrong != complained {
            if let Some(what) = &wrong {
                let text = format!("annotation {} is not followed: {what}", crate::cluster::protocol::SLO);
                tracing::warn!(pod = pod.key(), "{text}");
                let about = About::Pod(reference(&pod));
                self.notes.push(Note { about, kind: Kind::InvalidSlo, text, related: None });
            }
            complained = wrong;
        }
        let mut id = member.as_ref().and_then(|member| member.id);
        let was = member.as_ref().map(|member| self::group(&self.settings, &member.pod).0);
        // Another class, or directories of another name, make another group of it.
        let is_another = member.as_ref().zip(was.as_ref()).is_some_and(|(member, was)| {
            was.class != group.class
                || was.is_victim() != group.is_victim()
                || member.pod.cgroup_uid != pod.cgroup_uid
        });
        if let Some(left) = id.filter(|_| is_another || !pod.is_active) {
            let cgroup_uid = member.as_ref().expect("BUG: it has an id").pod.cgroup_uid.clone();
            changes.push(self.leave(left, cgroup_uid, now));
            id = None;
        }
        let is_new_or_changed = id.is_none() || was.is_none_or(|was| was != group);
        if pod.is_active {
            id = id.or_else(|| self.vacant(now));
            match id {
                Some(id) if is_new_or_changed => {
                    self.taken.put(id, uid.clone());
                    changes.push(Change::Join { id, group, cgroup_uid: pod.cgroup_uid.clone() });
                }
                Some(_) => {}
                None => self.complain_of_many(),
            }
        }
        self.members.insert(uid, Member { pod, id, complained });
        changes
    }

    /// A pod went.
    pub fn remove(&mut self, uid: &str, now: Duration) -> Vec<Change> {
        let Some(member) = self.members.remove(uid) else { return Vec::new() };
        self.is_changed = true;
        member.id.into_iter().map(|id| self.leave(id, member.pod.cgroup_uid.clone(), now)).collect()
    }

    /// There may be room for some that had none.
    pub fn admit_waiting(&mut self, now: Duration) -> Vec<Change> {
        let waiting = self.members.values().filter(|member| member.id.is_none() && member.pod.is_active);
        let waiting: Vec<Pod> = waiting.map(|member| member.pod.clone()).collect();
        waiting.into_iter().flat_map(|pod| self.put(pod, now)).collect()
    }

    /// These are all: others went while nobody looked.
    pub fn retain(&mut self, all: &BTreeSet<String>, now: Duration) -> Vec<Change> {
        let gone: Vec<String> = self.members.keys().filter(|uid| !all.contains(*uid)).cloned().collect();
        gone.iter().flat_map(|uid| self.remove(uid, now)).collect()
    }

    /// Keeps a copy for the next agent.
    pub fn save_now_and_then(&mut self, now: Duration) {
        if !self.is_changed || now < self.saved_at + SAVE {
            return;
        }
        (self.is_changed, self.saved_at) = (false, now);
        let pods: Vec<&Pod> = self.members.values().map(|member| &member.pod).collect();
        let text = serde_json::to_vec(&pods).expect("BUG: plain data");
        let new = self.file.with_extension("new");
        let saved = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file));
        if let Err(err) = saved {
            tracing::warn!(%err, "the next agent will not know its pods before the API server answers");
        }
    }

    fn leave(&mut self, id: GroupId, cgroup_uid: String, now: Duration) -> Change {
        self.taken.take(id);
        self.left.push((id, now));
        Change::Leave { id, cgroup_uid }
    }

    fn vacant(&mut self, now: Duration) -> Option<GroupId> {
        self.left.retain(|(_, at)| now < *at + REST);
        let end = self.first + self.settings.pods_max as usize;
        let may_be_used = |id: GroupId| id.0 >= self.first && !self.left.iter().any(|(left, _)| *left == id);
        (self.first..end).map(GroupId).find(|&id| self.taken.get(id).is_none() && may_be_used(id))
    }

    fn complain_of_many(&mut self) {
        let text = format!(
            "more than {} pods: some are not told apart; raise limits.pods in the policy",
            self.settings.pods_max
        );
        self.notes.push(Note { about: About::Node, kind: Kind::TooManyPods, text, related: None });
    }
}

/// As events name it.
pub fn reference(pod: &Pod) -> PodRef {
    PodRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
}

fn class(pod: &Pod) -> Class {
    match pod.role() {
        Role::LatencySensitive => Class::LS,
        Role::BestEffort => Class::BE,
        Role::System => Class::SYSTEM,
    }
}

/// What a pod is to the others, and what is wrong with what it says of itself.
fn group(settings: &Kubernetes, pod: &Pod) -> (Group, Option<String>) {
    let class = class(pod);
    let (slo, wrong) = match pod.slo.as_deref().map(policy::slo_of_annotation) {
        Some(Ok(_)) if class != Class::LS => {
            (None, Some(format!("the pod is {class}, and only LS pods are promised anything")))
        }
        Some(Ok(slo)) => (Some(slo), None),
        Some(Err(what)) => (None, Some(what)),
        None => (None, None),
    };
    (settings.group(pod.key(), pod.workload.clone(), class, slo), wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Slo;

    const SECOND: Duration = Duration::from_secs(1);

    fn roster(pods_max: u32, state: &Path) -> Roster {
        let slo = Slo { run_queue_wait_p99: Some(Duration::from_millis(2)), ..Slo::default() };
        Roster::new(Kubernetes { slo, pods_max, ..Kubernetes::default() }, 2, state)
    }

    fn pod(name: &str, class: &str) -> Pod {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("{name}-uid"),
                "labels": { "koordinator.sh/qosClass": class },
            },
            "spec": { "containers": [{ "name": "main" }] },
            "status": { "phase": "Running" },
        }))
        .unwrap();
        Pod::of(&pod).unwrap()
    }

    fn ids(changes: &[Change]) -> Vec<(bool, usize)> {
        let id = |change: &Change| match change {
            Change::Join { id, .. } => (true, id.0),
            Change::Leave { id, .. } => (false, id.0),
        };
        changes.iter().map(id).collect()
    }

    #[test]
    fn pods_take_places_and_leave_them_to_rest() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = roster(2, state.path());
        assert_eq!(ids(&roster.put(pod("a", "LS"), SECOND)), [(true, 2)]);
        assert!(roster.put(pod("a", "LS"), SECOND).is_empty(), "nothing is new");
        assert_eq!(ids(&roster.put(pod("b", "BE"), SECOND)), [(true, 3)]);
        assert!(roster.put(pod("c", "BE"), SECOND).is_empty(), "there is no place left");
        assert_eq!(roster.take_notes()[0].kind, Kind::TooManyPods);
        // The place rests before the pod that waits gets it.
        assert_eq!(ids(&roster.remove("a-uid", SECOND)), [(false, 2)]);
        assert!(roster.admit_waiting(SECOND).is_empty());
        assert_eq!(ids(&roster.admit_waiting(3 * SECOND)), [(true, 2)]);
        assert_eq!(roster.pod(GroupId(2)).map(Pod::key), Some("shop/c".to_owned()));
    }

    #[test]
    fn another_class_makes_another_group_and_another_objective_does_not() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = roster(8, state.path());
        roster.put(pod("a", "LS"), SECOND);
        let faster = Pod { slo: Some(r#"{"requestLatency":{"p99":"5ms"}}"#.to_owned()), ..pod("a", "LS") };
        let changes = roster.put(faster.clone(), SECOND);
        let [Change::Join { id: GroupId(2), group, .. }] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(group.slo.request_latency_p99, Some(Duration::from_millis(5)));
        assert_eq!(ids(&roster.put(Pod { slo: None, ..pod("a", "BE") }, SECOND)), [(false, 2), (true, 3)]);
        let ended = Pod { is_active: false, ..pod("a", "BE") };
        assert_eq!(ids(&roster.put(ended, SECOND)), [(false, 3)]);
        assert!(roster.remove("a-uid", SECOND).is_empty());
    }

    #[test]
    fn a_first_promise_makes_another_group_for_only_those_have_a_row_in_the_probes_tables() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = Roster::new(Kubernetes { pods_max: 8, ..Kubernetes::default() }, 2, state.path());
        assert_eq!(ids(&roster.put(pod("a", "LS"), SECOND)), [(true, 2)]);
        let promised = Pod { slo: Some(r#"{"requestLatency":{"p99":"5ms"}}"#.to_owned()), ..pod("a", "LS") };
        assert_eq!(ids(&roster.put(promised, SECOND)), [(false, 2), (true, 3)]);
        assert_eq!(ids(&roster.put(pod("a", "LS"), SECOND)), [(false, 3), (true, 4)]);
    }

    #[test]
    fn an_annotation_that_cannot_be_read_is_told_once_and_the_default_holds() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = roster(8, state.path());
        let odd = Pod { slo: Some("{".to_owned()), ..pod("a", "LS") };
        let changes = roster.put(odd.clone(), SECOND);
        let [Change::Join { group, .. }] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(group.slo.run_queue_wait_p99, Some(Duration::from_millis(2)));
        assert_eq!(roster.take_notes().len(), 1);
        roster.put(Pod { sub_priority: 7, ..odd }, SECOND);
        assert!(roster.take_notes().is_empty());
    }

    #[test]
    fn the_next_agent_knows_them() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = roster(8, state.path());
        roster.put(pod("a", "LS"), SECOND);
        roster.put(pod("b", "BE"), SECOND);
        roster.save_now_and_then(10 * SECOND);
        let next = self::roster(8, state.path());
        assert_eq!(next.remembered().len(), 2);
        fs::write(state.path().join(FILE), "[{").unwrap();
        assert!(next.remembered().is_empty());
    }

    #[test]
    fn who_is_not_among_all_went() {
        let state = tempfile::tempdir().unwrap();
        let mut roster = roster(8, state.path());
        roster.put(pod("a", "LS"), SECOND);
        roster.put(pod("b", "BE"), SECOND);
        assert_eq!(ids(&roster.retain(&["b-uid".to_owned()].into(), SECOND)), [(false, 2)]);
    }
}

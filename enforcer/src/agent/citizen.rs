//! The agent as a part of a cluster: its pods, what it tells of them, and what it is told to do with them.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::Result;

use super::{
    evictions::{Evictions, Situation},
    memory::MemoryMeter,
    meter::Meter,
    pods::{Change, Roster, reference},
    specs::Specs,
    usage::UsageMeter,
};
use crate::{
    actuation::{key::Key, standing::Standing},
    cgroup::hierarchy::Mounts,
    cluster::{
        lend::Lent,
        link::{Command, Link, Options, Place, Update},
        notes::{About, Kind, Note, PodRef},
    },
    decision::{
        evict::Node,
        plan::{Plan, Reason},
        utilisation,
    },
    model::{GroupId, Snapshot},
    policy::{Class, Eviction, Kubernetes, Suppression},
    report::{history::NewPlan, ledger::ClusterLedger},
    units::Amounts,
};

/// Everything that a node without Kubernetes does not need.
pub struct Citizen {
    link: Link,
    settings: Kubernetes,
    pub roster: Roster,
    usage: UsageMeter,
    specs: Specs,
    evictions: Evictions,
    cpus: f64,
    allocatable: Amounts,
    lent: Option<Lent>,
    squeeze: Option<String>,
    /// Pods that were said to be held back, by place and UID.
    throttled: BTreeSet<(GroupId, String)>,
    /// How the last agent left off; taken once.
    remembered: Option<Vec<Change>>,
}

impl Citizen {
    /// `first`: the place of the first pod's group.
    ///
    /// # Errors
    /// Where no API server could ever be reached.
    pub fn start(
        place: Place,
        mut settings: Kubernetes,
        cpus: u32,
        first: usize,
        state_dir: &Path,
        shadow: bool,
    ) -> Result<Self> {
        if shadow && settings.eviction == Eviction::On {
            // Not asked for, so not counted as asked.
            settings.eviction = Eviction::DryRun;
        }
        let link = Link::start(Options {
            place,
            mode: settings.mode,
            config_namespace: settings.config_namespace.clone(),
            peaks: settings.peaks,
            shadow,
        })?;
        let mut roster = Roster::new(settings.clone(), first, state_dir);
        let known = roster.remembered();
        let remembered = known.into_iter().flat_map(|pod| roster.put(pod, Duration::ZERO)).collect();
        Ok(Self {
            link,
            settings,
            roster,
            usage: UsageMeter::default(),
            specs: Specs::default(),
            evictions: Evictions::default(),
            cpus: f64::from(cpus),
            allocatable: Amounts::default(),
            lent: None,
            squeeze: None,
            throttled: BTreeSet::new(),
            remembered: Some(remembered),
        })
    }

    /// What the cluster said since the last call, as far as it makes groups come and go.
    pub fn follow(&mut self, now: Duration) -> Vec<Change> {
        let mut changes = self.remembered.take().unwrap_or_default();
        let updates: Vec<Update> = self.link.updates().collect();
        for update in updates {
            match update {
                Update::Pod(pod) => {
                    let id = self.roster.member(&pod.uid).and_then(|member| member.id);
                    changes.extend(self.roster.put(*pod, now));
                    // Containers get their ids when they start.
                    if let Some(id) = id {
                        self.specs.touch(id);
                    }
                }
                Update::Gone(uid) => changes.extend(self.roster.remove(&uid, now)),
                Update::All(all) => changes.extend(self.roster.retain(&all, now)),
                Update::Strategy(strategy) => self.usage.set_strategy(*strategy),
                Update::Settings(settings) => {
                    self.usage.set_hosts(&settings.hosts);
                    self.specs.set_settings(*settings);
                }
                Update::Node { allocatable, cpu_normalization_ratio } => {
                    self.allocatable = allocatable;
                    self.specs.set_node(allocatable, cpu_normalization_ratio);
                }
                Update::Lent(lent) => self.lent = Some(*lent),
            }
        }
        for change in &changes {
            match change {
                Change::Join { id, .. } => self.specs.touch(*id),
                Change::Leave { id, .. } => {
                    self.specs.touch(*id);
                    self.usage.leave(*id);
                }
            }
        }
        changes
    }

    /// A directory of a group came or went.
    pub fn touch(&mut self, id: GroupId) {
        self.specs.touch(id);
    }

    /// What stood by the pods' specs and may stand no longer, and what is to stand now.
    pub fn standing(&mut self, meter: &Meter, mounts: &Mounts) -> (Vec<Key>, Standing) {
        self.specs.refresh(&self.roster, meter, mounts)
    }

    /// Takes in a look at the node, and adds what the cluster's rules say about it.
    pub fn tick(&mut self, snapshot: &mut Snapshot, elapsed: Duration) {
        self.usage.tick(snapshot, elapsed);
        snapshot.be_cores_max = self.be_cores_max();
    }

    fn be_cores_max(&self) -> Option<f64> {
        if self.settings.suppression != Suppression::Utilisation {
            return None;
        }
        let (node, system) = self.usage.node().zip(self.usage.system())?;
        let be = self.roster.members().filter(|member| member.class() == Class::BE);
        let be_milli: i64 = be.filter_map(|member| self.usage.last_of(member.id?)).sum();
        let others =
            Amounts { cpu_milli: (node.cpu_milli - system.cpu_milli - be_milli).max(0), memory_bytes: 0 };
        let capacity = Amounts { cpu_milli: milli(self.cpus), memory_bytes: 0 };
        let reserved = capacity.without(self.allocatable);
        utilisation::be_cores(&self.specs.settings().thresholds, self.cpus, others, system, reserved)
    }

    /// Once a second: measures, tells, evicts. Returns pods for which there is room again.
    pub fn report(
        &mut self,
        now: Duration,
        plan: &Plan,
        decided: &[NewPlan],
        memory: &MemoryMeter,
        mounts: &Mounts,
    ) -> Vec<Change> {
        self.usage.sample(now, &self.roster, memory, mounts);
        for new in decided {
            self.tell_of(new);
        }
        self.tell_of_squeeze(plan);
        let victim = self.victim(plan);
        let situation = Situation {
            memory: self.memory(),
            cpus: self.cpus,
            lent: self.lent.as_ref().and_then(|lent| lent.offered),
            victim: victim.as_ref(),
        };
        let thresholds = self.specs.settings().thresholds;
        let seen = (&self.roster, &self.usage);
        for eviction in self.evictions.look(now, self.settings.eviction, &thresholds, plan, situation, seen) {
            self.link.tell(Command::Evict(eviction));
        }
        for note in self.roster.take_notes() {
            self.link.tell(Command::Note(note));
        }
        let held_back = self.held_back(plan);
        if let Some(usage) = self.usage.tell(now, &self.roster, held_back) {
            self.link.tell(Command::Usage(Box::new(usage)));
        }
        self.roster.save_now_and_then(now);
        self.roster.admit_waiting(now)
    }

    /// For metrics and the status page.
    pub fn told(&self) -> ClusterLedger {
        let pods = self.roster.members().filter(|member| member.id.is_some()).count();
        ClusterLedger { pods, lent: self.lent.clone(), evictions: self.evictions.total }
    }

    /// The whole node's memory.
    fn memory(&self) -> Node {
        self.usage.node().map_or_else(Node::default, |node| Node {
            memory_capacity: self.usage.memory_capacity(),
            memory_used: node.memory_bytes,
        })
    }

    /// CPUs that BE would use, were it not squeezed.
    fn held_back(&self, plan: &Plan) -> f64 {
        if !matches!(plan.reason, Reason::Squeeze { .. }) {
            return 0.0;
        }
        let taken = plan.restraints.iter().filter_map(|(id, restraint)| {
            let request = self.roster.pod(*id)?.batch_request.cpu_milli as f64 / 1e3;
            Some((request - restraint.cores()?).max(0.0))
        });
        taken.sum()
    }

    fn victim(&self, plan: &Plan) -> Option<PodRef> {
        let Reason::Squeeze { objective, .. } = plan.reason else { return None };
        self.roster.pod(objective.victim).map(reference)
    }

    /// The node's condition.
    fn tell_of_squeeze(&mut self, plan: &Plan) {
        let squeeze = match plan.reason {
            Reason::Squeeze { .. } if !plan.restraints.is_empty() => {
                Some(plan.reason.sentence(|id| self.name(id)))
            }
            _ => None,
        };
        if squeeze.is_some() != self.squeeze.is_some() {
            self.squeeze.clone_from(&squeeze);
            self.link.tell(Command::Squeeze(squeeze));
        }
    }

    fn name(&self, id: GroupId) -> &str {
        self.roster.pod(id).map_or("a group of the policy", |pod| &pod.name)
    }

    /// Who is held back now and was not, who no longer is, and who suffers. A trial is over in some seconds, and BE that yields
    /// is not held back.
    fn tell_of(&mut self, new: &NewPlan) {
        if matches!(new.plan.reason, Reason::Trial { .. }) {
            return;
        }
        let squeezes = matches!(new.plan.reason, Reason::Squeeze { .. });
        let held = new.plan.restraints.keys().filter(|_| squeezes);
        let after: BTreeSet<(GroupId, String)> =
            held.filter_map(|id| Some((*id, self.roster.pod(*id)?.uid.clone()))).collect();
        let before = std::mem::replace(&mut self.throttled, after.clone());
        let victim = self.victim(&new.plan);
        let text = new.plan.reason.sentence(|id| self.name(id));
        let tell = |id: &GroupId, kind, related: Option<PodRef>| {
            let is_it = |uid: &str| before.iter().all(|(other, was)| other != id || was == uid);
            if let Some(pod) = self.roster.pod(*id).filter(|pod| kind != Kind::Restored || is_it(&pod.uid)) {
                let note = Note { about: About::Pod(reference(pod)), kind, text: text.clone(), related };
                self.link.tell(Command::Note(note));
            }
        };
        for (id, _) in after.difference(&before) {
            tell(id, Kind::Throttled, victim.clone());
        }
        for (id, _) in before.difference(&after) {
            tell(id, Kind::Restored, None);
        }
        if let Reason::Squeeze { objective, .. } = new.plan.reason
            && before.is_empty()
        {
            let culprit = after.first().and_then(|(id, _)| self.roster.pod(*id)).map(reference);
            tell(&objective.victim, Kind::SloViolated, culprit);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a number of CPUs")]
const fn milli(cores: f64) -> i64 {
    (cores * 1e3) as i64
}

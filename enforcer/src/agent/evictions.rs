//! Asks for evictions, not too many and not the same one twice.

use std::{collections::HashMap, time::Duration};

use super::{
    pods::{Member, Roster, reference},
    usage::UsageMeter,
};
use crate::{
    cluster::{class::Qos, link::Eviction, notes::PodRef},
    decision::{
        evict::{self, BeCpu, CPU_COOL_DOWN, Candidate, MEMORY_COOL_DOWN, Node, Verdict},
        plan::{Plan, Reason},
        thresholds::Thresholds,
    },
    model::{GroupId, Restraint},
    policy::{self, Class},
    signal::average::averaged,
    units::Amounts,
};

/// After an eviction for latency, what it changed must be seen.
const LATENCY_COOL_DOWN: Duration = Duration::from_mins(1);
/// A pod that was asked to go, and does not, is not asked again before. One that does is known by its deletion, which comes
/// much sooner; one that its budget protects may be let go meanwhile.
const ASKED: Duration = Duration::from_secs(20);

/// What was asked for.
#[derive(Debug, Default)]
pub struct Evictions {
    memory_at: Option<Duration>,
    cpu_at: Option<Duration>,
    latency_at: Option<Duration>,
    /// By UID, with what the pod was using.
    asked: HashMap<String, (Duration, Amounts)>,
    be: BeCpu,
    at: Duration,
    pub total: u64,
}

/// What is known of the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Situation<'a> {
    pub memory: Node,
    pub cpus: f64,
    /// Batch CPU that is lent.
    pub lent: Option<Amounts>,
    /// Whom BE hurts.
    pub victim: Option<&'a PodRef>,
}

impl Evictions {
    /// Once a second: who has to go now.
    pub fn look(
        &mut self,
        now: Duration,
        setting: policy::Eviction,
        thresholds: &Thresholds,
        plan: &Plan,
        situation: Situation<'_>,
        (roster, usage): (&Roster, &UsageMeter),
    ) -> Vec<Eviction> {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        self.asked.retain(|uid, (at, _)| now < *at + ASKED && roster.member(uid).is_some());
        let be = be_cpu(plan, situation, thresholds, roster, usage);
        let window = thresholds.satisfaction.map_or(Duration::ZERO, |satisfaction| satisfaction.window);
        self.be = BeCpu {
            request_milli: be.request_milli,
            used_milli: averaged(
                self.be.used_milli,
                be.used_milli,
                elapsed,
                window.max(Duration::from_millis(1)),
            ),
            limit_milli: averaged(
                self.be.limit_milli,
                be.limit_milli,
                elapsed,
                window.max(Duration::from_millis(1)),
            ),
        };
        if setting == policy::Eviction::Off {
            return Vec::new();
        }
        let is_due = |at: Option<Duration>, cool_down| at.is_none_or(|at| now >= at + cool_down);
        let candidates = self.candidates(plan, roster, usage);
        let going: i64 = self.asked.values().map(|(_, used)| used.memory_bytes).sum();
        let mut verdicts = Vec::new();
        if is_due(self.memory_at, MEMORY_COOL_DOWN) {
            let node = Node { memory_used: situation.memory.memory_used - going, ..situation.memory };
            verdicts = evict::for_memory(node, thresholds, &candidates);
            note(&mut self.memory_at, now, &verdicts);
        }
        // Both what is and what was lately must call for it.
        if verdicts.is_empty() && is_due(self.cpu_at, CPU_COOL_DOWN) {
            let now_too = !evict::for_cpu(be, thresholds, &candidates).is_empty();
            verdicts = if now_too { evict::for_cpu(self.be, thresholds, &candidates) } else { Vec::new() };
            note(&mut self.cpu_at, now, &verdicts);
        }
        if verdicts.is_empty() && is_due(self.latency_at, LATENCY_COOL_DOWN) {
            let all = of_class(roster).filter(|member| !self.asked.contains_key(&member.pod.uid));
            let all: Vec<Candidate> = all.filter_map(|member| candidate(member, plan, usage)).collect();
            let why = "BE has been squeezed to its floor for two minutes for the sake of LS";
            verdicts = evict::for_latency(&plan.evict, &all, why);
            note(&mut self.latency_at, now, &verdicts);
        }
        let ask = |verdict: Verdict| {
            let pod = roster.pod(verdict.id)?;
            self.asked.insert(pod.uid.clone(), (now, usage.mean_of(verdict.id).unwrap_or_default()));
            let is_dry_run = setting == policy::Eviction::DryRun;
            self.total += u64::from(!is_dry_run);
            Some(Eviction {
                pod: reference(pod),
                why: verdict.why,
                victim: situation.victim.cloned(),
                is_dry_run,
            })
        };
        verdicts.into_iter().filter_map(ask).collect()
    }

    /// Pods with the label, as in Koordinator.
    fn candidates(&self, plan: &Plan, roster: &Roster, usage: &UsageMeter) -> Vec<Candidate> {
        let labelled = of_class(roster).filter(|member| member.pod.qos == Some(Qos::Be));
        labelled
            .filter(|member| !self.asked.contains_key(&member.pod.uid))
            .filter_map(|member| candidate(member, plan, usage))
            .collect()
    }
}

fn note(at: &mut Option<Duration>, now: Duration, verdicts: &[Verdict]) {
    if !verdicts.is_empty() {
        *at = Some(now);
    }
}

fn of_class(roster: &Roster) -> impl Iterator<Item = &Member> {
    roster
        .members()
        .filter(|member| member.class() == Class::BE && !member.pod.is_static && !member.pod.is_ending)
}

fn candidate(member: &Member, plan: &Plan, usage: &UsageMeter) -> Option<Candidate> {
    let (id, pod) = (member.id?, &member.pod);
    let used = usage.mean_of(id).map(|used| Amounts {
        memory_bytes: usage
            .memory_of(id)
            .map_or(used.memory_bytes, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        ..used
    });
    Some(Candidate {
        id,
        priority: pod.priority_value,
        eviction_priority: pod.eviction.priority,
        batch_cpu_request_milli: pod.batch_request.cpu_milli,
        used,
        is_guilty: matches!(plan.reason, Reason::Squeeze { .. }) && plan.restraints.contains_key(&id),
        policy: pod.eviction.policy.clone(),
    })
}

/// What BE gets and what it was lent.
fn be_cpu(
    plan: &Plan,
    situation: Situation<'_>,
    thresholds: &Thresholds,
    roster: &Roster,
    usage: &UsageMeter,
) -> BeCpu {
    let members: Vec<(GroupId, &Member)> =
        of_class(roster).filter_map(|member| Some((member.id?, member))).collect();
    let request = |member: &Member| member.pod.batch_request.cpu_milli as f64;
    let held = |id: &GroupId| plan.restraints.get(id).and_then(Restraint::cores).map(|cores| cores * 1e3);
    let by_allocatable = thresholds.satisfaction.is_some_and(|satisfaction| satisfaction.by_allocatable);
    let limit_milli = match situation.lent.filter(|lent| lent.cpu_milli > 0) {
        Some(lent) if by_allocatable => lent.cpu_milli as f64,
        _ if members.iter().all(|(id, _)| held(id).is_none()) => situation.cpus * 1e3,
        _ => members.iter().map(|(id, member)| held(id).unwrap_or_else(|| request(member))).sum(),
    };
    BeCpu {
        request_milli: members.iter().map(|(_, member)| request(member)).sum(),
        used_milli: members
            .iter()
            .filter_map(|(id, _)| usage.mean_of(*id))
            .map(|used| used.cpu_milli as f64)
            .sum(),
        limit_milli,
    }
}

//! Which BE pods have to go, and why. Pure.
//!
//! Thresholds and orders are Koordinator's (`pkg/koordlet/qosmanager/plugins/{memoryevict,cpuevict}`); the guilty first, where
//! guilt is known, is enforcer's, and so is the trigger that LS suffers although BE has been at its floor for long.

use std::time::Duration;

use super::thresholds::Thresholds;
use crate::{
    model::GroupId,
    units::{Amounts, whole},
};

/// Nobody is evicted so soon after the last one: what it gives back must be seen first.
pub const MEMORY_COOL_DOWN: Duration = Duration::from_secs(4);
pub const CPU_COOL_DOWN: Duration = Duration::from_secs(20);

/// A BE pod that could go.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub id: GroupId,
    /// `spec.priority`.
    pub priority: i32,
    /// By annotation; lower ones go first.
    pub eviction_priority: i32,
    pub batch_cpu_request_milli: i64,
    /// `None`: not known, such ones go last.
    pub used: Option<Amounts>,
    /// LS suffers because of it.
    pub is_guilty: bool,
    /// Features that may evict it; `None`: all.
    pub policy: Option<Vec<String>>,
}

/// What the node looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Node {
    /// Of the whole node.
    pub memory_capacity: i64,
    pub memory_used: i64,
}

/// What BE gets of the CPU that it was lent, over the strategy's window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BeCpu {
    pub request_milli: f64,
    pub used_milli: f64,
    /// What it may use.
    pub limit_milli: f64,
}

/// Names of features in pods' eviction policies (koordinator `pkg/features`).
const MEMORY: &str = "BEMemoryEvict";
const CPU: &str = "BECPUEvict";

/// Pods to evict, in order, each with the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub id: GroupId,
    pub why: String,
}

/// Where the node's memory runs out: enough of BE goes to reach the lower threshold.
pub fn for_memory(node: Node, thresholds: &Thresholds, candidates: &[Candidate]) -> Vec<Verdict> {
    if !thresholds.enable || node.memory_capacity <= 0 || thresholds.memory_evict_percent == 0 {
        return Vec::new();
    }
    let percent = node.memory_used.saturating_mul(100) / node.memory_capacity;
    if percent < thresholds.memory_evict_percent {
        return Vec::new();
    }
    let release = node.memory_capacity / 100 * (percent - thresholds.memory_evict_lower_percent);
    let memory = |candidate: &Candidate| candidate.used.map(|used| used.memory_bytes);
    let mut order = may_be_evicted(candidates, MEMORY);
    order.sort_by_key(|candidate| (candidate.priority, std::cmp::Reverse(memory(candidate))));
    let why = format!(
        "the node's memory is in use to {percent} %, from {} % on BE is evicted until it is {} %",
        thresholds.memory_evict_percent, thresholds.memory_evict_lower_percent
    );
    until(release, order, |candidate| memory(candidate).unwrap_or_default(), &why)
}

/// Where BE gets so little of the CPU that it was lent that fewer pods would get more done.
pub fn for_cpu(be: BeCpu, thresholds: &Thresholds, candidates: &[Candidate]) -> Vec<Verdict> {
    let Some(satisfaction) = thresholds.satisfaction.filter(|_| thresholds.enable) else { return Vec::new() };
    if be.request_milli <= 0.0 {
        return Vec::new();
    }
    // Who does not use what it may would not use more.
    let wants_more = be.limit_milli < 1_000.0
        || be.used_milli >= be.limit_milli * satisfaction.usage_percent as f64 / 100.0;
    let satisfied = be.limit_milli / be.request_milli;
    if !wants_more || satisfied * 100.0 > satisfaction.lower_percent as f64 {
        return Vec::new();
    }
    let release = be.request_milli * (satisfaction.upper_percent as f64 / 100.0 - satisfied);
    let eagerness = |candidate: &Candidate| {
        let used = candidate.used.map_or(0, |used| used.cpu_milli) as f64;
        used / candidate.batch_cpu_request_milli.max(1) as f64
    };
    let mut order = may_be_evicted(candidates, CPU);
    order.sort_by(|a, b| a.priority.cmp(&b.priority).then(eagerness(b).total_cmp(&eagerness(a))));
    let why = format!(
        "BE gets {:.0} % of the CPU that it requests, from {} % down it is evicted until it gets {} %",
        satisfied * 100.0,
        satisfaction.lower_percent,
        satisfaction.upper_percent
    );
    until(whole(release), order, |candidate| candidate.batch_cpu_request_milli, &why)
}

/// Where LS suffers although these groups have been at their floors for long: the guiltiest pod goes.
pub fn for_latency(asked: &[GroupId], candidates: &[Candidate], why: &str) -> Vec<Verdict> {
    let mut order: Vec<&Candidate> =
        candidates.iter().filter(|candidate| asked.contains(&candidate.id)).collect();
    order.sort_by_key(|candidate| {
        let used = candidate.used.map(|used| used.cpu_milli);
        (candidate.eviction_priority, candidate.priority, std::cmp::Reverse(used))
    });
    order.into_iter().take(1).map(|candidate| Verdict { id: candidate.id, why: why.to_owned() }).collect()
}

fn may_be_evicted<'a>(candidates: &'a [Candidate], feature: &str) -> Vec<&'a Candidate> {
    let allows = |candidate: &&Candidate| {
        candidate.policy.as_ref().is_none_or(|features| features.iter().any(|name| name == feature))
    };
    candidates.iter().filter(allows).collect()
}

/// The guilty first, then in this order, until so much is given back.
fn until(release: i64, order: Vec<&Candidate>, gives: impl Fn(&Candidate) -> i64, why: &str) -> Vec<Verdict> {
    let (guilty, others): (Vec<&Candidate>, Vec<&Candidate>) =
        order.into_iter().partition(|candidate| candidate.is_guilty);
    let mut left = release;
    let mut verdicts = Vec::new();
    for candidate in guilty.into_iter().chain(others) {
        if left <= 0 {
            break;
        }
        left -= gives(candidate);
        verdicts.push(Verdict { id: candidate.id, why: why.to_owned() });
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::thresholds::Satisfaction;

    const GI: i64 = 1 << 30;

    fn candidate(id: usize, priority: i32, cpu_milli: i64, memory_gi: i64) -> Candidate {
        Candidate {
            id: GroupId(id),
            priority,
            eviction_priority: 0,
            batch_cpu_request_milli: 1_000,
            used: Some(Amounts { cpu_milli, memory_bytes: memory_gi * GI }),
            is_guilty: false,
            policy: None,
        }
    }

    fn ids(verdicts: &[Verdict]) -> Vec<usize> {
        verdicts.iter().map(|verdict| verdict.id.0).collect()
    }

    fn thresholds() -> Thresholds {
        Thresholds { enable: true, ..Thresholds::default() }
    }

    #[test]
    fn memory_is_given_back_down_to_the_lower_threshold() {
        let candidates = [candidate(1, 5_500, 0, 1), candidate(2, 5_000, 0, 2), candidate(3, 5_000, 0, 4)];
        let evicted = |used_gi, candidates: &[Candidate]| {
            let node = Node { memory_capacity: 100 * GI, memory_used: used_gi * GI };
            ids(&for_memory(node, &thresholds(), candidates))
        };
        assert!(evicted(69, &candidates).is_empty());
        assert_eq!(evicted(70, &candidates), [3], "two gigabytes: the greatest user of the lowest priority");
        assert_eq!(evicted(73, &candidates), [3, 2]);
        assert_eq!(evicted(99, &candidates), [3, 2, 1]);
        let mut guilty = candidates.clone();
        guilty[0].is_guilty = true;
        assert_eq!(evicted(70, &guilty), [1, 3]);
        let mut spared = candidates.clone();
        spared[2].policy = Some(vec!["BECPUEvict".to_owned()]);
        assert_eq!(evicted(70, &spared), [2]);
        let mut unknown = candidates;
        unknown[2].used = None;
        assert_eq!(evicted(70, &unknown), [2], "what is not known gives nothing back");
        let off = Thresholds { enable: false, ..thresholds() };
        assert!(for_memory(Node { memory_capacity: GI, memory_used: GI }, &off, &unknown).is_empty());
    }

    #[test]
    fn cpu_is_given_back_until_the_others_are_satisfied() {
        let satisfaction = Satisfaction {
            lower_percent: 40,
            upper_percent: 60,
            usage_percent: 90,
            window: Duration::from_mins(1),
            by_allocatable: false,
        };
        let thresholds = Thresholds { satisfaction: Some(satisfaction), ..thresholds() };
        let candidates =
            [candidate(1, 5_000, 100, 0), candidate(2, 5_000, 900, 0), candidate(3, 5_500, 900, 0)];
        let evicted = |limit_milli, used_milli| {
            ids(&for_cpu(BeCpu { request_milli: 6_000.0, used_milli, limit_milli }, &thresholds, &candidates))
        };
        assert_eq!(evicted(2_000.0, 1_900.0), [2, 1], "a third: 1.6 cores are given back");
        assert!(evicted(2_000.0, 1_000.0).is_empty(), "it does not use what it may");
        assert!(evicted(3_000.0, 3_000.0).is_empty());
        assert_eq!(evicted(500.0, 10.0), [2, 1, 3], "next to nothing is never enough");
    }

    #[test]
    fn for_latency_one_goes_at_a_time() {
        let candidates =
            [candidate(1, 5_000, 100, 0), candidate(2, 5_000, 900, 0), candidate(3, 5_000, 950, 0)];
        assert_eq!(ids(&for_latency(&[GroupId(1), GroupId(2)], &candidates, "why")), [2]);
        assert!(for_latency(&[], &candidates, "why").is_empty());
    }
}

//! What may be lent to batch work, by Koordinator's formula, with every term kept.
//!
//! Source: koordinator `pkg/slo-controller/noderesource/plugins/{batchresource/plugin.go,util/util.go}`, v1.8. The same
//! inputs give the same numbers, with one exception: there, a pod without a metric is forgotten by the policy
//! `maxUsageRequest`; here it counts with its request, as that project's own NUMA path has it. Two terms are enforcer's:
//! `peaks` and `held_back`; both are zero where they are not known.

mod strategy;
mod sync;

use serde::{Deserialize, Serialize};

pub use self::{
    strategy::{CalculatePolicy, Strategy},
    sync::{Offer, must_publish},
};
use crate::units::Amounts;

/// A pod that goes before batch work: running or pending, its priority class neither batch nor free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub request: Amounts,
    /// `None`: not reported yet.
    pub used: Option<Amounts>,
    /// Quality of service LSE: its CPUs are its own, used or not.
    pub owns_cpus: bool,
}

/// What the formula is fed with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    pub capacity: Amounts,
    /// What kubelet offers of it.
    pub allocatable: Amounts,
    /// By the node's reservation annotation.
    pub reserved_by_annotation: Amounts,
    /// By whatever is neither a pod nor a host application.
    pub system_used: Amounts,
    /// By host applications that go before batch work.
    pub host_applications_used: Amounts,
    pub pods: Vec<Pod>,
    /// By pods that were reported and are no longer listed, and that went before batch work.
    pub dangling_used: Amounts,
    /// CPU speed in relation to the reference; 1 or less changes nothing.
    pub cpu_normalization_ratio: Option<f64>,
    /// Batch resources that another system has given out.
    pub third_party: Amounts,
    /// What high-priority use goes beyond its mean in its peaks.
    pub peaks: Amounts,
    /// What is being withheld from running batch work, because an LS group suffers.
    pub held_back: Amounts,
}

/// One resource, term by term. CPU in milli-cores, memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    pub policy: CalculatePolicy,
    pub capacity: i64,
    pub reclaim_threshold_percent: i64,
    /// capacity x (100 - reclaim threshold) / 100
    pub safety_margin: i64,
    /// capacity - what kubelet offers
    pub reserved_by_kubelet: i64,
    pub reserved_by_annotation: i64,
    /// The greater of both.
    pub reserved: i64,
    pub system_used: i64,
    pub host_applications_used: i64,
    /// The greater of the reserved and of system and host applications.
    pub system_used_or_reserved: i64,
    pub high_priority_request: i64,
    pub high_priority_used: i64,
    /// Sum of the greater of either, pod by pod.
    pub high_priority_max_used_request: i64,
    /// Contained in the two above.
    pub dangling_used: i64,
    /// Pods that count with their request because nothing is known of their use.
    pub pods_without_metric: usize,
    pub peaks: i64,
    pub held_back: i64,
    pub by_usage: i64,
    pub by_request: i64,
    pub by_max_usage_request: i64,
    pub threshold_percent: Option<i64>,
    /// capacity x threshold; `None`: no threshold.
    pub at_most: Option<i64>,
    /// By the policy, and at most the threshold.
    pub calculated: i64,
    pub cpu_normalization_ratio: Option<f64>,
    /// After normalization.
    pub origin: i64,
    pub third_party: i64,
    /// What is offered.
    pub batch: i64,
}

/// Both resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub cpu: Terms,
    pub memory: Terms,
}

impl Batch {
    /// What is offered.
    pub const fn offered(&self) -> Amounts {
        Amounts { cpu_milli: self.cpu.batch, memory_bytes: self.memory.batch }
    }

    /// Before other systems' part was taken off.
    pub const fn origin(&self) -> Amounts {
        Amounts { cpu_milli: self.cpu.origin, memory_bytes: self.memory.origin }
    }
}

/// What may be lent.
pub fn calculate(inputs: &Inputs, strategy: &Strategy) -> Batch {
    let kubelets = inputs.capacity.without(inputs.allocatable);
    let request: Amounts = inputs.pods.iter().map(|pod| pod.request).sum();
    let used: Amounts = inputs.pods.iter().copied().map(counted_use).sum();
    let larger: Amounts =
        inputs.pods.iter().map(|pod| pod.used.map_or(pod.request, |used| used.max(pod.request))).sum();
    let (used, larger) = (used + inputs.dangling_used, larger + inputs.dangling_used);
    let unknown = inputs.pods.iter().filter(|pod| pod.used.is_none()).count();
    let terms = |amount: fn(Amounts) -> i64, rule: &strategy::Rule, ratio: Option<f64>| {
        let capacity = amount(inputs.capacity);
        let safety_margin = part_of(capacity, 100 - rule.reclaim_threshold_percent);
        let (by_kubelet, by_annotation) = (amount(kubelets), amount(inputs.reserved_by_annotation));
        let reserved = by_kubelet.max(by_annotation);
        let (system, hosts) = (amount(inputs.system_used), amount(inputs.host_applications_used));
        let system_used_or_reserved = reserved.max(system.saturating_add(hosts));
        let (peaks, held_back) = (amount(inputs.peaks), amount(inputs.held_back));
        let left = |parts: &[i64]| {
            parts.iter().fold(capacity - safety_margin, |left, part| left.saturating_sub(*part)).max(0)
        };
        let by_usage = left(&[system_used_or_reserved, amount(used), peaks, held_back]);
        let by_request = left(&[reserved, amount(request)]);
        let by_max_usage_request = left(&[system_used_or_reserved, amount(larger), peaks, held_back]);
        let by_policy = match rule.policy {
            CalculatePolicy::Usage => by_usage,
            CalculatePolicy::Request => by_request,
            CalculatePolicy::MaxUsageRequest => by_max_usage_request,
        };
        let at_most = rule.threshold_percent.map(|percent| part_of(capacity, percent));
        let calculated = at_most.map_or(by_policy, |at_most| by_policy.min(at_most));
        let ratio = ratio.filter(|ratio| *ratio > 1.0);
        let origin = ratio.map_or(calculated, |ratio| scaled(calculated, ratio));
        let third_party = amount(inputs.third_party);
        Terms {
            policy: rule.policy,
            capacity,
            reclaim_threshold_percent: rule.reclaim_threshold_percent,
            safety_margin,
            reserved_by_kubelet: by_kubelet,
            reserved_by_annotation: by_annotation,
            reserved,
            system_used: system,
            host_applications_used: hosts,
            system_used_or_reserved,
            high_priority_request: amount(request),
            high_priority_used: amount(used),
            high_priority_max_used_request: amount(larger),
            dangling_used: amount(inputs.dangling_used),
            pods_without_metric: unknown,
            peaks,
            held_back,
            by_usage,
            by_request,
            by_max_usage_request,
            threshold_percent: rule.threshold_percent,
            at_most,
            calculated,
            cpu_normalization_ratio: ratio,
            origin,
            third_party,
            batch: origin.saturating_sub(third_party).max(0),
        }
    };
    Batch {
        cpu: terms(|amounts| amounts.cpu_milli, &strategy.cpu(), inputs.cpu_normalization_ratio),
        memory: terms(|amounts| amounts.memory_bytes, &strategy.memory(), None),
    }
}

/// A pod that nothing is known of uses what it requests.
fn counted_use(pod: Pod) -> Amounts {
    match pod.used {
        None => pod.request,
        Some(used) if pod.owns_cpus => Amounts { cpu_milli: pod.request.cpu_milli, ..used },
        Some(used) => used,
    }
}

fn part_of(amount: i64, percent: i64) -> i64 {
    scaled(amount, percent as f64 / 100.0)
}

#[expect(clippy::cast_possible_truncation, reason = "`as` truncates and saturates, as the original does")]
const fn scaled(amount: i64, factor: f64) -> i64 {
    (amount as f64 * factor) as i64
}

#[cfg(test)]
mod tests;

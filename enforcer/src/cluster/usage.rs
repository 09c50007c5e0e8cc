//! What the agent tells of its node: the pure part of `NodeMetric`.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    batch::resources,
    class::{Priority, Qos},
    objects::{
        AggregatedUsage, HostApplicationMetric, NodeMetricInfo, NodeMetricStatus, PodMetric, go_duration,
    },
};
use crate::{signal::usage::Percentiles, units::Amounts};

/// How often an agent tells of it. What the API server is told of that is for the writer to decide.
pub const TELL: Duration = Duration::from_secs(10);

/// Means over the strategy's window, percentiles over its longer ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub node: Used,
    /// By neither pods nor host applications.
    pub system: Used,
    pub pods: Vec<PodUsage>,
    pub hosts: Vec<HostUsage>,
    /// What pods that go before batch work use in their peaks of one second, beyond their mean.
    pub peaks: Amounts,
    /// What is withheld from running batch work, because an LS pod suffers.
    pub held_back: Amounts,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Used {
    pub mean: Amounts,
    pub windows: Vec<(Duration, Percentiles)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub used: Amounts,
    pub priority: Priority,
    pub qos: Qos,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUsage {
    pub name: String,
    pub used: Amounts,
    pub priority: Option<Priority>,
    pub qos: Option<Qos>,
}

impl Usage {
    /// As `NodeMetric` has it.
    pub fn status(&self, now: &Time) -> NodeMetricStatus {
        let windows = |used: &Used| {
            let all = used.windows.iter().map(|(window, percentiles)| AggregatedUsage {
                usage: by_rank(percentiles),
                duration: go_duration(*window),
            });
            Some(all.collect::<Vec<_>>()).filter(|all| !all.is_empty())
        };
        let pod = |pod: &PodUsage| PodMetric {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            pod_usage: resources(pod.used),
            priority: Some(pod.priority),
            qos: Some(pod.qos),
        };
        let host = |host: &HostUsage| HostApplicationMetric {
            name: host.name.clone(),
            usage: resources(host.used),
            priority: host.priority,
            qos: host.qos,
        };
        let hosts: Vec<_> = self.hosts.iter().map(host).collect();
        NodeMetricStatus {
            update_time: Some(now.clone()),
            node_metric: Some(NodeMetricInfo {
                node_usage: resources(self.node.mean),
                aggregated_node_usages: windows(&self.node),
                system_usage: resources(self.system.mean),
                aggregated_system_usages: windows(&self.system),
            }),
            pods_metric: Some(self.pods.iter().map(pod).collect()),
            host_application_metric: (!hosts.is_empty()).then_some(hosts),
            prod_reclaimable_metric: None,
            prod_peak_metric: None,
        }
    }
}

fn by_rank(of: &Percentiles) -> std::collections::BTreeMap<String, super::objects::ResourceMap> {
    [("avg", of.avg), ("p50", of.p50), ("p90", of.p90), ("p95", of.p95), ("p99", of.p99)]
        .map(|(rank, used)| (rank.to_owned(), resources(used)))
        .into()
}

//! What is used on this node: by each pod, by host applications, by the system, and in all.
//!
//! CPU of pods comes from the probes, to the nanosecond and at every tick; the node's from /proc/stat, without steal; memory
//! is what cannot be reclaimed (anonymous and unevictable), as Koordinator has it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use procfs::{Current as _, CurrentSI as _, KernelStats, Meminfo};

use super::{memory::MemoryMeter, pods::Roster};
use crate::{
    cgroup::{cpu_stat, hierarchy::Mounts, memory},
    cluster::{
        class::Qos,
        objects::{CgroupPath, HostApplication},
        usage::{HostUsage, PodUsage, TELL, Usage, Used},
    },
    decision::batch::Strategy,
    model::{GroupId, Snapshot},
    signal::usage::{Mean, Samples},
    units::{Amounts, whole},
};

/// How often memory of host applications is read.
const MEMORY: Duration = Duration::from_secs(10);
/// Peaks are this rank of samples of one second; a single one may be a hiccup.
const PEAK_WINDOW: Duration = Duration::from_mins(5);

/// Keeps means and percentiles.
#[derive(Debug)]
pub struct UsageMeter {
    strategy: Strategy,
    /// CPU seconds of each group since the last sample.
    ran: BTreeMap<GroupId, f64>,
    pods: BTreeMap<GroupId, Consumer>,
    hosts: Vec<Host>,
    node: Series,
    system: Series,
    /// All pods that go before batch work, together.
    high_priority: Series,
    node_cpu: Option<Duration>,
    sampled_at: Option<Duration>,
    memory_capacity: i64,
    memory_at: Duration,
    tell_at: Duration,
}

#[derive(Debug, Default)]
struct Consumer {
    mean: Mean,
    /// When it could last be read. `None`: never.
    memory_bytes: Option<u64>,
    /// CPU in the last sample.
    last_milli: i64,
}

#[derive(Debug)]
struct Host {
    application: HostApplication,
    path: PathBuf,
    cpu: Option<Duration>,
    consumer: Consumer,
}

#[derive(Debug)]
struct Series {
    mean: Mean,
    samples: Samples,
}

impl Consumer {
    /// Takes in what was used since the last sample, and returns the memory as far as it is known. Before that it has no
    /// mean: others take it to use what it requests, which is better than nothing at all.
    fn add(&mut self, now: Duration, cpu: Duration, window: Duration) -> u64 {
        if let Some(memory_bytes) = self.memory_bytes {
            self.mean.add(now, cpu, memory_bytes, window);
        }
        self.memory_bytes.unwrap_or_default()
    }
}

impl Series {
    fn new(strategy: &Strategy) -> Self {
        let longest = strategy.metric_aggregate_durations.iter().copied().max().unwrap_or_default();
        Self { mean: Mean::default(), samples: Samples::new(longest.max(PEAK_WINDOW)) }
    }

    fn add(&mut self, now: Duration, elapsed: Duration, cpu: f64, memory_bytes: u64, window: Duration) {
        self.mean.add(now, Duration::from_secs_f64(cpu.max(0.0)), memory_bytes, window);
        let cores = cpu / elapsed.as_secs_f64();
        self.samples.add(now, Amounts { cpu_milli: milli(cores), memory_bytes: signed(memory_bytes) });
    }

    fn used(&self, now: Duration, strategy: &Strategy) -> Used {
        let windows = strategy.metric_aggregate_durations.iter();
        Used {
            mean: self.mean.value().unwrap_or_default(),
            windows: windows
                .filter_map(|window| Some((*window, self.samples.percentiles(now, *window)?)))
                .collect(),
        }
    }
}

impl Default for UsageMeter {
    fn default() -> Self {
        Self::new(Strategy::default())
    }
}

impl UsageMeter {
    fn new(strategy: Strategy) -> Self {
        Self {
            ran: BTreeMap::new(),
            pods: BTreeMap::new(),
            hosts: Vec::new(),
            node: Series::new(&strategy),
            system: Series::new(&strategy),
            high_priority: Series::new(&strategy),
            strategy,
            node_cpu: None,
            sampled_at: None,
            memory_capacity: 0,
            memory_at: Duration::ZERO,
            tell_at: TELL,
        }
    }

    /// How far back means and percentiles reach.
    pub fn set_strategy(&mut self, strategy: Strategy) {
        let hosts = std::mem::take(&mut self.hosts);
        if strategy.metric_aggregate_durations == self.strategy.metric_aggregate_durations {
            (self.strategy, self.hosts) = (strategy, hosts);
        } else {
            *self = Self { hosts, ..Self::new(strategy) };
        }
    }

    /// Applications of the host that are reported beside pods.
    pub fn set_hosts(&mut self, applications: &[HostApplication]) {
        let host = |application: &HostApplication| Host {
            path: path_of(application),
            application: application.clone(),
            cpu: None,
            consumer: Consumer::default(),
        };
        self.hosts = applications.iter().map(host).collect();
    }

    /// Takes in a look at the node.
    pub fn tick(&mut self, node: &Snapshot, elapsed: Duration) {
        for (place, group) in node.groups.iter().enumerate() {
            if let Some(cores) = group.cpu_cores {
                *self.ran.entry(GroupId(place)).or_default() += cores * elapsed.as_secs_f64();
            }
        }
    }

    /// Forgets a group, whose place another one may take.
    pub fn leave(&mut self, id: GroupId) {
        self.ran.remove(&id);
        self.pods.remove(&id);
    }

    /// What a pod uses, on average.
    pub fn mean_of(&self, id: GroupId) -> Option<Amounts> {
        self.pods.get(&id)?.mean.value()
    }

    /// CPU that a pod used in the last second, in thousandths.
    pub fn last_of(&self, id: GroupId) -> Option<i64> {
        self.pods.get(&id).map(|consumer| consumer.last_milli)
    }

    /// Of the node, in bytes.
    pub const fn memory_capacity(&self) -> i64 {
        self.memory_capacity
    }

    /// Memory of a pod that cannot be reclaimed. `None`: not known.
    pub fn memory_of(&self, id: GroupId) -> Option<u64> {
        self.pods.get(&id)?.memory_bytes
    }

    /// What the whole node used in the last second, and its memory.
    pub fn node(&self) -> Option<Amounts> {
        self.node.samples.last()
    }

    /// What the system used in the last second.
    pub fn system(&self) -> Option<Amounts> {
        self.system.samples.last()
    }

    /// Once a second: one more sample of everything. What cannot be read is left out, and told once.
    pub fn sample(&mut self, now: Duration, roster: &Roster, pods: &MemoryMeter, mounts: &Mounts) {
        let reads_memory = now >= self.memory_at;
        if reads_memory {
            self.memory_at = now + MEMORY;
        }
        let (Ok(stat), Ok(memory)) = (KernelStats::current(), Meminfo::current()) else { return };
        let node_cpu = busy(&stat);
        self.memory_capacity = signed(memory.mem_total);
        let node_memory =
            memory.mem_total - memory.mem_available.unwrap_or(memory.mem_free).min(memory.mem_total);
        let window = self.strategy.metric_aggregate_duration;
        let last = (self.node_cpu.replace(node_cpu), self.sampled_at.replace(now));
        let (Some(last_cpu), Some(last_at)) = last else { return };
        let elapsed = now.saturating_sub(last_at);
        if elapsed.is_zero() {
            return;
        }
        let node = node_cpu.saturating_sub(last_cpu).as_secs_f64();
        let (mut others_cpu, mut others_memory, mut high) = (0.0, 0, (0.0, 0));
        for member in roster.members() {
            let Some(id) = member.id else { continue };
            let consumer = self.pods.entry(id).or_default();
            consumer.memory_bytes = pods.unreclaimable_bytes(id).or(consumer.memory_bytes);
            let cpu = self.ran.insert(id, 0.0).unwrap_or_default();
            let memory_bytes = consumer.add(now, Duration::from_secs_f64(cpu), window);
            consumer.last_milli = milli(cpu / elapsed.as_secs_f64());
            others_cpu += cpu;
            others_memory += memory_bytes;
            if member.pod.is_high_priority() {
                high.0 += cpu;
                high.1 += memory_bytes;
            }
        }
        for host in &mut self.hosts {
            let used = cpu_stat::used(mounts, &host.path);
            let cpu = used.zip(host.cpu).map(|(used, last)| used.saturating_sub(last)).unwrap_or_default();
            host.cpu = used;
            if reads_memory {
                let read = memory::unreclaimable(mounts, &host.path);
                host.consumer.memory_bytes = read.or(host.consumer.memory_bytes);
            }
            others_cpu += cpu.as_secs_f64();
            others_memory += host.consumer.add(now, cpu, window);
        }
        self.node.add(now, elapsed, node, node_memory, window);
        self.high_priority.add(now, elapsed, high.0, high.1, window);
        let system = (node - others_cpu).max(0.0);
        self.system.add(now, elapsed, system, node_memory.saturating_sub(others_memory), window);
    }

    /// What the cluster is to be told, now and then. `held_back`: CPUs that a squeeze withholds from BE.
    pub fn tell(&mut self, now: Duration, roster: &Roster, held_back: f64) -> Option<Usage> {
        // Nothing is known yet, also right after the times that means reach back were changed.
        if now < self.tell_at || self.node.mean.value().is_none() {
            return None;
        }
        self.tell_at = now + TELL;
        let pods = roster.members().filter_map(|member| {
            let used = self.pods.get(&member.id?)?.mean.value()?;
            let pod = &member.pod;
            Some(PodUsage {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                used,
                priority: pod.priority_with_default(),
                qos: pod.qos_with_default(),
            })
        });
        let hosts = self.hosts.iter().filter_map(|host| {
            Some(HostUsage {
                name: host.application.name.clone(),
                used: host.consumer.mean.value()?,
                priority: host.application.priority,
                qos: host.application.qos,
            })
        });
        let peak = self.high_priority.samples.percentiles(now, PEAK_WINDOW).map(|ranks| ranks.p99);
        let mean = self.high_priority.mean.value().unwrap_or_default();
        Some(Usage {
            node: self.node.used(now, &self.strategy),
            system: self.system.used(now, &self.strategy),
            pods: pods.collect(),
            hosts: hosts.collect(),
            // Memory of one second says no more than its mean: it is read every ten.
            peaks: Amounts {
                cpu_milli: peak.map_or(0, |peak| (peak.cpu_milli - mean.cpu_milli).max(0)),
                memory_bytes: 0,
            },
            held_back: Amounts { cpu_milli: milli(held_back), memory_bytes: 0 },
        })
    }
}

/// CPU time that was not idle, and not the hypervisor's.
fn busy(stat: &KernelStats) -> Duration {
    let total = &stat.total;
    let ticks = total.user
        + total.nice
        + total.system
        + total.irq.unwrap_or_default()
        + total.softirq.unwrap_or_default();
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// Below the hierarchies' mount points.
fn path_of(application: &HostApplication) -> PathBuf {
    let name = &application.name;
    let Some(CgroupPath { base, parent_dir, relative_path }) = &application.cgroup_path else {
        let parent =
            if application.qos == Some(Qos::Be) { "host-best-effort" } else { "host-latency-sensitive" };
        return PathBuf::from(parent).join(name);
    };
    let base = match base.as_str() {
        "Kubepods" => "kubepods",
        "KubepodsBurstable" => "kubepods/burstable",
        "KubepodsBesteffort" => "kubepods/besteffort",
        _ => "",
    };
    // Joined to an absolute path, the rest would be lost.
    [base, parent_dir, relative_path]
        .iter()
        .map(|part| part.trim_matches('/'))
        .filter(|part| !part.is_empty())
        .collect()
}

fn milli(cores: f64) -> i64 {
    whole((cores * 1e3).round())
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_applications_are_where_koordinator_puts_them() {
        let application = |qos, cgroup_path| HostApplication {
            name: "nginx".to_owned(),
            qos,
            cgroup_path,
            ..HostApplication::default()
        };
        let path = |base: &str, parent: &str, relative: &str| {
            Some(CgroupPath { base: base.into(), parent_dir: parent.into(), relative_path: relative.into() })
        };
        for (application, expected) in [
            (application(Some(Qos::Ls), None), "host-latency-sensitive/nginx"),
            (application(Some(Qos::Be), None), "host-best-effort/nginx"),
            (application(None, path("CgroupRoot", "/services", "web/")), "services/web"),
            (application(None, path("KubepodsBesteffort", "", "host")), "kubepods/besteffort/host"),
        ] {
            assert_eq!(path_of(&application), PathBuf::from(expected));
        }
    }
}

//! What pods and containers were promised by their specs, as settings of their directories.
//!
//! Of BE pods: the lent resources, which Kubernetes itself knows nothing to do with. Of LS pods: memory protection and saved-up
//! quota, where the cluster's operators want it. Directories are looked up when something changed, not at every tick.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    meter::Meter,
    pods::{Member, Roster},
};
use crate::{
    actuation::{key::Key, standing::Standing},
    cgroup::{
        hierarchy::{Hierarchy, Mounts},
        kubepods,
        memory::whole_pages,
        setting::{Priority, Setting},
        tree::Directory,
    },
    cluster::{
        class::Qos,
        node_slo::{Burst, MemoryProtection, Settings},
        pod::{Container, Pod},
    },
    decision::spec::{Lent, Spec, weight},
    model::GroupId,
    units::Amounts,
};

/// Parts of a limit are counted against this period.
const PERIOD_US: u64 = 100_000;

/// Which pods' settings have to be worked out again.
#[derive(Debug, Default)]
pub struct Specs {
    settings: Settings,
    /// What kubelet offers: the limit of containers that have none.
    allocatable: Amounts,
    normalization: Option<f64>,
    /// By group, so that one that changed is replaced alone.
    by_group: std::collections::BTreeMap<GroupId, Standing>,
    due: BTreeSet<GroupId>,
}

impl Specs {
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
        self.due.extend(self.by_group.keys());
    }

    pub fn set_node(&mut self, allocatable: Amounts, normalization: Option<f64>) {
        if (allocatable, normalization) != (self.allocatable, self.normalization) {
            (self.allocatable, self.normalization) = (allocatable, normalization);
            self.due.extend(self.by_group.keys());
        }
    }

    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A pod, or a directory of it, came, changed or went.
    pub fn touch(&mut self, id: GroupId) {
        self.due.insert(id);
    }

    /// What stood and may stand no longer, and what is to stand now, of groups of which anything changed.
    pub fn refresh(&mut self, roster: &Roster, meter: &Meter, mounts: &Mounts) -> (Vec<Key>, Standing) {
        let (mut gone, mut new) = (Vec::new(), Standing::new());
        for id in std::mem::take(&mut self.due) {
            let standing = roster.member_of(id).map(|member| self.of(id, member, meter, mounts));
            let standing = standing.unwrap_or_default();
            let old = if standing.is_empty() {
                self.by_group.remove(&id)
            } else {
                self.by_group.insert(id, standing.clone())
            };
            let old = old.unwrap_or_default();
            if old != standing {
                gone.extend(old.into_keys());
                new.extend(standing);
            }
        }
        (gone, new)
    }

    fn of(&self, id: GroupId, member: &Member, meter: &Meter, mounts: &Mounts) -> Standing {
        let mut standing = Standing::new();
        let Some(top) = meter.tops_of(id, mounts.cpu_hierarchy()).next() else { return standing };
        let pod = &member.pod;
        let mut put = |hierarchy: Option<Hierarchy>, path: &Path, setting: Setting| {
            let Some(hierarchy) = hierarchy else { return };
            let absolute = mounts.point(hierarchy).join(path);
            let Ok(inode) = std::fs::metadata(&absolute).map(|metadata| metadata.ino()) else { return };
            let directory =
                Directory { hierarchy, path: path.to_owned(), inode, group: id, is_top: path == top.path };
            standing.insert(Key::new(setting.knob(), absolute), (directory, setting));
        };
        let below = meter.below(top);
        let containers: Vec<(&Container, &Path)> = pod
            .containers
            .iter()
            .filter_map(|container| Some((container, directory_of(container.id.as_deref()?, top, &below)?)))
            .collect();
        // Only what says so itself: a pod that is best-effort for want of requests was lent nothing.
        if pod.qos == Some(Qos::Be)
            && pod.containers.iter().any(|container| lent(container) != Lent::default())
        {
            let all: Vec<Lent> = pod.containers.iter().map(lent).collect();
            Self::put_spec(Spec::of(&all, self.normalization), &top.path, mounts, &mut put);
            for (container, path) in &containers {
                Self::put_spec(Spec::of(&[lent(container)], self.normalization), path, mounts, &mut put);
            }
        }
        let v2_memory = mounts.memory_hierarchy();
        let protection = self.protection(pod);
        if protection != MemoryProtection::default() {
            let mut sums = (0, 0);
            for (container, path) in &containers {
                let (min, low, high) = self.protected(pod, container, protection);
                sums = (sums.0 + min, sums.1 + low);
                put(v2_memory, path, Setting::MemoryMin(min));
                put(v2_memory, path, Setting::MemoryLow(low));
                if let Some(high) = high {
                    put(v2_memory, path, Setting::MemoryHigh(Some(high)));
                }
            }
            put(v2_memory, &top.path, Setting::MemoryMin(sums.0));
            put(v2_memory, &top.path, Setting::MemoryLow(sums.1));
        }
        let burst = self.burst(pod);
        if burst != Burst::default() {
            let of = |container: &Container| burst_us(container, burst);
            for (container, path) in &containers {
                if let Some(us) = of(container) {
                    put(Some(mounts.cpu_hierarchy()), path, Setting::Burst(us));
                }
            }
            // The pod has a quota only if all its containers have.
            if let Some(sum) = pod.containers.iter().map(of).sum::<Option<u64>>() {
                put(Some(mounts.cpu_hierarchy()), &top.path, Setting::Burst(sum));
            }
        }
        standing
    }

    fn put_spec(
        spec: Spec,
        path: &Path,
        mounts: &Mounts,
        put: &mut impl FnMut(Option<Hierarchy>, &Path, Setting),
    ) {
        let cpu = mounts.cpu_hierarchy();
        let value = if cpu == Hierarchy::V2 { weight(spec.shares) } else { spec.shares };
        put(Some(cpu), path, Setting::Priority(Priority::Weight(value)));
        if let Some(quota) = spec.quota {
            put(Some(cpu), path, Setting::Quota(quota));
        }
        if let Some(max) = spec.memory_max {
            put(mounts.memory_limit_hierarchy(), path, Setting::MemoryMax(Some(whole_pages(max))));
        }
    }

    /// What the cluster's operators want for pods of this class, changed by what the pod says itself.
    fn protection(&self, pod: &Pod) -> MemoryProtection {
        let of_class = match pod.qos_with_default() {
            Qos::Lsr | Qos::Ls => self.settings.memory_ls,
            Qos::Be => self.settings.memory_be,
            Qos::Lse | Qos::System => MemoryProtection::default(),
        };
        pod.memory_qos
            .as_ref()
            .map_or(of_class, |own| MemoryProtection::of(Some(own), of_class).unwrap_or(of_class))
    }

    /// `memory.min`, `memory.low` and `memory.high` of a container (koordinator `pkg/koordlet/qosmanager/plugins/cgreconcile`).
    fn protected(&self, pod: &Pod, container: &Container, of: MemoryProtection) -> (u64, u64, Option<u64>) {
        let (request, limit) = if pod.qos == Some(Qos::Be) {
            (container.batch.request.memory_bytes.unwrap_or_default(), container.batch.limit.memory_bytes)
        } else {
            (container.request.memory_bytes, container.limit.memory_bytes)
        };
        let part = |amount: i64, percent: i64| {
            whole_pages(u64::try_from(i128::from(amount) * i128::from(percent) / 100).unwrap_or_default())
        };
        let most = limit.unwrap_or(self.allocatable.memory_bytes).max(request);
        let high = (of.throttling_percent > 0 && request > 0).then(|| {
            whole_pages(u64::try_from(request).unwrap_or_default())
                + part(most - request, of.throttling_percent)
        });
        (part(request, of.min_percent), part(request, of.low_percent), high)
    }

    fn burst(&self, pod: &Pod) -> Burst {
        // Pods whose CPUs are their own have no quota to save from.
        if matches!(pod.qos, Some(Qos::Lsr | Qos::Lse | Qos::Be | Qos::System)) {
            return Burst::default();
        }
        let of_node = self.settings.burst;
        pod.cpu_burst.as_ref().map_or(of_node, |own| Burst::of(own, of_node).unwrap_or(of_node))
    }
}

fn lent(container: &Container) -> Lent {
    Lent {
        cpu_request_milli: container.batch.request.cpu_milli,
        cpu_limit_milli: container.batch.limit.cpu_milli,
        memory_limit_bytes: container.batch.limit.memory_bytes,
    }
}

/// `None`: no limit, so nothing to save from. The kernel takes no burst above the quota (`tg_set_cfs_bandwidth` in
/// kernel/sched/core.c), whatever Koordinator's percentage, which is made for kernels that do.
fn burst_us(container: &Container, burst: Burst) -> Option<u64> {
    let milli = u64::try_from(container.limit.cpu_milli.filter(|milli| *milli > 0)?).ok()?;
    let percent = u64::try_from(burst.cpu_burst_percent).ok()?.min(100);
    Some(milli * PERIOD_US / 1_000 * percent / 100)
}

/// The container's own directory, right below the pod's.
fn directory_of<'a>(id: &str, top: &Directory, below: &[&'a Directory]) -> Option<&'a Path> {
    let is_own = |directory: &&&Directory| {
        directory.path.parent() == Some(&top.path)
            && directory.path.to_str().and_then(kubepods::parse).and_then(|found| found.container).as_deref()
                == Some(id)
    };
    below.iter().find(is_own).map(|directory| directory.path.as_path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pod::OptionalAmounts;

    #[test]
    fn a_burst_is_never_above_the_quota() {
        let limited = |cpu_milli| Container {
            limit: OptionalAmounts { cpu_milli, ..OptionalAmounts::default() },
            ..Container::default()
        };
        let of = |cpu_milli, cpu_burst_percent| burst_us(&limited(cpu_milli), Burst { cpu_burst_percent });
        assert_eq!(of(Some(500), 50), Some(25_000));
        assert_eq!(of(Some(500), 1_000), Some(50_000), "Koordinator's default");
        assert_eq!(of(None, 1_000), None);
    }
}

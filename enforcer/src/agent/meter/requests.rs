//! Which directories' requests are measured, and how many of them.

use std::{fs::File, path::Path};

use super::Meter;
use crate::{
    cgroup::hierarchy::Mounts,
    decision::shed::Level,
    kernel::probes::{Probes, RequestLinks},
    model::{GroupId, Signal},
    signal::sampling::Sampling,
};

impl Meter {
    /// Leaves out so much, and takes up again what is no longer left out. How many directories' requests that concerns.
    pub fn shed(&mut self, level: Level, probes: &mut Probes, mounts: &Mounts) -> usize {
        self.shed = level;
        for group in self.groups.values_mut().filter(|group| group.serves) {
            let mut counted = group.slots.iter().filter_map(|slot| self.counted[*slot as usize].as_ref());
            let is_measured = counted.any(|counted| counted.requests.is_some());
            if group.measures_requests(level) && !is_measured {
                group.forget_requests(&self.counters);
            }
        }
        let mut changed = 0;
        for counted in self.counted.iter_mut().flatten() {
            let (group, directory) = (&self.groups[counted.directory.group], &counted.directory);
            let wanted = group.answers_in(directory) && group.measures_requests(level);
            if wanted == counted.requests.is_some() {
                continue;
            }
            counted.requests = if wanted {
                attach(probes, &mounts.point(directory.hierarchy).join(&directory.path), group.is_sparse)
            } else {
                None
            };
            changed += 1;
        }
        changed
    }

    /// Looks at more or fewer of the requests of groups whose rate changed, by what was heard until the last report.
    pub fn sample_requests(&mut self, probes: &mut Probes, mounts: &Mounts) {
        // Before any are sparse, so that none that is counted is forgotten.
        if self.groups.values().all(|group| group.sampling == Sampling::ALL) {
            self.counters.nothing_pending();
        }
        let mut changed = Vec::new();
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.serves) {
            let rate_hz =
                group.rates[Signal::RequestLatency as usize].hz * f64::from(group.sampling.factor());
            let before = group.sampling;
            group.sampling = before.at(rate_hz);
            // Requests that began before they became sparse are looked for until the next report; and all are before they
            // cease to be.
            let is_sparse = group.sampling != Sampling::ALL && before != Sampling::ALL;
            if is_sparse != group.is_sparse || group.sampling != before {
                changed.push((id, is_sparse));
            }
        }
        for (id, is_sparse) in changed {
            if is_sparse != self.groups[id].is_sparse {
                self.count_requests(id, is_sparse, probes, mounts);
            }
            let group = &self.groups[id];
            let one_in = group.sampling.factor();
            tracing::debug!(victim = group.victim, one_in, "another part of the requests is looked at");
            group.tell_objective(&self.counters);
        }
    }

    /// Puts the programs for all requests of a group, or for a part of them, in place. The way back is tried again if it fails.
    fn count_requests(&mut self, id: GroupId, is_sparse: bool, probes: &mut Probes, mounts: &Mounts) {
        let mut all_changed = true;
        for slot in &self.groups[id].slots {
            let Some(counted) = &mut self.counted[*slot as usize] else { continue };
            let path = mounts.point(counted.directory.hierarchy).join(&counted.directory.path);
            if let Some(links) = &mut counted.requests
                && let Ok(directory) = File::open(&path)
                && let Err(err) = probes.count_requests(links, &directory, is_sparse)
            {
                tracing::debug!(cgroup = %path.display(), %err, "the program that was there goes on");
                all_changed = false;
            }
        }
        // Where some still look at all requests, that is right as well. Where some look at sparse ones only, it is not.
        if all_changed || is_sparse {
            self.groups[id].is_sparse = is_sparse;
        }
    }
}

/// Measures what is asked of the directory at `path`. `None`, and said so: that cannot be.
pub fn attach(probes: &mut Probes, path: &Path, sparse: bool) -> Option<RequestLinks> {
    if probes.request_latency_missing.is_some() {
        return None;
    }
    let attached = File::open(path).map_err(|err| err.to_string()).and_then(|directory| {
        let links = probes.attach_request_latency(&directory, sparse);
        links.map_err(|err| err.to_string())
    });
    attached
        .inspect_err(|err| {
            // One that went meanwhile serves nothing.
            if path.is_dir() {
                tracing::warn!(cgroup = %path.display(), "requests of this cgroup are not measured: {err}");
            }
        })
        .ok()
}

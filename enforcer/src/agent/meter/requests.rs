//! Which directories' requests are measured, and how many of them.

use std::{fs::File, path::Path};

use super::{Meter, objective};
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
        let mut changed = Vec::new();
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.serves) {
            let rate_hz =
                group.rates[Signal::RequestLatency as usize].hz * f64::from(group.sampling.factor());
            let before = group.sampling;
            group.sampling = before.at(rate_hz);
            // Requests that began before they became sparse are looked for until the next report; and all are before they
            // cease to be.
            let is_sparse = group.sampling != Sampling::ALL && before != Sampling::ALL;
            let is_other = is_sparse != std::mem::replace(&mut group.is_sparse, is_sparse);
            if is_other || group.sampling != before {
                changed.push((id, is_other));
            }
        }
        for (id, is_other) in changed {
            if is_other {
                self.count_requests(id, probes, mounts);
            }
            let group = &self.groups[id];
            let one_in = group.sampling.factor();
            tracing::debug!(victim = group.victim, one_in, "another part of the requests is looked at");
            self.counters.set_objective(group.victim, objective(group.slo, group.sampling));
        }
        if self.groups.values().all(|group| !group.is_sparse) {
            self.counters.nothing_pending();
        }
    }

    /// Puts the programs for all requests of a group, or for a part of them, in place.
    fn count_requests(&mut self, id: GroupId, probes: &mut Probes, mounts: &Mounts) {
        let (is_sparse, slots) = (self.groups[id].is_sparse, &self.groups[id].slots);
        for slot in slots {
            let Some(counted) = &mut self.counted[*slot as usize] else { continue };
            let path = mounts.point(counted.directory.hierarchy).join(&counted.directory.path);
            if let Some(links) = &mut counted.requests
                && let Ok(directory) = File::open(&path)
                && let Err(err) = probes.count_requests(links, &directory, is_sparse)
            {
                tracing::debug!(cgroup = %path.display(), %err, "the program that was there goes on");
            }
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

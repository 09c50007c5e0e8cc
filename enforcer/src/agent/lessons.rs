//! Objectives that the policy leaves to be learned: heard once a second, kept beside the journal.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{GroupId, Signal},
    policy::{OBJECTIVE, Policy},
    signal::{
        histogram::Counts,
        learned::{Learner, Normal, Stretch},
    },
    units::Factor,
};

const FILE: &str = "learned.json";
/// What was learned is written down no more often.
const SAVE: Duration = Duration::from_mins(1);

/// What is known of the groups whose objectives are to be learned.
#[derive(Debug)]
pub struct Lessons {
    path: PathBuf,
    pupils: BTreeMap<(GroupId, Signal), Pupil>,
    /// How long BE has been at rest.
    rest: Duration,
    /// Length of the stretch at hand; `None`: it says nothing.
    quiet: Option<Duration>,
    /// Something was learned that is not written down.
    unsaved: bool,
    save_at: Duration,
}

#[derive(Debug)]
struct Pupil {
    name: String,
    factor: Factor,
    learner: Learner,
}

/// What was learned of one objective, in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    group: String,
    signal: Signal,
    p99_ns: u64,
    lessons: u32,
}

/// An objective as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson {
    pub group: GroupId,
    pub signal: Signal,
    pub threshold: Duration,
}

impl Lessons {
    /// Goes on from what an earlier agent wrote to `state_dir`. A file that is no use is told and learned anew.
    pub fn of(policy: &Policy, state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let mut pupils = BTreeMap::new();
        for (index, group) in policy.groups.iter().enumerate() {
            for signal in Signal::ALL {
                if let Some(factor) = group.slo.auto(signal) {
                    let pupil = Pupil { name: group.name.clone(), factor, learner: Learner::default() };
                    pupils.insert((GroupId(index), signal), pupil);
                }
            }
        }
        let mut lessons =
            Self { path, pupils, rest: Duration::ZERO, quiet: None, unsaved: false, save_at: Duration::ZERO };
        if !lessons.pupils.is_empty() {
            match read(&lessons.path) {
                Ok(entries) => lessons.recall(&entries),
                Err(err) => tracing::warn!("{}: {err}: objectives are learned anew", lessons.path.display()),
            }
        }
        lessons
    }

    fn recall(&mut self, entries: &[Entry]) {
        for ((_, signal), pupil) in &mut self.pupils {
            let known = entries.iter().find(|entry| entry.group == pupil.name && entry.signal == *signal);
            let normal = known.map(|entry| Normal {
                p99: Duration::from_nanos(entry.p99_ns),
                lessons: entry.lessons.max(1),
            });
            pupil.learner = Learner::knowing(normal);
        }
    }

    /// All objectives that are known.
    pub fn known(&self) -> impl Iterator<Item = Lesson> {
        self.pupils.iter().filter_map(|(&(group, signal), pupil)| {
            Some(Lesson { group, signal, threshold: pupil.threshold()? })
        })
    }

    /// What is heard next was counted in this stretch. Whether it says anything.
    pub fn begin(&mut self, stretch: &Stretch) -> bool {
        self.quiet = stretch.is_quiet(&mut self.rest).then(|| stretch.elapsed());
        self.quiet.is_some()
    }

    /// Hears what was counted of one signal of a group. Its objective, if that is now another one.
    pub fn hear(&mut self, group: GroupId, signal: Signal, counts: &Counts) -> Option<Lesson> {
        let elapsed = self.quiet?;
        let pupil = self.pupils.get_mut(&(group, signal))?;
        let is_first = pupil.learner.normal().is_none();
        if !pupil.learner.hear(counts, elapsed) {
            return None;
        }
        self.unsaved = true;
        let threshold = pupil.threshold()?;
        let name = &pupil.name;
        if is_first {
            tracing::info!(group = name, objective = ?threshold, "learned what its {signal} is like without BE");
        } else {
            tracing::debug!(group = name, objective = ?threshold, "its {signal} without BE, learned again");
        }
        Some(Lesson { group, signal, threshold })
    }

    /// Writes down what was learned, now and then.
    pub fn save_now_and_then(&mut self, now: Duration) {
        if self.unsaved && now >= self.save_at {
            self.save_at = now + SAVE;
            self.save();
        }
    }

    /// Writes down what was learned, if that is not done yet.
    pub fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        match write(&self.path, &self.entries()) {
            Ok(()) => self.unsaved = false,
            Err(err) => {
                tracing::warn!("{}: {err}: what was learned is not written down", self.path.display());
            }
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(&(_, signal), pupil): (&(GroupId, Signal), &Pupil)| {
            let Normal { p99, lessons } = pupil.learner.normal()?;
            let p99_ns = u64::try_from(p99.as_nanos()).unwrap_or(u64::MAX);
            Some(Entry { group: pupil.name.clone(), signal, p99_ns, lessons })
        };
        self.pupils.iter().filter_map(entry).collect()
    }
}

impl Pupil {
    /// Within what a policy may promise.
    fn threshold(&self) -> Option<Duration> {
        let threshold = self.factor.times(self.learner.normal()?.p99);
        Some(threshold.clamp(*OBJECTIVE.start(), *OBJECTIVE.end()))
    }
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

/// As a whole, by rename: it is never seen half-written.
fn write(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(entries)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WEB: GroupId = GroupId(0);

    fn policy(factor: &str) -> Policy {
        let text = format!(
            "groups:\n- {{ name: web, class: LS, cgroups: [web], slo: {{ requestLatency: {{ auto: {factor} }} }} }}\n\
             - {{ name: batch, class: BE, cgroups: [batch] }}\n"
        );
        Policy::parse(&text, Path::new("policy.yaml"), 4).unwrap()
    }

    /// Minutes with so much BE and a p99 of so long, a second at a time. What was learned, the latest last.
    fn live(lessons: &mut Lessons, minutes: u32, be_cores: f64, ms: u64) -> Vec<Duration> {
        let mut counts = Counts::default();
        (0..200).for_each(|_| counts.record(Duration::from_millis(ms)));
        let mut learned = Vec::new();
        for _ in 0..minutes * 60 {
            let mut stretch = Stretch::default();
            stretch.look(SECOND, Some(0.0));
            stretch.be_ran(SECOND.mul_f64(be_cores));
            lessons.begin(&stretch);
            learned
                .extend(lessons.hear(WEB, Signal::RequestLatency, &counts).map(|learned| learned.threshold));
            assert_eq!(lessons.hear(WEB, Signal::RunQueueWait, &counts), None, "nobody asked for it");
        }
        learned
    }

    #[test]
    fn be_that_runs_teaches_nothing_however_long() {
        let state = TempDir::new().unwrap();
        let mut lessons = Lessons::of(&policy("1.5"), state.path());
        assert!(live(&mut lessons, 100, 1.0, 50).is_empty());
        let learned = live(&mut lessons, 1, 0.0, 4);
        assert!(matches!(learned[..], [threshold] if threshold.as_millis().abs_diff(6) <= 1), "{learned:?}");
        let before: Vec<_> = lessons.known().collect();
        assert!(live(&mut lessons, 100, 1.0, 50).is_empty(), "and it does not raise what is known");
        assert_eq!(lessons.known().collect::<Vec<_>>(), before);
    }

    #[test]
    fn what_was_learned_outlives_the_agent_and_takes_a_new_factor() {
        let state = TempDir::new().unwrap();
        let mut lessons = Lessons::of(&policy("1.5"), state.path());
        live(&mut lessons, 1, 0.0, 4);
        lessons.save_now_and_then(SECOND);
        let threshold = |lessons: &Lessons| lessons.known().next().unwrap().threshold.as_secs_f64();
        let next = Lessons::of(&policy("3"), state.path());
        assert!((threshold(&next) / threshold(&lessons) - 2.0).abs() < 1e-6, "{next:?}");
    }

    #[test]
    fn it_is_written_down_once_a_minute_at_most_and_at_the_end() {
        let state = TempDir::new().unwrap();
        let file = state.path().join(FILE);
        let mut lessons = Lessons::of(&policy("1.5"), state.path());
        lessons.save_now_and_then(SECOND);
        assert!(!file.exists(), "nothing was learned");
        live(&mut lessons, 1, 0.0, 4);
        lessons.save_now_and_then(SECOND);
        let first = fs::read(&file).unwrap();
        live(&mut lessons, 6, 0.0, 8);
        lessons.save_now_and_then(SECOND * 30);
        assert_eq!(fs::read(&file).unwrap(), first);
        lessons.save();
        assert_ne!(fs::read(&file).unwrap(), first);
    }

    #[test]
    fn a_garbled_file_is_learned_anew() {
        let state = TempDir::new().unwrap();
        fs::write(state.path().join(FILE), "[{\"group\":\"web\",").unwrap();
        let mut lessons = Lessons::of(&policy("1.5"), state.path());
        assert_eq!(lessons.known().count(), 0);
        live(&mut lessons, 1, 0.0, 4);
        lessons.save();
        assert_eq!(Lessons::of(&policy("1.5"), state.path()).known().count(), 1);
    }
}

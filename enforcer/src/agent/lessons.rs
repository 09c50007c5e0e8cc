//! Objectives that the policy leaves to be learned: heard once a second, kept beside the journal.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{GroupId, Signal},
    policy::{Group, LEARNED_STALL, OBJECTIVE, Promise},
    signal::{
        histogram::Counts,
        learned::{Learner, Normal, Stretch},
    },
    units::{Factor, Share, whole_unsigned},
};

const FILE: &str = "learned.json";
/// What was learned is written down no more often.
const SAVE: Duration = Duration::from_mins(1);

/// What is known of the groups whose objectives are to be learned.
#[derive(Debug)]
pub struct Lessons {
    path: PathBuf,
    pupils: BTreeMap<(GroupId, Signal), Pupil>,
    /// What was learned of workloads that are not there now.
    known: BTreeMap<(String, Signal), Normal>,
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
    /// Its workload: the next pod of its kind goes on from what it learned.
    name: String,
    factor: Factor,
    learner: Learner,
}

/// What was learned of one objective, in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    group: String,
    signal: Signal,
    #[serde(flatten)]
    usual: Usual,
    lessons: u32,
}

/// What a signal is like without BE.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Usual {
    P99Ns(u64),
    StalledMillionths(u32),
}

/// An objective as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson {
    pub group: GroupId,
    pub signal: Signal,
    pub promise: Promise,
}

impl Lessons {
    /// Goes on from what an earlier agent wrote to `state_dir`. A file that is no use is told and learned anew.
    pub fn of(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let entries = read(&path).unwrap_or_else(|err| {
            tracing::warn!("{}: {err}: objectives are learned anew", path.display());
            Vec::new()
        });
        let normal = |entry: Entry| {
            let usual = match entry.usual {
                Usual::P99Ns(ns) => Duration::from_nanos(ns).as_secs_f64(),
                Usual::StalledMillionths(millionths) => Share { millionths }.ratio(),
            };
            ((entry.group, entry.signal), Normal { usual, lessons: entry.lessons.max(1) })
        };
        Self {
            path,
            pupils: BTreeMap::new(),
            known: entries.into_iter().map(normal).collect(),
            rest: Duration::ZERO,
            quiet: None,
            unsaved: false,
            save_at: Duration::ZERO,
        }
    }

    /// A group came, or what is promised to it has changed. Its objectives, as far as they are known.
    pub fn join(&mut self, id: GroupId, group: &Group) -> Vec<Lesson> {
        let mut lessons = Vec::new();
        for signal in Signal::ALL {
            let Some(factor) = group.slo.auto(signal) else {
                self.dismiss(id, signal);
                continue;
            };
            let name = &group.workload;
            let pupil = self.pupils.entry((id, signal)).or_insert_with(|| Pupil {
                name: name.clone(),
                factor,
                learner: Learner::knowing(self.known.get(&(name.clone(), signal)).copied()),
            });
            pupil.factor = factor;
            lessons.extend(pupil.promise(signal).map(|promise| Lesson { group: id, signal, promise }));
        }
        lessons
    }

    /// A group went. What it learned is kept for the next one of its kind.
    pub fn leave(&mut self, id: GroupId) {
        for signal in Signal::ALL {
            self.dismiss(id, signal);
        }
    }

    fn dismiss(&mut self, id: GroupId, signal: Signal) {
        if let Some(pupil) = self.pupils.remove(&(id, signal))
            && let Some(normal) = pupil.learner.normal()
        {
            self.known.insert((pupil.name, signal), normal);
        }
    }

    /// What is heard next was counted in this stretch. Whether it says anything.
    pub fn begin(&mut self, stretch: &Stretch) -> bool {
        self.quiet = stretch.is_quiet(&mut self.rest).then(|| stretch.elapsed());
        self.quiet.is_some()
    }

    /// Hears what was counted of one signal of a group. Its objective, if that is now another one.
    pub fn hear(&mut self, group: GroupId, signal: Signal, counts: &Counts) -> Option<Lesson> {
        self.teach(group, signal, |learner, elapsed| learner.hear(counts, elapsed))
    }

    /// Hears how long a group stalled for want of memory. Its objective, if that is now another one.
    pub fn hear_stalls(&mut self, group: GroupId, stalled: Duration) -> Option<Lesson> {
        self.teach(group, Signal::MemoryStall, |learner, elapsed| learner.hear_stalls(stalled, elapsed))
    }

    /// `hear`: takes in a stretch that is so long, and says whether that made a lesson.
    fn teach(
        &mut self,
        group: GroupId,
        signal: Signal,
        hear: impl FnOnce(&mut Learner, Duration) -> bool,
    ) -> Option<Lesson> {
        let elapsed = self.quiet?;
        let pupil = self.pupils.get_mut(&(group, signal))?;
        let is_first = pupil.learner.normal().is_none();
        if !hear(&mut pupil.learner, elapsed) {
            return None;
        }
        self.unsaved = true;
        let promise = pupil.promise(signal)?;
        let name = &pupil.name;
        if is_first {
            tracing::info!(group = name, objective = ?promise, "learned what its {signal} is like without BE");
        } else {
            tracing::debug!(group = name, objective = ?promise, "its {signal} without BE, learned again");
        }
        Some(Lesson { group, signal, promise })
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
        let mut known = self.known.clone();
        for ((_, signal), pupil) in &self.pupils {
            if let Some(normal) = pupil.learner.normal() {
                known.insert((pupil.name.clone(), *signal), normal);
            }
        }
        let entry = |((group, signal), Normal { usual, lessons }): ((String, Signal), Normal)| {
            let usual = match signal {
                Signal::MemoryStall => Usual::StalledMillionths(Share::from_ratio(usual).millionths),
                Signal::RequestLatency | Signal::RunQueueWait => {
                    Usual::P99Ns(whole_unsigned((usual * 1e9).round()))
                }
            };
            Entry { group, signal, usual, lessons }
        };
        known.into_iter().map(entry).collect()
    }
}

impl Pupil {
    /// Within what may be promised.
    fn promise(&self, signal: Signal) -> Option<Promise> {
        let promise = self.factor.times(self.learner.normal()?.usual);
        Some(match signal {
            Signal::MemoryStall => Promise::Share(within(&LEARNED_STALL, Share::from_ratio(promise))),
            Signal::RequestLatency | Signal::RunQueueWait => {
                Promise::P99(within(&OBJECTIVE, Duration::from_secs_f64(promise)))
            }
        })
    }
}

fn within<T: Copy + Ord>(range: &RangeInclusive<T>, value: T) -> T {
    value.clamp(*range.start(), *range.end())
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
    use crate::{
        model::Levers,
        policy::{Class, Policy, Slo},
        units::MilliCores,
    };

    const SECOND: Duration = Duration::from_secs(1);
    const WEB: GroupId = GroupId(0);

    /// The lessons of a group whose objective is to be learned, and that objective, if it is known.
    fn lessons(factor: &str, state: &TempDir) -> (Lessons, Option<Duration>) {
        let text = format!(
            "groups:\n- {{ name: web, class: LS, cgroups: [web], slo: {{ requestLatency: {{ auto: {factor} }} }} }}\n"
        );
        let policy = Policy::parse(&text, Path::new("policy.yaml"), 4).unwrap();
        let mut lessons = Lessons::of(state.path());
        let known = lessons.join(WEB, &policy.groups[0]);
        (lessons, known.first().map(|lesson| p99(*lesson)))
    }

    fn p99(lesson: Lesson) -> Duration {
        let Promise::P99(p99) = lesson.promise else { panic!("{lesson:?}") };
        p99
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
            learned.extend(lessons.hear(WEB, Signal::RequestLatency, &counts).map(p99));
            assert_eq!(lessons.hear(WEB, Signal::RunQueueWait, &counts), None, "nobody asked for it");
            assert_eq!(lessons.hear_stalls(WEB, SECOND), None, "nor for this");
        }
        learned
    }

    #[test]
    fn be_that_runs_teaches_nothing_however_long() {
        let state = TempDir::new().unwrap();
        let (mut lessons, _) = lessons("1.5", &state);
        assert!(live(&mut lessons, 100, 1.0, 50).is_empty());
        let learned = live(&mut lessons, 1, 0.0, 4);
        assert!(matches!(learned[..], [threshold] if threshold.as_millis().abs_diff(6) <= 1), "{learned:?}");
        assert!(live(&mut lessons, 100, 1.0, 50).is_empty(), "and it does not raise what is known");
    }

    #[test]
    fn what_was_learned_outlives_the_agent_and_takes_a_new_factor() {
        let state = TempDir::new().unwrap();
        let (mut first, known) = lessons("1.5", &state);
        assert_eq!(known, None);
        let learned = live(&mut first, 1, 0.0, 4)[0].as_secs_f64();
        first.save_now_and_then(SECOND);
        let (_, known) = lessons("3", &state);
        assert!((known.unwrap().as_secs_f64() / learned - 2.0).abs() < 1e-6, "{known:?}");
    }

    #[test]
    fn the_next_of_its_kind_goes_on_from_what_was_learned() {
        let state = TempDir::new().unwrap();
        let (mut lessons, _) = lessons("1.5", &state);
        let learned = live(&mut lessons, 1, 0.0, 4)[0];
        lessons.leave(WEB);
        let slo = Slo { request_latency_auto: Some(Factor(1500)), ..Slo::default() };
        let known = lessons.join(GroupId(7), &another(slo));
        let promise = Promise::P99(learned);
        assert_eq!(known, [Lesson { group: GroupId(7), signal: Signal::RequestLatency, promise }]);
        assert_eq!(lessons.entries().len(), 1);
    }

    fn another(slo: Slo) -> Group {
        Group {
            name: "web-2".into(),
            workload: "web".into(),
            class: Class::LS,
            patterns: Vec::new(),
            slo,
            floor: MilliCores(0),
            levers: Levers::ALL,
        }
    }

    #[test]
    fn stalls_are_learned_and_kept_and_one_that_never_stalls_is_promised_the_least() {
        let state = TempDir::new().unwrap();
        let slo = Slo { memory_stall_auto: Some(Factor(2000)), ..Slo::default() };
        let group = another(slo);
        let live = |stalled: Duration| {
            let mut lessons = Lessons::of(state.path());
            let known = lessons.join(WEB, &group);
            let mut learned = Vec::new();
            for _ in 0..60 {
                let mut stretch = Stretch::default();
                stretch.look(SECOND, Some(0.0));
                lessons.begin(&stretch);
                learned.extend(lessons.hear_stalls(WEB, stalled));
            }
            lessons.save();
            let share = |lesson: &Lesson| match lesson.promise {
                Promise::Share(share) => share,
                Promise::P99(_) => panic!("{lesson:?}"),
            };
            (known.first().map(share), learned.first().map(share))
        };
        assert_eq!(live(Duration::from_millis(20)), (None, Some(Share::percent(4))));
        assert_eq!(live(Duration::ZERO), (Some(Share::percent(4)), None), "later lessons are longer");
        fs::remove_file(state.path().join(FILE)).unwrap();
        assert_eq!(live(Duration::ZERO), (None, Some(*LEARNED_STALL.start())));
        assert_eq!(live(Duration::ZERO).0, Some(*LEARNED_STALL.start()), "and zero is known from unknown");
    }

    #[test]
    fn it_is_written_down_once_a_minute_at_most_and_at_the_end() {
        let state = TempDir::new().unwrap();
        let file = state.path().join(FILE);
        let (mut lessons, _) = lessons("1.5", &state);
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
    fn the_file_of_an_older_agent_is_read() {
        let state = TempDir::new().unwrap();
        let text = r#"[{"group":"web","signal":"request_latency","p99_ns":4000000,"lessons":3}]"#;
        fs::write(state.path().join(FILE), text).unwrap();
        assert_eq!(lessons("1.5", &state).1, Some(Duration::from_millis(6)));
    }

    #[test]
    fn a_garbled_file_is_learned_anew() {
        let state = TempDir::new().unwrap();
        fs::write(state.path().join(FILE), "[{\"group\":\"web\",").unwrap();
        let (mut first, known) = lessons("1.5", &state);
        assert_eq!(known, None);
        live(&mut first, 1, 0.0, 4);
        first.save();
        assert!(lessons("1.5", &state).1.is_some());
    }
}

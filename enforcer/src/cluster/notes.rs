//! What people are to see with `kubectl describe`.

use std::{collections::HashMap, time::Duration};

/// The same thing about the same object is told again after this.
const AGAIN: Duration = Duration::from_mins(1);
/// So many at once, and then so often: an API server serves a thousand nodes.
const BURST: f64 = 20.0;
const PER_SECOND: f64 = 0.5;
/// Objects that are remembered.
const REMEMBERED: usize = 4096;

/// A pod, as events name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What a note is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    Node,
    Pod(PodRef),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An LS pod misses its objective.
    SloViolated,
    /// A BE pod is held back.
    Throttled,
    /// It is not any more.
    Restored,
    Evicted,
    /// It would be, were this no dry run.
    WouldEvict,
    /// It cannot be, or not now.
    EvictionRefused,
    /// Its annotation cannot be read.
    InvalidSlo,
    /// A setting in the cluster cannot be read.
    InvalidConfig,
    /// Somebody else writes what this agent should.
    TwoWriters,
    /// More pods than the agent was told to allow for.
    TooManyPods,
}

impl Kind {
    /// As `kubectl` shows it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::SloViolated => "SLOViolated",
            Self::Throttled => "BatchThrottled",
            Self::Restored => "BatchRestored",
            Self::Evicted => "BatchEvicted",
            Self::WouldEvict => "BatchWouldBeEvicted",
            Self::EvictionRefused => "BatchEvictionRefused",
            Self::InvalidSlo => "InvalidSLO",
            Self::InvalidConfig => "InvalidConfig",
            Self::TwoWriters => "TwoWriters",
            Self::TooManyPods => "TooManyPods",
        }
    }

    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::Throttled | Self::Restored)
    }
}

/// One event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub about: About,
    pub kind: Kind,
    pub text: String,
    /// The other pod: whom it hurt, or who hurt it.
    pub related: Option<PodRef>,
}

/// Keeps events few. Drops what is too much: events are for people, metrics count everything.
#[derive(Debug)]
pub struct Limiter {
    tokens: f64,
    at: Duration,
    told: HashMap<(About, Kind), Duration>,
    pub dropped: u64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { tokens: BURST, at: Duration::ZERO, told: HashMap::new(), dropped: 0 }
    }
}

impl Limiter {
    /// Whether this may be told at `now`.
    pub fn allows(&mut self, now: Duration, note: &Note) -> bool {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * PER_SECOND).min(BURST);
        let key = (note.about.clone(), note.kind);
        let is_again = self.told.get(&key).is_some_and(|at| now < *at + AGAIN);
        if is_again || self.tokens < 1.0 {
            self.dropped += 1;
            return false;
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, at| now < *at + AGAIN);
        }
        self.tokens -= 1.0;
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, kind: Kind) -> Note {
        let pod = PodRef { namespace: "jobs".into(), name: name.into(), uid: name.into() };
        Note { about: About::Pod(pod), kind, text: String::new(), related: None }
    }

    #[test]
    fn the_same_is_told_once_a_minute_and_all_together_are_few() {
        let mut limiter = Limiter::default();
        let second = Duration::from_secs;
        assert!(limiter.allows(second(1), &note("a", Kind::Throttled)));
        assert!(!limiter.allows(second(2), &note("a", Kind::Throttled)));
        assert!(limiter.allows(second(2), &note("a", Kind::Restored)));
        assert!(limiter.allows(second(62), &note("a", Kind::Throttled)));
        let many = (0..1_000).filter(|n| limiter.allows(second(63), &note(&n.to_string(), Kind::Throttled)));
        assert!((15..=20).contains(&many.count()));
        assert!(limiter.dropped >= 980);
        assert!(limiter.allows(second(70), &note("b", Kind::Throttled)), "later there is room again");
    }
}

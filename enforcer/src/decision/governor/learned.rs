//! What a squeeze has shown, for the next one.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    decision::{bands::Bands, hold::Patience},
    model::Signal,
};

/// How long it is remembered that these BE groups were the cause.
const REMEMBERED: Duration = Duration::from_mins(30);
/// What begins again within this time was let go too early, if it was let go.
const SOON: Duration = Duration::from_mins(5);

/// That some BE workloads were the cause of one objective's trouble, and what they may keep. By name, because pods of the
/// same kind come and go.
#[derive(Debug)]
pub struct Learned {
    pub victim: String,
    pub signal: Signal,
    pub culprits: BTreeSet<String>,
    pub bands: Bands,
    /// Of a squeeze that follows soon.
    pub patience: Patience,
    /// When it ended.
    pub at: Duration,
}

impl Learned {
    /// Whether it is about this objective of this workload.
    pub fn is_of(&self, victim: &str, signal: Signal) -> bool {
        self.victim == victim && self.signal == signal
    }

    pub fn is_fresh(&self, now: Duration) -> bool {
        now < self.at + REMEMBERED
    }

    /// Of a squeeze that begins now.
    pub fn next_patience(&self, now: Duration) -> Patience {
        if now < self.at + SOON { self.patience } else { Patience::default() }
    }
}

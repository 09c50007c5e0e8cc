//! What a squeeze has shown, for the next one.

use std::{collections::BTreeSet, time::Duration};

use crate::{decision::bands::Bands, model::Signal};

/// How long it is remembered that these BE groups were the cause.
const REMEMBERED: Duration = Duration::from_mins(30);

/// That some BE workloads were the cause of one objective's trouble, and what they may keep. By name, because pods of the
/// same kind come and go.
#[derive(Debug)]
pub struct Learned {
    pub victim: String,
    pub signal: Signal,
    pub culprits: BTreeSet<String>,
    pub bands: Bands,
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
}

//! A watch that fails is tried again for as long as it takes, and people are not told each time.

use std::{fmt::Display, time::Duration};

use tokio::time::Instant;

/// The same trouble is told again after this.
const AGAIN: Duration = Duration::from_mins(1);

/// Tells of trouble once a minute, and when it is over.
pub struct Complaints {
    what: String,
    again_at: Option<Instant>,
}

impl Complaints {
    /// `what`: in the plural, or a kind of objects.
    pub fn new(what: &str) -> Self {
        Self { what: what.to_owned(), again_at: None }
    }

    pub fn complain(&mut self, err: &dyn Display) {
        if self.again_at.is_none_or(|at| Instant::now() >= at) {
            self.again_at = Some(Instant::now() + AGAIN);
            tracing::warn!("{} cannot be watched, trying again: {err}", self.what);
        }
    }

    pub fn all_is_well(&mut self) {
        if self.again_at.take().is_some() {
            tracing::info!("{} can be watched again", self.what);
        }
    }
}

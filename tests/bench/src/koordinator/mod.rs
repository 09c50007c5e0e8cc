//! Koordinator's CPU suppression, the part of its node agent that this project is compared with.

mod rule;
mod suppressor;

pub use suppressor::{Lever, Suppressor};

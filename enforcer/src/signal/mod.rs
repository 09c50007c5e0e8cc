//! Counters and a time go in, rates and verdicts on evidence come out. Pure.
#![deny(clippy::disallowed_methods)]

pub mod answers;
pub mod average;
pub mod budget;
pub mod histogram;
pub mod in_flight;
pub mod learned;
pub mod memory;
pub mod pace;
pub mod sampling;
pub mod tally;
pub mod usage;

//! Counters and a time go in, rates and verdicts on evidence come out. Pure.
#![deny(clippy::disallowed_methods)]

pub mod histogram;
pub mod pace;
pub mod tally;

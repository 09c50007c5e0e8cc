//! Snapshots in, plans out.
//!
//! Nothing here touches the kernel, files or a clock: the same snapshots always give the same plans, so a night on a
//! node can be replayed on a laptop.
//!
//! The way to a squeeze: an [`alarm`] says that an LS group misses its objective; if BE runs, it first has to make room
//! where others want the CPU; if that is not enough, a [`trial`] takes BE off and on again in turns and compares; only if
//! that helps, [`hold`] limits BE and searches the largest share that keeps the objective. [`governor`] is the order of
//! these.
#![deny(clippy::disallowed_methods)]

pub mod alarm;
pub mod bands;
pub mod batch;
pub mod cause;
pub mod check;
pub mod evict;
pub mod governor;
pub mod hold;
pub mod incidents;
pub mod plan;
pub mod shed;
pub mod spec;
pub mod stretches;
pub mod thresholds;
pub mod trial;
pub mod utilisation;

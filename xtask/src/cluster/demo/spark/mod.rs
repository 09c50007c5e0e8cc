//! Real Spark: where it is from, and its jobs.

mod distribution;
mod job;

pub use self::{
    distribution::Distribution,
    job::{Example, Job},
};

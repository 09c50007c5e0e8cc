//! What the tests have in common.

pub mod agent;
pub mod needs;
pub mod queries;
pub mod sources;

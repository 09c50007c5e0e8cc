//! What was measured and done, for people and machines.

pub mod batch;
pub mod client;
pub mod explain;
pub mod history;
pub mod ledger;
pub mod metrics;
pub mod serve;
pub mod status;
pub mod top;

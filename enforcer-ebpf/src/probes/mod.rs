//! One question per file.

pub mod onset;
pub mod reclaim;
pub mod request_latency;
pub mod run_queue_wait;

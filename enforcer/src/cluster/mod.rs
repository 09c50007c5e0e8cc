//! The cluster: what the API server knows of this node and its pods, and what it is told.
//!
//! The loop never waits for it. A thread of its own talks to the API server ([`link`]); most of what is decided about the
//! answers is pure and lies in the other modules.

pub mod batch;
pub mod class;
pub(crate) mod complaints;
pub mod config;
pub(crate) mod connection;
pub mod controller;
mod events;
mod evict;
pub mod lend;
pub mod link;
pub mod node_slo;
mod node_status;
pub mod notes;
pub mod objects;
pub mod pod;
pub mod protocol;
pub mod quantity;
pub(crate) mod retry;
pub mod usage;
mod watch;
mod writer;

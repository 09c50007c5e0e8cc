//! Asks a running agent.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

/// Fetches what the agent at this address serves under `path`.
///
/// # Errors
/// Where no agent answers, or one of another version; each with the cure.
pub fn fetch<T: DeserializeOwned>(agent: SocketAddr, path: &str) -> Result<T> {
    let answer = minreq::get(format!("http://{agent}{path}")).with_timeout(5).send().with_context(|| {
        format!("no agent answers at {agent}: start `enforcer agent`, or name its address with --agent")
    })?;
    serde_json::from_slice(answer.as_bytes())
        .with_context(|| format!("{agent} answers, but is no enforcer agent of this version"))
}

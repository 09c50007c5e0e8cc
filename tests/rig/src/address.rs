//! Where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Result;

/// An address of this host alone that was free a moment ago, for programs that cannot say which one they chose.
///
/// # Errors
/// Where there is none.
pub fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

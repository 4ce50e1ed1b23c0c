//! Ports for servers that cannot bind port 0 and say what they got.
//!
//! They are taken from below the range of outgoing connections, so that nobody gets one by chance between
//! here and the server's own bind. Another test may all the same: who starts a server tries again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};

/// Ports that Linux gives to no outgoing connection (ip_local_port_range begins at 32768).
const RANGE: std::ops::Range<u16> = 20_000..32_000;
/// Times a server is started anew when its ports are taken.
pub const ATTEMPTS: usize = 5;

/// A loopback address on which nobody listened a moment ago.
///
/// # Errors
///
/// Everything is taken.
pub fn reserve() -> Result<SocketAddr> {
    (0..1000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(RANGE))))
        .find(|address| TcpListener::bind(address).is_ok())
        .context("no free port")
}

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

/// Loopback addresses on which nobody listened a moment ago, no two of them the same.
///
/// # Errors
///
/// Everything is taken.
pub fn reserve<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    // Bound until all are found, so that none is found twice.
    let mut bound = Vec::new();
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); COUNT];
    for address in &mut addresses {
        let listener = (0..1000)
            .find_map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, fastrand::u16(RANGE))).ok())
            .context("no free port")?;
        *address = listener.local_addr()?;
        bound.push(listener);
    }
    Ok(addresses)
}

/// One of them.
///
/// # Errors
///
/// As [`reserve`].
pub fn reserve_one() -> Result<SocketAddr> {
    let [address] = reserve()?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_reserved_twice_at_once() {
        for _ in 0..50 {
            let mut addresses = reserve::<100>().unwrap().to_vec();
            addresses.sort_unstable();
            addresses.dedup();
            assert_eq!(addresses.len(), 100);
        }
    }
}

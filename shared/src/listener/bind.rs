//! Binding: `:143` is IPv6 and IPv4 on one port, an address written out must bind (NET-1).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::Bind;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why a listener cannot have its sockets.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refuses.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Refused {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// What was passed is no listening TCP socket.
    #[error("descriptor {position} of LISTEN_FDS cannot be used: {source}")]
    Passed {
        /// Which, counted from 0.
        position: usize,
        /// Why.
        source: io::Error,
    },
    /// Sockets were passed that no listener is configured for.
    #[error("LISTEN_FDS has sockets on which nothing is configured to listen: {}", list(addresses))]
    NotConfigured {
        /// Their addresses.
        addresses: Vec<SocketAddr>,
    },
}

/// Opens the sockets of one bind.
pub(super) fn open(bind: Bind) -> Result<Vec<TcpListener>, BindError> {
    match bind {
        Bind::Address(address) => Ok(vec![listen(address, true).map_err(refused(address))?]),
        Bind::Port(port) => {
            let (v6, v4) = (
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            );
            match listen(v6, false) {
                Ok(socket) => Ok(vec![socket]),
                Err(source) if has_no_ipv6(&source) => {
                    tracing::info!(port, "this kernel has no IPv6; listening on IPv4 only");
                    Ok(vec![listen(v4, false).map_err(refused(v4))?])
                }
                Err(source) => Err(refused(v6)(source)),
            }
        }
    }
}

/// An IPv6 socket takes IPv4 connections, too, unless `v6_only`.
fn listen(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn refused(address: SocketAddr) -> impl Fn(io::Error) -> BindError {
    move |source| BindError::Refused { address, source }
}

fn list(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(", ")
}

/// EAFNOSUPPORT: no IPv6 in the kernel. EADDRNOTAVAIL: switched off by sysctl.
fn has_no_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        || code == Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error())
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need root, CAP_NET_BIND_SERVICE or socket activation)"
        }
        io::ErrorKind::AddrInUse => " (another program listens there: see `ss -ltnp`)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_port_takes_both_families() {
        let sockets = open(Bind::Port(0)).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if sockets[0].local_addr().unwrap().is_ipv6() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_ends_the_start_with_its_name() {
        let first = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), true).unwrap();
        let taken = first.local_addr().unwrap();
        let said = open(Bind::Address(taken)).unwrap_err().to_string();
        assert!(said.contains(&taken.to_string()) && said.contains("ss -ltnp"), "{said}");
    }
}

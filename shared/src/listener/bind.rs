//! Binding: `:143` is IPv6 and IPv4 on one port, an address written out must bind (NET-1).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::Bind;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why a listener cannot bind.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(source))]
pub struct BindError {
    /// The address.
    address: SocketAddr,
    /// What the system said.
    source: io::Error,
}

/// Opens the sockets of one bind.
pub(super) fn open(bind: Bind) -> Result<Vec<TcpListener>, BindError> {
    match bind {
        Bind::Address(address) => Ok(vec![listen(address, true)?]),
        Bind::Port(port) => {
            let (v6, v4) = (
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            );
            match listen(v6, false) {
                Ok(socket) => Ok(vec![socket]),
                Err(error) if has_no_ipv6(&error.source) => {
                    tracing::info!(port, "this kernel has no IPv6; listening on IPv4 only");
                    Ok(vec![listen(v4, false)?])
                }
                Err(error) => Err(error),
            }
        }
    }
}

/// An IPv6 socket takes IPv4 connections, too, unless `v6_only`.
fn listen(address: SocketAddr, v6_only: bool) -> Result<TcpListener, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| BindError { address, source })
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

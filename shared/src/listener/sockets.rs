//! The listening sockets of a process: those that it was given, and those that it has bound.
//!
//! Systemd gives sockets at start (LISTEN_FDS), and so does the process whose place this one takes. A bind
//! whose address a given socket has uses that one, so no connection is ever refused between two processes:
//! the socket and the queue of those who wait at it stay the same.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;
use socket2::Socket;
use tokio::net::TcpListener;

use super::bind::{self, BindError};
use crate::config::Bind;

/// The listening sockets of a process.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Not used yet.
    given: Mutex<Vec<TcpListener>>,
    open: Mutex<Vec<Arc<TcpListener>>>,
}

impl Sockets {
    /// With what systemd gives. To be called once, and early: it takes the variables out of the environment.
    ///
    /// # Errors
    ///
    /// A [`BindError`] that names what is no listening socket.
    pub fn from_environment() -> Result<Self, BindError> {
        let mut passed = ListenFd::from_env();
        let mut given = Vec::new();
        for position in 0..passed.len() {
            let socket = passed
                .take_tcp_listener(position)
                .and_then(|socket| socket.map(|s| listening(s.into())).transpose())
                .map_err(|source| BindError::Passed { position, source })?;
            given.extend(socket);
        }
        Ok(Self { given: Mutex::new(given), open: Mutex::default() })
    }

    /// With what another process gives.
    ///
    /// # Errors
    ///
    /// One is no listening socket.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let given: io::Result<Vec<_>> = descriptors.into_iter().map(listening).collect();
        Ok(Self { given: Mutex::new(given?), open: Mutex::default() })
    }

    /// The sockets of `bind`: what was given for it, or else newly bound.
    pub(super) fn open(&self, bind: Bind) -> Result<Vec<Arc<TcpListener>>, BindError> {
        let mut sockets: Vec<_> =
            lock(&self.given).extract_if(.., |socket| is_for(socket, bind)).collect();
        if sockets.is_empty() {
            sockets = bind::open(bind)?;
        }
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        lock(&self.open).extend(sockets.iter().map(Arc::clone));
        Ok(sockets)
    }

    /// Closes what was given and is not used. Returns its addresses.
    pub fn close_unused(&self) -> Vec<SocketAddr> {
        lock(&self.given).drain(..).filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// What is listened on.
    pub fn listening(&self) -> Vec<Arc<TcpListener>> {
        lock(&self.open).clone()
    }

    /// Closes them, once nobody accepts from them any more.
    pub fn close(&self) {
        lock(&self.open).clear();
    }
}

fn lock<T>(sockets: &Mutex<T>) -> MutexGuard<'_, T> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listening(descriptor: OwnedFd) -> io::Result<TcpListener> {
    let socket = Socket::from(descriptor);
    let is_tcp = socket.local_addr()?.as_socket().is_some();
    if !is_tcp || !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no listening TCP socket"));
    }
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// `:143` is any socket on every address; one of each family may have been given.
fn is_for(socket: &TcpListener, bind: Bind) -> bool {
    socket.local_addr().is_ok_and(|address| match bind {
        Bind::Port(port) => address.ip().is_unspecified() && address.port() == port,
        Bind::Address(configured) => address == configured,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(addresses: &[&str]) -> (Sockets, Vec<SocketAddr>) {
        let sockets: Vec<_> =
            addresses.iter().map(|a| std::net::TcpListener::bind(a).unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let sockets = sockets.into_iter().map(OwnedFd::from).collect();
        (Sockets::from_descriptors(sockets).unwrap(), addresses)
    }

    #[tokio::test]
    async fn a_given_socket_is_used_for_its_address_and_all_else_is_bound() {
        let (sockets, addresses) = given(&["127.0.0.1:0", "0.0.0.0:0"]);
        let [local, any] = addresses[..] else { panic!() };
        assert_eq!(sockets.open(Bind::Address(local)).unwrap()[0].local_addr().unwrap(), local);
        assert_eq!(sockets.open(Bind::Port(any.port())).unwrap()[0].local_addr().unwrap(), any);
        assert!(sockets.close_unused().is_empty());
        let bound = sockets.open(Bind::Address("127.0.0.1:0".parse().unwrap())).unwrap();
        assert_ne!(bound[0].local_addr().unwrap(), local);
        assert_eq!(sockets.listening().len(), 3);
    }

    #[tokio::test]
    async fn what_nothing_is_configured_for_is_named() {
        let (sockets, addresses) = given(&["127.0.0.1:0"]);
        // The same port on all addresses is another bind.
        assert!(sockets.open(Bind::Port(addresses[0].port())).is_err());
        assert_eq!(sockets.close_unused(), addresses);
    }

    #[tokio::test]
    async fn what_does_not_listen_is_refused() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert!(Sockets::from_descriptors(vec![socket.into()]).is_err());
    }
}

//! How an endpoint's addresses are reached: which are up ([`crate::health`]), and which are our own.
//!
//! Every connection to a backend is made under a [`Trial`] of its address, from its first packet until the
//! backend has answered as a server of its protocol. What becomes of it is the address's health, here alone.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::BackendName;
use crate::config::Bind;
use crate::health::{Change, Health, Leave};
use crate::resolver::{Addresses, ResolveError, Resolver};
use crate::wire::{ConnectError, WireError};

/// Addresses of one endpoint of which something is known. Those without blemish are forgotten first.
const MAX_ADDRESSES: usize = 256;

/// What is known of an endpoint's addresses.
#[derive(Debug, Default)]
pub struct Reach {
    /// For logs.
    backend: Box<str>,
    protocol: &'static str,
    resolver: Arc<Resolver>,
    /// Where this process listens.
    own: Arc<[Bind]>,
    addresses: Mutex<HashMap<SocketAddr, Tracked>>,
    /// Told of every failure.
    trouble: Notify,
}

#[derive(Debug, Default)]
struct Tracked {
    health: Health,
    /// Cancelled when the address goes down.
    up: CancellationToken,
}

/// A connection to one address, until it is known whether a server of its protocol is there. One that is
/// dropped was broken off: that says nothing of the address, unless it was waited for long enough.
#[derive(Debug)]
pub struct Trial {
    reach: Arc<Reach>,
    address: SocketAddr,
    /// `None` once the verdict was given.
    leave: Option<Leave>,
    began: Instant,
    /// A wait as long as this is the address's fault, whoever ended it.
    patience: Duration,
    /// Cancelled when the address goes down.
    up: CancellationToken,
    /// The server was told of a client before it said anything, and may want to have nothing to do with that
    /// one: if it hangs up, it is not down. Else one client that it bars could shut out all others.
    may_bar: bool,
}

/// An error of a connection, which may be its address's fault.
pub trait Blame: From<ConnectError> {
    /// What became of the connection; `None` where the server has spoken, whatever it said.
    fn blame(&self) -> Option<&WireError>;
}

impl Blame for ConnectError {
    fn blame(&self) -> Option<&WireError> {
        match self {
            Self::Secure { source, .. } => Some(source),
            Self::Resolve { .. }
            | Self::Timeout(_)
            | Self::Connect { .. }
            | Self::Down { .. }
            | Self::WentDown { .. }
            | Self::Own { .. } => None,
        }
    }
}

impl Reach {
    /// Of `backend`'s endpoint for `protocol`, where nothing is known. `own` is where this process listens
    /// for the same protocols.
    pub fn new(
        backend: &BackendName,
        protocol: &'static str,
        resolver: Arc<Resolver>,
        own: Arc<[Bind]>,
    ) -> Self {
        let backend = backend.as_str().into();
        Self { backend, protocol, resolver, own, ..Self::default() }
    }

    /// The addresses of a name.
    ///
    /// # Errors
    ///
    /// A [`ResolveError`].
    pub async fn resolve(&self, host: &str) -> Result<Addresses, ResolveError> {
        self.resolver.addresses(host).await
    }

    /// The listener of ours that a connection to `address` would come to.
    pub fn own_listener(&self, address: SocketAddr) -> Option<Bind> {
        // An unspecified address leads to this host.
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let takes = |bind: &&Bind| match **bind {
            Bind::Port(port) => port == address.port() && is_local(ip),
            Bind::Address(bound) if bound.port() != address.port() => false,
            Bind::Address(bound) if bound.ip().is_unspecified() => {
                bound.is_ipv6() == ip.is_ipv6() && is_local(ip)
            }
            Bind::Address(bound) => bound.ip().to_canonical() == ip,
        };
        self.own.iter().find(takes).copied()
    }

    /// Begins a trial of an address, unless it is down: then, the time from which it may be tried.
    ///
    /// # Errors
    ///
    /// The address is down, and it is not time to try it, or somebody does.
    pub fn admit(
        self: &Arc<Self>,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Trial, Instant> {
        let now = Instant::now();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&address) {
            addresses.retain(|_, tracked| !tracked.health.is_spotless());
        }
        let tracked = addresses.entry(address).or_default();
        let leave = tracked.health.admit(now.into_std()).map_err(Instant::from_std)?;
        // Who tries an address that is down has a token that nobody cancels.
        let up = if tracked.health.is_up() { tracked.up.clone() } else { CancellationToken::new() };
        let reach = Arc::clone(self);
        let leave = Some(leave);
        Ok(Trial { reach, address, leave, began: now, patience, up, may_bar: false })
    }

    /// When an address that has failed is worth a look again: the soonest of all. `None`: none has.
    pub fn worth_a_look(&self) -> Option<Instant> {
        let now = Instant::now().into_std();
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let soonest = addresses.values().filter_map(|tracked| tracked.health.worth_a_look(now));
        soonest.min().map(Instant::from_std)
    }

    /// Waits for the next failure of an address, or returns at once for one that nobody was told of.
    pub async fn trouble(&self) {
        self.trouble.notified().await;
    }

    /// True while `address` is not down.
    pub fn is_up(&self, address: SocketAddr) -> bool {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&address).is_none_or(|tracked| tracked.health.is_up())
    }

    /// Tells the health of `address` something, and the log what has changed by it.
    fn tell(
        &self,
        address: SocketAddr,
        reason: Option<&dyn fmt::Display>,
        what: impl FnOnce(&mut Health) -> Option<Change>,
    ) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tracked) = addresses.get_mut(&address) else { return };
        let (backend, protocol) = (&self.backend, self.protocol);
        match what(&mut tracked.health) {
            Some(Change::WentDown { pause }) => {
                tracked.up.cancel();
                let reason = reason.map(ToString::to_string).unwrap_or_default();
                tracing::warn!(
                    %backend, protocol, %address, reason, try_in_ms = pause.as_millis(),
                    "an address of the backend is down: it is left out, but for one connection at a time \
                     that tries it"
                );
            }
            Some(Change::CameUp) => {
                tracked.up = CancellationToken::new();
                tracing::info!(%backend, protocol, %address, "an address of the backend is up again");
            }
            None => {}
        }
    }
}

impl Trial {
    /// The server is told of a client before it says anything: that it hangs up then is no failure.
    pub fn names_a_client(mut self) -> Self {
        self.may_bar = true;
        self
    }

    /// A wait of `patience` is the address's fault already, since others are there.
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = self.patience.min(patience);
        self
    }

    /// A server of its protocol is there.
    pub fn succeed(mut self) {
        if let Some(leave) = self.leave.take() {
            self.reach.tell(self.address, None, |health| health.succeeded(&leave));
        }
    }

    /// It took no connection, broke it, or was silent.
    pub fn fail(mut self, reason: &dyn fmt::Display) {
        self.fail_for(reason);
    }

    /// Another address was connected to first.
    pub fn overtaken(mut self) {
        if let Some(leave) = self.leave.take() {
            let (now, jitter) = (Instant::now().into_std(), fastrand::f64());
            self.reach.tell(self.address, None, |health| {
                health.overtaken(&leave, now, jitter);
                None
            });
        }
    }

    /// It says nothing of the address.
    pub fn abandon(mut self) {
        if let Some(leave) = self.leave.take() {
            self.reach.tell(self.address, None, |health| {
                health.abandoned(&leave);
                None
            });
        }
    }

    /// Does `work` on the connection, and takes the address's fault from its error. Should the address go
    /// down meanwhile, the work is not waited for: it would wait for the same.
    ///
    /// # Errors
    ///
    /// The work's, or [`ConnectError::WentDown`].
    pub async fn cover<T, E: Blame>(
        mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<(T, Self), E> {
        let up = self.up.clone();
        let done = tokio::select! {
            biased;
            done = work => done,
            () = up.cancelled() => {
                return Err(ConnectError::WentDown { address: self.address }.into());
            }
        };
        let error = match done {
            Ok(done) => return Ok((done, self)),
            Err(error) => error,
        };
        match error.blame() {
            Some(WireError::Closed | WireError::Io(_)) if self.may_bar => self.abandon(),
            Some(fault @ (WireError::Closed | WireError::Io(_) | WireError::Tls(_))) => {
                self.fail_for(fault);
            }
            // Whose time it was that ended: that is judged by how long it was.
            Some(WireError::Deadline) => {}
            Some(
                WireError::InputFull | WireError::PlaintextAfterStartTls | WireError::Violation(_),
            )
            | None => self.abandon(),
        }
        Err(error)
    }

    /// As [`Self::cover`]; when the work is done, a server of the protocol is there.
    ///
    /// # Errors
    ///
    /// As [`Self::cover`].
    pub async fn judge<T, E: Blame>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (done, trial) = self.cover(work).await?;
        trial.succeed();
        Ok(done)
    }

    fn fail_for(&mut self, reason: &dyn fmt::Display) {
        if let Some(leave) = self.leave.take() {
            let (now, jitter) = (Instant::now().into_std(), fastrand::f64());
            let failed = |health: &mut Health| health.failed(&leave, now, jitter);
            self.reach.tell(self.address, Some(reason), failed);
            self.reach.trouble.notify_one();
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.began.elapsed() >= self.patience {
            self.fail_for(&"no answer");
        }
        if let Some(leave) = self.leave.take() {
            self.reach.tell(self.address, None, |health| {
                health.abandoned(&leave);
                None
            });
        }
    }
}

/// Whether an address is one of this host's. The system is asked from which address it would send there:
/// from the same one, if that is its own. Nothing is sent by this.
fn is_local(ip: IpAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        // Any port will do.
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    source().is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(binds: &[Bind]) -> Reach {
        Reach { own: binds.into(), ..Reach::default() }
    }

    fn own(binds: &[Bind], address: &str) -> bool {
        listening(binds).own_listener(address.parse().unwrap()).is_some()
    }

    #[test]
    fn a_listener_of_our_own_is_known_by_address_and_port() {
        let one = [Bind::Address("127.0.0.1:143".parse().unwrap())];
        assert!(own(&one, "127.0.0.1:143"));
        assert!(own(&one, "[::ffff:127.0.0.1]:143"));
        assert!(own(&one, "0.0.0.0:143"), "this leads to 127.0.0.1");
        assert!(!own(&one, "127.0.0.1:144"));
        assert!(!own(&one, "127.0.0.2:143"));
        assert!(!own(&one, "[::1]:143"));
    }

    #[test]
    fn a_listener_on_every_address_has_every_one_of_this_host() {
        let every = [Bind::Port(143)];
        for local in ["127.0.0.1:143", "127.9.9.9:143", "[::1]:143", "[::]:143"] {
            assert!(own(&every, local), "{local}");
        }
        assert!(!own(&every, "192.0.2.1:143"));
        assert!(!own(&every, "127.0.0.1:993"));
        let v4 = [Bind::Address("0.0.0.0:143".parse().unwrap())];
        assert!(own(&v4, "127.0.0.2:143"));
        assert!(!own(&v4, "[::1]:143"));
    }

    const ADDRESS: &str = "192.0.2.1:143";

    fn failing(reach: &Arc<Reach>) -> Option<()> {
        let trial = reach.admit(ADDRESS.parse().unwrap(), Duration::MAX).ok()?;
        trial.fail(&"refused");
        Some(())
    }

    #[tokio::test]
    async fn who_waits_for_an_address_that_goes_down_waits_no_longer() {
        let reach = Arc::<Reach>::default();
        let waiting = reach.admit(ADDRESS.parse().unwrap(), Duration::MAX).unwrap();
        let waiting = waiting.judge(std::future::pending::<Result<(), ConnectError>>());
        tokio::pin!(waiting);
        let fails = async { while failing(&reach).is_some() {} };
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("it is up"),
            () = fails => {}
        }
        assert!(matches!(waiting.await, Err(ConnectError::WentDown { .. })));
    }

    #[tokio::test]
    async fn what_a_server_says_is_no_fault_of_its_address() {
        let reach = Arc::<Reach>::default();
        let address = ADDRESS.parse().unwrap();
        for _ in 0..10 {
            let trial = reach.admit(address, Duration::MAX).unwrap();
            let refused = async { Err::<(), _>(ConnectError::Timeout("a word".into())) };
            trial.judge(refused).await.unwrap_err();
        }
        assert!(reach.is_up(address));
        assert_eq!(reach.worth_a_look(), None);
    }

    #[tokio::test]
    async fn a_client_whom_the_server_bars_does_not_shut_out_the_others() {
        let reach = Arc::<Reach>::default();
        let address = ADDRESS.parse().unwrap();
        for (bars, is_up) in [(true, true), (false, false)] {
            for _ in 0..10 {
                let Ok(mut trial) = reach.admit(address, Duration::MAX) else { break };
                if bars {
                    trial = trial.names_a_client();
                }
                let hangs_up = async {
                    Err::<(), _>(ConnectError::Secure { address, source: WireError::Closed })
                };
                trial.judge(hangs_up).await.unwrap_err();
            }
            assert_eq!(reach.is_up(address), is_up);
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_long_enough_counts_whoever_ended_it() {
        let reach = Arc::<Reach>::default();
        let address = ADDRESS.parse().unwrap();
        for (patience, is_up) in [(Duration::MAX, true), (Duration::ZERO, false)] {
            for _ in 0..10 {
                drop(reach.admit(address, patience));
            }
            assert_eq!(reach.is_up(address), is_up);
        }
    }

    #[tokio::test]
    async fn addresses_without_blemish_are_forgotten_when_there_are_many() {
        let reach = Arc::<Reach>::default();
        while failing(&reach).is_some() {}
        for number in 0..1000_u16 {
            let address = SocketAddr::from(([192, 0, 2, 2], number));
            reach.admit(address, Duration::MAX).unwrap().succeed();
        }
        assert!(reach.addresses.lock().unwrap().len() <= MAX_ADDRESSES);
        assert!(!reach.is_up(ADDRESS.parse().unwrap()));
    }
}

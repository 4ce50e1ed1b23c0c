//! Which of an endpoint's addresses takes the connection (NET-8, RFC 8305).
//!
//! Families take turns, IPv6 first; each address is started a moment after the one before, or as soon as
//! that has failed; the first connection wins and the others are closed before anything was said on them.
//! Several hosts are raced in the order of preference. What is down is left out ([`crate::health`]).

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::ConnectError;
use crate::backend::{Endpoint, Host, SourceAddresses};
use crate::reach::Trial;
use crate::resolver::{Addresses, ResolveError};

/// From the start of one address to that of the next (RFC 8305 §5, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection that was made.
pub(super) struct Dialed<'e> {
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) host: &'e Host,
    pub(super) trial: Trial,
    /// There are addresses that could be tried instead.
    pub(super) has_others: bool,
}

/// An address to connect to.
struct Candidate<'e> {
    address: SocketAddr,
    host: &'e Host,
}

/// An address that is being connected to.
struct Runner<'e> {
    candidate: Candidate<'e>,
    trial: Trial,
}

/// Addresses that are tried, and what became of those that failed.
struct Race<'e> {
    endpoint: &'e Endpoint,
    passed_over: &'e [SocketAddr],
    deadline: Instant,
    waiting: VecDeque<Candidate<'e>>,
    runners: Vec<Option<Runner<'e>>>,
    /// The failure to be told if none is connected to.
    failure: Option<ConnectError>,
    /// When the first of those that are down may be tried.
    down_until: Option<Instant>,
}

/// Connects to the address that is there first, within the endpoint's connect timeout and until `until`; to
/// none of those that are `passed_over`.
pub(super) async fn dial<'e>(
    endpoint: &'e Endpoint,
    until: Option<Instant>,
    passed_over: &'e [SocketAddr],
) -> Result<Dialed<'e>, ConnectError> {
    let late = || ConnectError::Timeout(endpoint.shown().into());
    let ours = Instant::now().checked_add(endpoint.connect_timeout);
    let deadline = match (ours, until) {
        (Some(ours), Some(until)) => ours.min(until),
        (one, other) => one.or(other).ok_or_else(late)?,
    };
    let mut race = Race {
        endpoint,
        passed_over,
        deadline,
        waiting: VecDeque::new(),
        runners: Vec::new(),
        failure: None,
        down_until: None,
    };
    match tokio::time::timeout_at(deadline, race.run()).await {
        Ok(ended) => ended,
        Err(_) => {
            // All the time that is configured: their fault. Less, because somebody else has no more: not.
            if ours == Some(deadline) {
                for Runner { trial, .. } in race.runners.into_iter().flatten() {
                    trial.fail(&"no connection within the time allowed");
                }
            }
            Err(late())
        }
    }
}

impl<'e> Race<'e> {
    async fn run(&mut self) -> Result<Dialed<'e>, ConnectError> {
        let endpoint = self.endpoint;
        // Not all of the time for names: there must be some left for addresses.
        let hosts = u32::try_from(endpoint.hosts.len()).unwrap_or(u32::MAX);
        let share = endpoint.connect_timeout / hosts.saturating_add(1);
        let mut lookups: FuturesOrdered<_> =
            endpoint.hosts.iter().map(|host| look_up(endpoint, host, share)).collect();
        let mut running = FuturesUnordered::new();
        let mut next = Instant::now();
        loop {
            if next <= Instant::now()
                && let Some(candidate) = self.waiting.pop_front()
            {
                if let Some(address) = self.start(candidate) {
                    let number = self.runners.len().saturating_sub(1);
                    let source = endpoint.source;
                    running.push(async move { (number, connect(address, source).await) });
                    next = Instant::now() + self.delay();
                }
                continue;
            }
            tokio::select! {
                Some((number, connected)) = running.next() => match connected {
                    Ok(socket) => {
                        let has_others = !running.is_empty()
                            || !lookups.is_empty()
                            || self.waiting.iter().any(|candidate| self.may_try(candidate));
                        if let Some(won) = self.won(number, socket, has_others) {
                            return Ok(won);
                        }
                    }
                    Err(error) => {
                        self.lost(number, error);
                        next = Instant::now();
                    }
                },
                Some((host, found)) = lookups.next(), if self.waiting.is_empty() => match found {
                    Ok(addresses) => {
                        let candidate = |ip| Candidate { address: (ip, host.port).into(), host };
                        self.waiting.extend(interleaved(&addresses).into_iter().map(candidate));
                    }
                    Err(error) => self.note(error),
                },
                () = sleep_until(next), if !self.waiting.is_empty() => {}
                else => return Err(self.nobody()),
            }
        }
    }

    fn may_try(&self, candidate: &Candidate<'_>) -> bool {
        !self.passed_over.contains(&candidate.address)
            && self.endpoint.reach.is_up(candidate.address)
    }

    /// Begins with an address, unless it is passed over, down or our own.
    fn start(&mut self, candidate: Candidate<'e>) -> Option<SocketAddr> {
        let (address, endpoint) = (candidate.address, self.endpoint);
        if self.passed_over.contains(&address) {
            return None;
        }
        if let Some(listener) = endpoint.reach.own_listener(address) {
            let host = candidate.host.to_string().into();
            self.note(ConnectError::Own { host, address, listener });
            return None;
        }
        match endpoint.reach.admit(address, endpoint.patience()) {
            Ok(trial) => {
                self.runners.push(Some(Runner { candidate, trial }));
                Some(address)
            }
            Err(until) => {
                self.down_until = Some(self.down_until.map_or(until, |other| other.min(until)));
                None
            }
        }
    }

    /// Everybody gets a start before the time is over.
    fn delay(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let others = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        ATTEMPT_DELAY.min(left / others.saturating_add(1))
    }

    fn won(&mut self, number: usize, socket: TcpStream, has_others: bool) -> Option<Dialed<'e>> {
        let Runner { candidate, trial } = self.runners.get_mut(number)?.take()?;
        for Runner { trial, .. } in self.runners.drain(..).flatten() {
            trial.overtaken();
        }
        let Candidate { address, host } = candidate;
        Some(Dialed { socket, address, host, trial, has_others })
    }

    fn lost(&mut self, number: usize, error: io::Error) {
        let Some(runner) = self.runners.get_mut(number).and_then(Option::take) else { return };
        if is_ours(&error) {
            runner.trial.abandon();
        } else {
            runner.trial.fail(&error);
        }
        self.note(ConnectError::Connect { address: runner.candidate.address, source: error });
    }

    /// The last failure is told, but a mistake in the configuration before any other.
    fn note(&mut self, failure: ConnectError) {
        if !matches!(self.failure, Some(ConnectError::Own { .. })) {
            self.failure = Some(failure);
        }
    }

    fn nobody(&mut self) -> ConnectError {
        let endpoint = || self.endpoint.shown().into();
        match (self.failure.take(), self.down_until) {
            (Some(failure), _) => failure,
            (None, Some(until)) => {
                let again = until.saturating_duration_since(Instant::now());
                ConnectError::Down { endpoint: endpoint(), again }
            }
            (None, None) => ConnectError::Timeout(endpoint()),
        }
    }
}

async fn look_up<'e>(
    endpoint: &Endpoint,
    host: &'e Host,
    share: Duration,
) -> (&'e Host, Result<Addresses, ConnectError>) {
    let found = match timeout(share, endpoint.reach.resolve(&host.name)).await {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(source)) => Err(ConnectError::Resolve { host: host.name.clone(), source }),
        Err(_) => {
            let source = ResolveError::Failed("no answer in time".into());
            Err(ConnectError::Resolve { host: host.name.clone(), source })
        }
    };
    (host, found)
}

async fn connect(address: SocketAddr, source: SourceAddresses) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = source.towards(address.ip()) {
        socket.bind((source, 0).into())?;
    }
    socket.connect(address).await
}

/// Families in turn, IPv6 first, each in the order of the answer (RFC 8305 §4).
fn interleaved(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (v6, v4): (VecDeque<IpAddr>, VecDeque<IpAddr>) =
        addresses.iter().partition(|address| address.is_ipv6());
    let (mut turn, mut other) = (v6, v4);
    let mut ordered = Vec::with_capacity(addresses.len());
    while let Some(address) = turn.pop_front().or_else(|| other.pop_front()) {
        ordered.push(address);
        std::mem::swap(&mut turn, &mut other);
    }
    ordered
}

/// What this host lacks says nothing of another.
fn is_ours(error: &io::Error) -> bool {
    let lacking = [
        Errno::AFNOSUPPORT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
        Errno::ADDRINUSE,
    ];
    lacking.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_keep_their_order() {
        let addresses = |words: &[&str]| -> Vec<IpAddr> {
            words.iter().map(|word| word.parse().unwrap()).collect()
        };
        for (given, expected) in [
            (vec!["192.0.2.1", "192.0.2.2", "::1"], vec!["::1", "192.0.2.1", "192.0.2.2"]),
            (vec!["::1", "::2", "192.0.2.1"], vec!["::1", "192.0.2.1", "::2"]),
            (vec!["192.0.2.1"], vec!["192.0.2.1"]),
            (vec![], vec![]),
        ] {
            assert_eq!(interleaved(&addresses(&given)), addresses(&expected));
        }
    }
}

//! Who a client is: the peer, or whom a trusted front names (FWD-4).

use std::net::{IpAddr, SocketAddr};

use shared::wire::Wire;

use super::Context;
use crate::backend::Client;
use crate::front::Told;

/// Hops through login proxies that a login may still take (Dovecot's TTL): a loop ends.
const TTL: u8 = 5;

/// Whose guesses these are; `None` for a trusted front that has not named its client: what one of its clients
/// does is not to be blamed on all.
pub(super) fn counted(cx: &Context, wire: &Wire, told: &Told, unnamed: bool) -> Option<IpAddr> {
    let peer = wire.peer().ip();
    match told.forwarded.as_ref().and_then(|forwarded| forwarded.client_ip) {
        Some(client) => Some(client.to_canonical()),
        None if unnamed || cx.rules.is_trusted(peer) => None,
        None => Some(peer),
    }
}

/// Who the client is: the peer, or whom a trusted proxy names (FWD-4).
pub(super) fn client_of<'a>(
    wire: &Wire,
    session: &'a str,
    told: &'a Told,
    authority: Option<&'a str>,
) -> Client<'a> {
    let forwarded = told.forwarded.as_deref().cloned().unwrap_or_default();
    let merged = |known: SocketAddr, ip: Option<IpAddr>, port: Option<u16>| {
        // A port belongs to its address: ours says nothing of another one's.
        let port = port.unwrap_or(if ip.is_some() { 0 } else { known.port() });
        SocketAddr::new(ip.unwrap_or(known.ip()), port)
    };
    Client {
        address: merged(wire.peer(), forwarded.client_ip, forwarded.client_port),
        local: merged(wire.local(), forwarded.local_ip, forwarded.local_port),
        session,
        ttl: forwarded.ttl.map_or(TTL, |ttl| ttl.min(TTL).saturating_sub(1)),
        tls: wire.tls_description().map(|tls| tls.version),
        authority,
        told,
    }
}

//! Who may begin a session, and who is sent away instead (MX-14, MX-16).

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::time::Instant;

use shared::config::MxKind;
use shared::listener::Accepted;
use shared::smtp::reply::Reply;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::serve::Context;

impl Context {
    /// What a client is told that is not to begin a session at all.
    pub(crate) async fn turn_away(&self, client: IpAddr) -> Option<Reply> {
        match self.kind {
            MxKind::Internal => {
                let trusted = &self.rules.internal.trusted_networks;
                let is_trusted = trusted.iter().any(|network| network.contains(&client));
                let words = "This is not for you: see mx.internal.trusted_networks";
                return (!is_trusted).then(|| Reply::new(554, (7, 1), words));
            }
            // Whoever filters mail for us has limits of its own for strangers.
            MxKind::Lmtp => return None,
            MxKind::Smtp => {}
        }
        let now = Instant::now();
        if !self.edge.may_connect(client, now) {
            return Some(Reply::new(421, (7, 0), "Too many connections from your address"));
        }
        if self.edge.is_guessing(client, now) {
            return Some(Reply::new(421, (7, 0), "Too many unknown recipients from your address"));
        }
        if self.edge.exempts(client) {
            return None;
        }
        let zone = self.lists.listing(client).await?;
        Some(Reply::new(554, (7, 1), format!("Your address [{client}] is listed by {zone}")))
    }

    /// True when limits for strangers apply to this client.
    pub(crate) fn limits(&self, client: IpAddr) -> bool {
        self.kind == MxKind::Smtp && !self.edge.exempts(client)
    }

    /// True when STARTTLS would fail once more, as far as is known.
    pub(crate) fn spares_tls(&self, client: IpAddr) -> bool {
        let now = Instant::now();
        self.kind == MxKind::Smtp
            && self.rules.tls_fallback
            && self.edge.has_failed_handshake(client, now)
    }
}

/// True when a client does not wait for the greeting, which it gets after a while where that is configured.
pub(crate) async fn speaks_early(cx: &Context, accepted: &Accepted) -> bool {
    let delay = cx.rules.limits.greet_delay;
    if !delay.is_zero() && cx.limits(accepted.client.ip()) {
        let mut octet = [0];
        let spoken = timeout(delay, accepted.socket.peek(&mut octet));
        // At a stop it is greeted, and told.
        cx.lifecycle.stop().run_until_cancelled(spoken).await;
    }
    has_spoken(&accepted.socket)
}

/// True when a client did not wait for the greeting. Asked of the socket itself, since the runtime may
/// not have heard of it yet.
fn has_spoken(socket: &TcpStream) -> bool {
    let mut octet = [MaybeUninit::uninit()];
    SockRef::from(socket).peek(&mut octet).is_ok_and(|count| count > 0)
}

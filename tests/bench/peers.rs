//! Who is measured: our login proxy and what is installed beside it, each set up for speed as its
//! documentation says, with the same certificate, clients and backends. And Postfix with split delivery.

mod dovecot;
mod haproxy;
mod nginx;

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use shared::backend::LoginProtocol;
use tests::children::Child;
use tests::patience::until;
use tests::place::Place;
use tests::postfix::{Delivery, Options, Postfix};

use crate::proxy;
use crate::stage::Stage;

/// A proxy of logins, or of octets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Us,
    /// TCP mode: it knows nothing of logins.
    HaProxy,
    /// The mail module, which asks a service of HTTP where a login goes.
    Nginx,
    Dovecot,
}

impl Who {
    pub const ALL: [Self; 4] = [Self::Us, Self::HaProxy, Self::Nginx, Self::Dovecot];

    /// Whether it is measured with this protocol: the others are, with IMAP alone.
    pub fn speaks(self, protocol: LoginProtocol) -> bool {
        self == Self::Us || protocol == LoginProtocol::Imap
    }

    /// Starts one whose only backend is the stage's.
    pub async fn start(self, stage: &Stage) -> anyhow::Result<Peer> {
        let backend = stage.backend.port;
        match self {
            Self::Us => {
                let (state, backends) = (stage.place()?, [("old", backend)]);
                let table = crate::table::sqlite(&state, 100).await?;
                let node = proxy::LoginNode {
                    protocol: stage.protocol,
                    backends: &backends,
                    backend_tls: stage.backend_tls,
                };
                let service = node.start(&state, &table, &stage.tls).await?;
                let (port, pid) = (service.port, service.pid());
                Ok(Peer { who: self, port, pid, _running: Box::new(service) })
            }
            Self::HaProxy => haproxy::start(&stage.tls, backend, stage.backend_tls).await,
            Self::Nginx => nginx::start(&stage.tls, backend, stage.backend_tls).await,
            Self::Dovecot => dovecot::start(&stage.tls, backend, stage.backend_tls).await,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Us => "login-proxy",
            Self::HaProxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Dovecot => "Dovecot's proxy",
        })
    }
}

/// A proxy that runs until this value is dropped, and how to find its processes.
pub struct Peer {
    pub who: Who,
    pub port: u16,
    pub pid: u32,
    _running: Box<dyn Any>,
}

impl Peer {
    /// A program of somebody else's that will listen on `port`.
    async fn start(who: Who, command: &[&str], place: Place, port: u16) -> anyhow::Result<Self> {
        let program = command.first().copied().unwrap_or_default();
        ensure!(Path::new(program).exists(), "{program} is not there; `make bench` installs it");
        let child = Child::start(&[], command, place.path(), "console")?;
        let listening = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        until("a peer to listen", || {
            listening().map(|_| ()).or((!child.is_running()).then_some(()))
        })
        .await?;
        ensure!(child.is_running(), "it ended:\n{}", child.end_of_log());
        let pid = u32::try_from(child.pid())?;
        // The place goes after the child, which uses it.
        Ok(Self { who, port, pid, _running: Box::new((child, place)) })
    }
}

/// A Postfix that sends each of `recipients` to the server beside it.
pub async fn postfix(recipients: Vec<(String, u16)>) -> anyhow::Result<Postfix> {
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    Postfix::start(Options {
        domain: "example.org".into(),
        recipients: recipients.iter().map(|(recipient, _)| recipient.clone()).collect(),
        delivery: Delivery::Split(
            recipients.into_iter().map(|(recipient, port)| (recipient, local(port))).collect(),
        ),
        wants_names: false,
        sasl: None,
        ..Options::default()
    })
    .await
    .context("Postfix as a peer")
}

//! Who is measured: our login proxy and what is installed beside it, each set up for speed as its
//! documentation says, with the same certificate, clients and backends. And Postfix with split delivery
//! by the same table.

mod dovecot;
mod haproxy;
mod nginx;

use std::any::Any;
use std::fmt;
use std::path::Path;

use anyhow::{Context, ensure};
use shared::backend::LoginProtocol;
use tests::children::Child;
use tests::patience::until;
use tests::place::Place;
use tests::postfix::{Delivery, Options, Postfix};
use tests::postgres::{Database, Server};

use crate::proxy;
use crate::stage::Stage;
use crate::tls::Tls;

/// How it learns owners; and it takes mail as fast as it comes, from as many as want to send.
pub const POSTFIX: &str = "transport_maps = proxy:pgsql:/etc/postfix/owners.cf\n\
                           default_process_limit = 300\nin_flow_delay = 0\n";

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

    /// Starts a reverse proxy of HTTP whose only backend is at that port; Dovecot has none.
    pub async fn start_web(self, tls: &Tls, state: &Path, backend: u16) -> anyhow::Result<Peer> {
        match self {
            Self::Us => {
                let table = crate::table::sqlite(state, 100).await?;
                let service = proxy::web(state, &table, tls, backend).await?;
                let (port, pid) = (service.port, service.pid());
                Ok(Peer { who: self, port, pid, _running: Box::new(service) })
            }
            Self::HaProxy => haproxy::web(tls, backend).await,
            Self::Nginx => nginx::web(tls, backend).await,
            Self::Dovecot => anyhow::bail!("it speaks no HTTP"),
        }
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

/// A Postfix that asks a table in Postgres where each of so many users lives, and sends there: to old or
/// new, whose ports these are. With `more` settings.
pub async fn postfix(
    users: usize,
    table: &Database,
    [old, new]: [u16; 2],
    more: &str,
) -> anyhow::Result<Postfix> {
    let socket = Server::shared().socket();
    let map = format!(
        "hosts = unix:{}\nuser = postgres\npassword = none\ndbname = {}\ndomain = example.org\n\
         query = SELECT 'smtp:[127.0.0.1]:' || CASE owner WHEN 'new' THEN {new} ELSE {old} END \
         FROM accounts WHERE account = '%s'\n",
        socket.display(),
        table.name
    );
    Postfix::start(Options {
        domain: "example.org".into(),
        recipients: (0..users).map(|number| format!("user{number}@example.org")).collect(),
        // By the map alone.
        delivery: Delivery::Split(Vec::new()),
        settings: format!("{POSTFIX}{more}"),
        files: vec![("owners.cf".into(), map)],
        ..Options::default()
    })
    .await
    .context("Postfix as a peer")
}

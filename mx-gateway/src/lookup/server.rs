//! The look-ups on their sockets: TCP for trusted networks, and a Unix socket.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use shared::config::LookupConfig;
use shared::lifecycle::Lifecycle;
use shared::listener::{BindError, Listener, Refused, Sockets};
use shared::ownership::Ownership;
use shared::seats::Seats;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

use super::LookUp;
use super::protocol::{Malformed, Protocol};

/// Longest wait for the next question. Postfix closes after ten seconds without one.
const IDLE: Duration = Duration::from_mins(2);
/// Longest wait for a reader who does not read.
const WRITE: Duration = Duration::from_secs(10);
/// Octets that are read at once.
const READ: usize = 1024;
/// Questions that are answered on one connection before others have their turn.
const IN_A_ROW: usize = 64;
/// Connections to the Unix socket.
const MAX_LOCAL: usize = 5_000;
/// Wait after a failed accept, such as one for want of descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The sockets of the look-ups.
#[derive(Debug)]
pub struct Server {
    /// Bound, each with what is spoken on it.
    listeners: Vec<(Protocol, Listener)>,
    /// Until it is served.
    local: Mutex<Option<UnixListener>>,
    rules: Arc<ArcSwap<Rules>>,
}

#[derive(Debug)]
struct Rules {
    look_up: LookUp,
    trusted: Vec<IpNet>,
}

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it does not read")]
    Stuck,
}

impl Server {
    /// Binds every socket of `config`.
    ///
    /// # Errors
    ///
    /// A [`BindError`], or the Unix socket's failure, with its path.
    pub fn bind(
        config: &LookupConfig,
        ownership: &Arc<Ownership>,
        among: &Sockets,
    ) -> Result<Self, LookupError> {
        let maps = config.socketmap.iter().map(|listener| (Protocol::Socketmap, listener));
        let tables = config
            .tcp_tables
            .iter()
            .map(|(backend, listener)| (Protocol::TcpTable(backend.clone()), listener));
        let mut listeners = Vec::new();
        for (protocol, listener) in maps.chain(tables) {
            listeners.push((protocol, Listener::bind_among(listener, among)?));
        }
        let local = config.socket.as_deref().map(bind_local).transpose()?;
        Ok(Self {
            listeners,
            local: Mutex::new(local),
            rules: Arc::new(ArcSwap::from_pointee(Rules::of(config, ownership))),
        })
    }

    /// The TCP addresses that are bound, until they are served.
    pub fn addresses(&self) -> Vec<(Protocol, SocketAddr)> {
        let of = |(protocol, listener): &(Protocol, Listener)| {
            let protocol = protocol.clone();
            listener.addresses().into_iter().map(move |address| (protocol.clone(), address))
        };
        self.listeners.iter().flat_map(of).collect()
    }

    /// Answers by `config` from now on.
    pub fn reload(&self, config: &LookupConfig, ownership: &Arc<Ownership>) {
        self.rules.store(Arc::new(Rules::of(config, ownership)));
    }

    /// Begins to answer.
    pub fn serve(&self, lifecycle: &Lifecycle) {
        for (protocol, listener) in &self.listeners {
            let addresses = listener.addresses();
            let name = match protocol {
                Protocol::Socketmap => "socketmap",
                Protocol::TcpTable(_) => "tcp_table",
            };
            tracing::info!(protocol = name, ?addresses, "listening");
            let (rules, protocol) = (Arc::clone(&self.rules), protocol.clone());
            let stop = lifecycle.stop().clone();
            listener.serve(lifecycle, without_a_word, move |accepted| {
                let (rules, protocol, stop) = (Arc::clone(&rules), protocol.clone(), stop.clone());
                async move {
                    let client = accepted.client;
                    if rules.load().trusts(client.ip()) {
                        let answering = answer(accepted.socket, &protocol, &rules);
                        log(stop.run_until_cancelled(answering).await);
                    } else {
                        tracing::warn!(%client, "not one of mx.lookup.trusted_networks");
                    }
                    drop(accepted.seat);
                }
            });
        }
        let local = self.local.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(local) = local {
            let address = local.local_addr().ok();
            tracing::info!(protocol = "socketmap", ?address, "listening on a Unix socket");
            let (rules, tasks) = (Arc::clone(&self.rules), lifecycle.clone());
            lifecycle.spawn_listener("lookup", accept(local, rules, tasks));
        }
    }
}

/// Why the look-ups have no sockets.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A TCP listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The Unix socket; its path is in the message.
    #[error(transparent)]
    Local(#[from] io::Error),
}

impl Rules {
    fn of(config: &LookupConfig, ownership: &Arc<Ownership>) -> Self {
        let ownership = Arc::clone(ownership);
        Self {
            look_up: LookUp { ownership, next_hop: config.next_hop.clone() },
            trusted: config.trusted_networks.clone(),
        }
    }

    fn trusts(&self, client: std::net::IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&client))
    }
}

/// A socket that an earlier process has left is taken away. One that still serves keeps its connections.
fn bind_local(path: &Path) -> io::Result<UnixListener> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
    };
    let is_socket = |meta: std::fs::Metadata| meta.file_type().is_socket();
    if std::fs::symlink_metadata(path).is_ok_and(is_socket) {
        std::fs::remove_file(path).map_err(named)?;
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    // Who may ask is the directory's affair.
    std::fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(named)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, rules: Arc<ArcSwap<Rules>>, lifecycle: Lifecycle) {
    let seats = Seats::new(MAX_LOCAL, MAX_LOCAL);
    loop {
        let accepted = tokio::select! {
            () = lifecycle.draining().cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(seat) = seats.take(()) else { continue };
                let (rules, stop) = (Arc::clone(&rules), lifecycle.stop().clone());
                lifecycle.spawn("lookup", async move {
                    let answering = answer(stream, &Protocol::Socketmap, &rules);
                    log(stop.run_until_cancelled(answering).await);
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept connections; trying again");
                if lifecycle.draining().run_until_cancelled(sleep(BACK_OFF)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Answers until nothing is asked any more.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    protocol: &Protocol,
    rules: &ArcSwap<Rules>,
) -> Result<(), Ended> {
    let (mut unread, mut in_a_row) = (Vec::new(), 0_usize);
    loop {
        while let Some((request, taken)) = protocol.request(&unread)? {
            unread.drain(..taken);
            let reply =
                protocol.reply(&rules.load().look_up.answer(&request.backend, &request.key));
            timeout(WRITE, stream.write_all(&reply)).await.map_err(|_| Ended::Stuck)??;
            in_a_row = in_a_row.saturating_add(1);
            if in_a_row.is_multiple_of(IN_A_ROW) {
                tokio::task::yield_now().await;
            }
        }
        let mut octets = [0; READ];
        let Ok(read) = timeout(IDLE, stream.read(&mut octets)).await else { return Ok(()) };
        match octets.get(..read?) {
            None | Some([]) => return Ok(()),
            Some(more) => unread.extend_from_slice(more),
        }
    }
}

fn log(ended: Option<Result<(), Ended>>) {
    if let Some(Err(error)) = ended {
        tracing::info!(%error, "a look-up connection ended");
    }
}

/// These protocols have no words for it; Postfix comes again.
fn without_a_word(_: Refused) -> Vec<u8> {
    Vec::new()
}

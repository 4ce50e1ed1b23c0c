//! A TCP connection's way to a real mail server, on which the verdict on a message can be held back.
//!
//! The server has the message and has answered; what it says does not arrive until a test lets it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::patience::PATIENCE;

/// End of mail data (RFC 5321 §4.1.1.4).
const END_OF_DATA: &[u8] = b"\r\n.\r\n";
/// Octets that are looked at again with what follows: more than a BDAT command has.
const KEPT: usize = 64;

/// A way to a server, open while this value lives.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shut: watch::Sender<bool>,
    held: watch::Receiver<usize>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Link {
    /// Opens a way to `server` on which verdicts pass.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (shut, gate) = watch::channel(false);
        let (count, held) = watch::channel(0);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            let count = Arc::new(count);
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server, gate.clone(), Arc::clone(&count)));
            }
        });
        Ok(Self { address, shut, held, _tasks: tasks })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on no verdict on a message passes.
    pub fn hold_verdicts(&self) {
        self.shut.send_replace(true);
    }

    /// Waits until the server has given a verdict that is held here.
    ///
    /// # Errors
    ///
    /// It gives none.
    pub async fn verdict_held(&mut self) -> Result<()> {
        timeout(PATIENCE, self.held.wait_for(|count| *count > 0))
            .await
            .context("the server gave no verdict")?
            .context("the link is gone")
            .map(drop)
    }

    /// Lets the verdicts pass.
    pub fn release_verdicts(&self) {
        self.shut.send_replace(false);
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    gate: watch::Receiver<bool>,
    count: Arc<watch::Sender<usize>>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let complete = AtomicBool::new(false);
    tokio::join!(
        there(from_client, to_server, &complete),
        back(from_server, to_client, &complete, gate, &count)
    );
}

/// From the client to the server, with an eye on the end of the message.
async fn there(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, complete: &AtomicBool) {
    let mut octets = [0; 8192];
    let mut tail = Vec::new();
    // Of a chunk whose command has passed.
    let mut missing: Option<usize> = None;
    while let Ok(count @ 1..) = from.read(&mut octets).await {
        let ended = if let Some(left) = missing {
            missing = left.checked_sub(count).filter(|left| *left > 0);
            missing.is_none()
        } else {
            tail.extend_from_slice(&octets[..count]);
            let chunk = last_chunk(&tail);
            missing = chunk.filter(|left| *left > 0);
            chunk == Some(0) || tail.windows(END_OF_DATA.len()).any(|window| window == END_OF_DATA)
        };
        if ended {
            // Before the server can answer to it.
            complete.store(true, Ordering::SeqCst);
        }
        if ended || missing.is_some() {
            tail.clear();
        }
        tail.drain(..tail.len().saturating_sub(KEPT));
        if to.write_all(&octets[..count]).await.is_err() {
            return;
        }
    }
}

/// Octets of the last chunk (RFC 3030) that follow what is here, once its command is.
fn last_chunk(tail: &[u8]) -> Option<usize> {
    let at = tail.windows(5).position(|window| window == b"BDAT ")?;
    let command = &tail[at..];
    let end = command.windows(2).position(|window| window == b"\r\n")?;
    let octets = std::str::from_utf8(&command[5..end]).ok()?.strip_suffix(" LAST")?;
    Some(octets.parse::<usize>().ok()?.saturating_sub(command.len() - end - 2))
}

/// From the server to the client; waits with verdicts while the gate is shut.
async fn back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    complete: &AtomicBool,
    mut gate: watch::Receiver<bool>,
    held: &watch::Sender<usize>,
) {
    let mut octets = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut octets).await {
        if complete.swap(false, Ordering::SeqCst) && *gate.borrow() {
            held.send_modify(|held| *held += 1);
            if gate.wait_for(|shut| !shut).await.is_err() {
                return;
            }
        }
        if to.write_all(&octets[..count]).await.is_err() {
            return;
        }
    }
}

//! A WebSocket (RFC 6455) between a client and its owner: octets both ways, until either end closes, the
//! account moves or nothing comes any more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Client;
use super::body::Kick;
use super::flight::Flight;

/// Octets that are read at once. A WebSocket is idle nearly always, and keeps them.
const BUFFER: usize = 4096;

/// What a WebSocket goes by.
pub(super) struct Tunnel {
    pub(super) idle: Duration,
    pub(super) end: CancellationToken,
    pub(super) _client: Arc<Client>,
}

/// A leg whose octets are counted as they are read.
struct Counted {
    leg: TokioIo<Upgraded>,
    read: Arc<AtomicU64>,
}

impl Tunnel {
    pub(super) async fn run(
        self,
        client: OnUpgrade,
        backend: OnUpgrade,
        mut kick: Kick,
        flight: Flight,
    ) {
        let (inward, outward) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted =
            |leg, read: &Arc<AtomicU64>| Counted { leg: TokioIo::new(leg), read: read.clone() };
        let joined = async {
            let client = client.await.map_err(io::Error::other)?;
            let backend = backend.await.map_err(io::Error::other)?;
            let (mut client, mut backend) = (counted(client, &inward), counted(backend, &outward));
            copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await
        };
        let ended = {
            kick.at_once();
            tokio::select! {
                done = joined => match done {
                    Ok(_) => "closed",
                    Err(_) => "broken off",
                },
                () = kick.over() => "the account was moved",
                () = silent(&inward, &outward, self.idle) => "nothing came within the time allowed",
                () = self.end.cancelled() => "this node stops",
            }
        };
        // Both legs are closed: only now the session is not busy any more (P5).
        flight.end(ended, inward.load(Ordering::Relaxed), outward.load(Ordering::Relaxed));
    }
}

/// Waits until nothing was read from either leg for that long.
async fn silent(inward: &AtomicU64, outward: &AtomicU64, limit: Duration) {
    let read = || inward.load(Ordering::Relaxed).wrapping_add(outward.load(Ordering::Relaxed));
    let mut before = read();
    loop {
        sleep(limit).await;
        let now = read();
        if now == before {
            return;
        }
        before = now;
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.leg).poll_read(cx, buffer);
        let read = buffer.filled().len().saturating_sub(before);
        self.read.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.leg).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.leg).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.leg).poll_shutdown(cx)
    }
}

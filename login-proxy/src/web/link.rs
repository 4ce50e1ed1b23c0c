//! A connection as hyper sees it, on either leg: with or without TLS, and with an end to waiting for a peer
//! that takes nothing.
//!
//! hyper's own deadlines are for heads alone. What is said last is heard: a connection that is closed while
//! its peer still sends is reset, and the answer with it; so the rest is read for a moment (RFC 9112 §9.6).

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::TlsStream;

/// How long a peer may go on sending after our last word.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read at once, in octets.
const LINGER_READ: usize = 4096;

/// One leg.
#[derive(Debug)]
pub(super) struct Link {
    leg: Leg,
    /// How long nothing may be taken that we write.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
pub(super) enum Leg {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    pub(super) fn new(leg: Leg, patience: Duration) -> Self {
        Self { leg, patience, stalled: None, lingering: None }
    }

    /// A write that waits longer than it may fails; its peer takes nothing any more.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.leg {
            Leg::Plain(leg) => Pin::new(leg).poll_read(cx, buffer),
            Leg::Tls(leg) => match Pin::new(leg).poll_read(cx, buffer) {
                // Many clients leave close_notify out; every message here has an end of its own.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                polled => polled,
            },
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.leg {
            Leg::Plain(leg) => Pin::new(leg).poll_write(cx, octets),
            Leg::Tls(leg) => Pin::new(leg).poll_write(cx, octets),
        };
        self.judge(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.leg {
            Leg::Plain(leg) => Pin::new(leg).poll_write_vectored(cx, octets),
            Leg::Tls(leg) => Pin::new(leg).poll_write_vectored(cx, octets),
        };
        self.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.leg {
            Leg::Plain(leg) => leg.is_write_vectored(),
            Leg::Tls(leg) => leg.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match &mut self.leg {
            Leg::Plain(leg) => Pin::new(leg).poll_flush(cx),
            Leg::Tls(leg) => Pin::new(leg).poll_flush(cx),
        };
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let polled = match &mut self.leg {
                Leg::Plain(leg) => Pin::new(leg).poll_shutdown(cx),
                Leg::Tls(leg) => Pin::new(leg).poll_shutdown(cx),
            };
            ready!(self.judge(cx, polled))?;
            self.lingering = Some(Box::pin(sleep(LINGER)));
        }
        let mut scratch = [0; LINGER_READ];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match self.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let over =
                        self.lingering.as_ref().is_none_or(|end| end.deadline() <= Instant::now());
                    if over {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    if let Some(lingering) = &mut self.lingering {
                        ready!(lingering.as_mut().poll(cx));
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

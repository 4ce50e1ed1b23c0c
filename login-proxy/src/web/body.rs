//! Bodies on their way through: counted, bounded, and ended when their account moves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use shared::ownership::Registration;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::flight::Flight;

/// A backend that says nothing to `Expect: 100-continue` for this long gets the body (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("the body is too large")]
    TooLarge,
    #[error("nothing came, or was taken, within the time allowed")]
    Slow,
    #[error("the other end broke off")]
    Broken,
    #[error("the account was moved")]
    Moved,
}

/// A body of which something was read ahead.
#[derive(Debug, Default)]
pub(super) struct Spliced {
    pub(super) first: Bytes,
    pub(super) rest: Option<Incoming>,
    trailers: Option<HeaderMap>,
}

impl Spliced {
    /// Nothing was read yet.
    pub(super) fn whole(rest: Incoming) -> Self {
        Self { rest: Some(rest), ..Self::default() }
    }

    /// Octets of our own.
    pub(super) fn octets(first: Bytes) -> Self {
        Self { first, ..Self::default() }
    }

    /// Nothing of it is to come.
    pub(super) fn is_complete(&self) -> bool {
        self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Reads up to `limit` octets, or more where the last frame has more, or to the end.
    pub(super) async fn read_ahead(&mut self, limit: usize, patience: Duration) -> Result<(), Cut> {
        let mut read = Vec::from(std::mem::take(&mut self.first));
        while read.len() < limit
            && let Some(rest) = &mut self.rest
        {
            let frame = timeout(patience, rest.frame()).await.map_err(|_| Cut::Slow)?;
            match frame {
                None => self.rest = None,
                Some(Err(_)) => return Err(Cut::Broken),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => read.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
        self.first = read.into();
        Ok(())
    }

    /// Takes what has arrived, and waits for nothing.
    pub(super) async fn take_what_is_there(&mut self) -> Result<(), Cut> {
        let mut read = Vec::from(std::mem::take(&mut self.first));
        let taken = std::future::poll_fn(|cx| {
            while let Some(rest) = &mut self.rest {
                match Pin::new(rest).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => self.rest = None,
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Cut::Broken)),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => read.extend_from_slice(&data),
                        Err(frame) => self.trailers = frame.into_trailers().ok(),
                    },
                }
                if self.is_complete() {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        });
        let taken = taken.await;
        self.first = read.into();
        taken
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        if let Some(rest) = &mut self.rest {
            let frame = ready!(Pin::new(rest).poll_frame(cx));
            if frame.is_none() {
                self.rest = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(|_| Cut::Broken)));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end(&self) -> bool {
        self.first.is_empty() && self.is_complete() && self.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let first = u64::try_from(self.first.len()).unwrap_or(u64::MAX);
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        // With trailers it is chunked, whatever its size.
        if let Some(upper) = rest.upper().filter(|_| self.trailers.is_none()) {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

/// How far the sending of a request's body is; it outlives the body.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// When something was sent last, in milliseconds since then.
    last: AtomicU64,
    octets: AtomicU64,
    /// Why it ended early: a [`Cut`]'s number, or 0.
    fault: AtomicU8,
}

impl Progress {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            fault: AtomicU8::new(0),
        })
    }

    /// When something was sent last.
    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets.load(Ordering::Relaxed)
    }

    /// Why it ended early.
    pub(super) fn fault(&self) -> Option<Cut> {
        match self.fault.load(Ordering::Relaxed) {
            1 => Some(Cut::TooLarge),
            2 => Some(Cut::Slow),
            3 => Some(Cut::Broken),
            _ => None,
        }
    }

    fn note(&self, octets: usize) -> u64 {
        let elapsed = self.began.elapsed().as_millis();
        self.last.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
        let octets = u64::try_from(octets).unwrap_or(u64::MAX);
        self.octets.fetch_add(octets, Ordering::Relaxed).saturating_add(octets)
    }

    fn fail(&self, cut: Cut) -> Cut {
        let number = match cut {
            Cut::TooLarge => 1,
            Cut::Slow => 2,
            Cut::Broken | Cut::Moved => 3,
        };
        self.fault.store(number, Ordering::Relaxed);
        cut
    }
}

/// A request's body on its way to a backend.
pub(super) struct Sent {
    body: Spliced,
    limit: u64,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    progress: Arc<Progress>,
    /// What is still to be sent is sent under it (P5).
    _registration: Option<Arc<Registration>>,
}

impl Sent {
    /// At most `limit` octets, none of them waited for longer than `patience`.
    pub(super) fn new(
        body: Spliced,
        limit: u64,
        patience: Duration,
        registration: Option<Arc<Registration>>,
    ) -> Self {
        let progress = Progress::new();
        Self {
            body,
            limit,
            patience,
            waiting: None,
            gate: None,
            progress,
            _registration: registration,
        }
    }

    /// Nothing is sent before the token is cancelled, which is when the backend wants it; or it says nothing.
    pub(super) fn wait_for(&mut self, wanted: CancellationToken) {
        self.gate = Some(Box::pin(async move {
            let _ = timeout(CONTINUE_WAIT, wanted.cancelled()).await;
        }));
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Gives back what nothing was sent of.
    pub(super) fn into_body(self) -> Spliced {
        self.body
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        match this.body.poll(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.waiting = None;
                if let Some(trailers) = frame.trailers_mut() {
                    super::head::strip_claims(trailers);
                }
                let octets = frame.data_ref().map_or(0, Bytes::len);
                if this.progress.note(octets) > this.limit {
                    return Poll::Ready(Some(Err(this.progress.fail(Cut::TooLarge))));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cut))) => Poll::Ready(Some(Err(this.progress.fail(cut)))),
            Poll::Ready(None) => {
                this.progress.note(0);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let patience = this.patience;
                let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(waiting.as_mut().poll(cx));
                Poll::Ready(Some(Err(this.progress.fail(Cut::Slow))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The end of an exchange whose account moves: at once, or after a grace.
#[derive(Default)]
pub(super) struct Kick {
    token: Option<CancellationToken>,
    grace: Duration,
    kicked: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    over: Option<Pin<Box<Sleep>>>,
}

impl Kick {
    /// When `token` is cancelled, `grace` is left.
    pub(super) fn new(token: CancellationToken, grace: Duration) -> Self {
        Self { token: Some(token), grace, ..Self::default() }
    }

    /// One more of the same, which counts for itself.
    pub(super) fn another(&self) -> Self {
        Self { token: self.token.clone(), grace: self.grace, ..Self::default() }
    }

    /// From now on there is no grace: what goes on has no end of its own.
    pub(super) fn at_once(&mut self) {
        self.grace = Duration::ZERO;
        self.over = None;
    }

    /// Waits for the end.
    pub(super) async fn over(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(token) = &self.token else { return Poll::Pending };
        if !token.is_cancelled() {
            let kicked =
                self.kicked.get_or_insert_with(|| Box::pin(token.clone().cancelled_owned()));
            ready!(kicked.as_mut().poll(cx));
        }
        let grace = self.grace;
        let over = self.over.get_or_insert_with(|| Box::pin(sleep(grace)));
        over.as_mut().poll(cx)
    }

    fn is_due(&self) -> bool {
        self.token.as_ref().is_some_and(CancellationToken::is_cancelled)
    }
}

/// The body of an answer: ours, or a backend's on its way to the client.
pub(super) enum Answer {
    Own(Full<Bytes>),
    Passed(Box<Passed>),
}

/// A backend's.
pub(super) struct Passed {
    body: Spliced,
    kick: Kick,
    /// Longest silence of the backend.
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    /// Taken at its end.
    flight: Option<Flight>,
}

impl Answer {
    pub(super) fn own(octets: impl Into<Bytes>) -> Self {
        Self::Own(Full::new(octets.into()))
    }

    pub(super) fn passed(body: Spliced, kick: Kick, patience: Duration, flight: Flight) -> Self {
        Self::Passed(Box::new(Passed { body, kick, patience, waiting: None, flight: Some(flight) }))
    }
}

impl Passed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.kick.is_due() && self.kick.poll(cx).is_ready() {
            return self.end(Cut::Moved);
        }
        match self.body.poll(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting = None;
                if let Some(flight) = &mut self.flight {
                    flight.note(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cut))) => self.end(cut),
            Poll::Ready(None) => {
                if let Some(flight) = self.flight.take() {
                    flight.land();
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                if self.kick.poll(cx).is_ready() {
                    return self.end(Cut::Moved);
                }
                let patience = self.patience;
                let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(waiting.as_mut().poll(cx));
                self.end(Cut::Slow)
            }
        }
    }

    fn end(&mut self, cut: Cut) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(flight) = self.flight.take() {
            flight.crash(Some(cut));
        }
        Poll::Ready(Some(Err(cut)))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            // Of a body that is known to have ended nobody asks for more.
            if self.body.is_end() { flight.land() } else { flight.crash(None) }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Own(own) => {
                let frame = ready!(Pin::new(own).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Self::Passed(passed) => passed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(own) => own.is_end_stream(),
            Self::Passed(passed) => passed.body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(own) => own.size_hint(),
            Self::Passed(passed) => passed.body.size_hint(),
        }
    }
}

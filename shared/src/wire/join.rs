//! Joining a client's session to its backend's: every octet as it is, in both directions.
//!
//! Each leg is plain or TLS. Octets go from one socket through this thread's scratch to the other;
//! only what the other does not take is kept, and while something is kept nothing more is read for
//! it. So an idle joined session owns two sockets, their TLS keys and one timer.
//!
//! No protocol is known here, so nothing is said to either side: the join cannot know whether it is
//! inside a literal. A kick ends a quiet session, or waits for the first quiet moment; what the kernel has
//! not sent to the backend by then is thrown away, so that nothing arrives there after the session's end.
//! Where a protocol has a command that must not pass, its [`Watch`] looks for it.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::scratch::{READ, Scratch, lend};
use super::{Wire, WireError, later};

/// A session is quiet when no octet went either way for this long and none waits.
const QUIET: Duration = Duration::from_millis(100);
/// How long a silent client may stay once its backend has closed: nobody will answer it any more.
const AFTER_BACKEND: Duration = Duration::from_secs(5);
/// How often a kicked session that waits for an answer asks whether it still may.
const HURRY_EVERY: Duration = Duration::from_secs(1);
/// Reads of one direction in one poll, so that a busy session does not starve its thread's others.
const ROUNDS: usize = 16;

/// Looks at what is said on a joined connection, before it is passed on.
pub trait Watch: std::fmt::Debug + Send + Sync {
    /// What the client says next. False: it must not pass, and the session ends.
    fn client_says(&mut self, octets: &[u8]) -> bool;

    /// What the backend says next.
    fn backend_says(&mut self, octets: &[u8]);
}

/// When a joined session ends, other than by its peers.
#[derive(Debug)]
pub struct JoinRules {
    /// Longest silence of both legs together.
    pub idle: Duration,
    /// Cancelled when the account has moved: the session ends at its first quiet moment.
    pub kick: CancellationToken,
    /// Longest wait for a quiet moment.
    pub kick_grace: Duration,
    /// For protocols in which every word of the client's is answered, and a message that is cut off before
    /// its answer would come twice: no moment is quiet while the backend owes an answer.
    pub answer: Option<Box<AnswerGrace>>,
    /// Cancelled when the process ends: the session ends at once.
    pub end: CancellationToken,
    /// Looks for what must not pass; for most protocols and backends nobody needs to.
    pub watch: Option<Box<dyn Watch>>,
}

/// How long a kicked session may go on while its backend owes an answer.
pub struct AnswerGrace {
    /// In all.
    pub longest: Duration,
    /// True when there is no time for that any more: [`JoinRules::kick_grace`] counts then.
    pub hurry: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for AnswerGrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerGrace").field("longest", &self.longest).finish_non_exhaustive()
    }
}

/// How a joined session went.
#[derive(Debug)]
pub struct Joined {
    /// Why it ended.
    pub ended: Ended,
    /// Octets from the client to the backend, without TLS's own.
    pub octets_in: u64,
    /// Octets from the backend to the client, without TLS's own.
    pub octets_out: u64,
}

/// Why a joined session ended.
#[derive(Debug)]
pub enum Ended {
    /// The client closed first.
    Client,
    /// The backend closed first.
    Backend,
    /// Neither said anything for [`JoinRules::idle`].
    Idle,
    /// [`JoinRules::kick`].
    Kicked,
    /// [`JoinRules::end`].
    Shutdown,
    /// [`JoinRules::watch`] let something not pass.
    Forbidden,
    /// A leg failed otherwise than by closing.
    Failed(Leg, WireError),
}

/// One side of a joined session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// Between the client and us.
    Client,
    /// Between us and the backend.
    Backend,
}

/// Joins two wires until both have closed or `rules` end it; then closes both. What is unread on
/// either goes to the other first. The future is small, and meant to be a task of its own: whatever
/// the login needed has been freed by then.
pub fn join(
    client: Wire,
    backend: Wire,
    mut rules: JoinRules,
) -> impl Future<Output = Joined> + Send + 'static {
    let watch = rules.watch.take();
    let mut session = Session::begin(client, backend, watch);
    // What the block below borrows is kept once; what it would own, or an `async fn`, twice.
    async move {
        let ended = session.run(&rules).await;
        if matches!(ended, Ended::Kicked | Ended::Shutdown | Ended::Forbidden) {
            // The kernel would go on sending for minutes, to a backend that may have lost the account since
            // (P5). If this fails, the socket is not connected any more.
            let _ = session.backend.discard_on_drop(true);
        }
        session.hang_up().await;
        Joined { ended, octets_in: session.inward.octets, octets_out: session.outward.octets }
    }
}

struct Session {
    client: Wire,
    backend: Wire,
    inward: Flow,
    outward: Flow,
    /// The client has spoken last.
    owed: bool,
    /// Who closed first.
    first: Option<Leg>,
    /// What failed first.
    fault: Option<Box<(Leg, WireError)>>,
    watch: Option<Box<dyn Watch>>,
    /// The watch let something not pass.
    forbidden: bool,
}

/// One direction.
struct Flow {
    octets: u64,
    state: FlowState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Open,
    /// Its source has ended; this is being passed on.
    Closing,
    Done,
}

/// Which end of a direction failed.
enum Fault {
    Source(WireError),
    Sink(WireError),
    /// What came must not pass.
    Forbidden,
}

impl Session {
    fn begin(mut client: Wire, mut backend: Wire, mut watch: Option<Box<dyn Watch>>) -> Self {
        let forbidden = !watch.as_mut().is_none_or(|w| w.client_says(client.input.unread()));
        if forbidden {
            client.input.clear();
        }
        if let Some(watch) = &mut watch {
            watch.backend_says(backend.input.unread());
        }
        let inward = Flow::begin(&mut client, &mut backend);
        let outward = Flow::begin(&mut backend, &mut client);
        let owed = inward.octets > 0;
        Self { client, backend, inward, outward, owed, first: None, fault: None, watch, forbidden }
    }

    async fn run(&mut self, rules: &JoinRules) -> Ended {
        if self.forbidden {
            return Ended::Forbidden;
        }
        let mut last = Instant::now();
        let mut kicked = None;
        let mut timer = pin!(sleep_until(later(last, rules.idle)));
        let mut kick = pin!(rules.kick.cancelled());
        let mut end = pin!(rules.end.cancelled());
        poll_fn(|cx| {
            let before = self.activity();
            let heard = (self.inward.octets, self.outward.octets);
            let over = self.poll_flows(cx).is_ready();
            if self.outward.octets != heard.1 {
                self.owed = false;
            } else if self.inward.octets != heard.0 {
                self.owed = true;
            }
            let now = if self.activity() == before { None } else { Some(Instant::now()) };
            last = now.unwrap_or(last);
            if over {
                return Poll::Ready(self.verdict());
            }
            if end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Shutdown);
            }
            if kicked.is_none() && kick.as_mut().poll(cx).is_ready() {
                kicked = Some(Instant::now());
            }
            loop {
                let due = self.due(last, kicked, rules);
                // The timer is set again when it fires too early, not at every octet.
                if due < timer.deadline() || timer.is_elapsed() {
                    timer.as_mut().reset(due);
                }
                ready!(timer.as_mut().poll(cx));
                if Instant::now() >= self.due(last, kicked, rules) {
                    return Poll::Ready(match (kicked, self.first) {
                        (Some(_), _) => Ended::Kicked,
                        (None, Some(_)) => self.verdict(),
                        (None, None) => Ended::Idle,
                    });
                }
            }
        })
        .await
    }

    /// When the session ends if nothing more happens.
    fn due(&self, last: Instant, kicked: Option<Instant>, rules: &JoinRules) -> Instant {
        let idle = match self.first {
            Some(Leg::Backend) => rules.idle.min(AFTER_BACKEND),
            Some(Leg::Client) | None => rules.idle,
        };
        let Some(at) = kicked else { return later(last, idle) };
        let grace = later(at, rules.kick_grace);
        match rules.answer.as_ref().filter(|_| self.owed) {
            Some(answer) => {
                let now = Instant::now();
                if now < grace || (answer.hurry)() {
                    grace
                } else {
                    later(at, answer.longest).min(later(now, HURRY_EVERY))
                }
            }
            None if self.something_waits() => grace,
            None => grace.min(later(last, QUIET)),
        }
    }

    fn something_waits(&self) -> bool {
        self.client.something_waits() || self.backend.something_waits()
    }

    /// A number that changes with every octet that comes or goes.
    fn activity(&self) -> u64 {
        [self.client.received, self.client.sent, self.backend.received, self.backend.sent]
            .into_iter()
            .fold(0, u64::wrapping_add)
    }

    /// Moves what can be moved; ready when both directions are over.
    fn poll_flows(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let before = (self.inward.state, self.outward.state);
            let Self { client, backend, inward, outward, watch, .. } = self;
            let inward = inward.advance(cx, client, backend, |octets| {
                watch.as_mut().is_none_or(|watch| watch.client_says(octets))
            });
            let outward = outward.advance(cx, backend, client, |octets| {
                if let Some(watch) = watch {
                    watch.backend_says(octets);
                }
                true
            });
            self.note(Leg::Client, Leg::Backend, inward);
            self.note(Leg::Backend, Leg::Client, outward);
            // Reading the backend may have left something of TLS's own for it.
            if self.inward.state != FlowState::Done
                && let Poll::Ready(Err(error)) = self.backend.poll_flush(cx)
            {
                self.note(Leg::Client, Leg::Backend, Err(Fault::Sink(error)));
            }
            let after = (self.inward.state, self.outward.state);
            if after == (FlowState::Done, FlowState::Done) {
                return Poll::Ready(());
            }
            // What one direction's end asks of the other is done now; no waker would come for it.
            if after == before {
                return Poll::Pending;
            }
        }
    }

    /// Notes who closed first, and closes what a failure has closed.
    fn note(&mut self, source: Leg, sink: Leg, result: Result<(), Fault>) {
        let (flow, back) = match source {
            Leg::Client => (&mut self.inward, &mut self.outward),
            Leg::Backend => (&mut self.outward, &mut self.inward),
        };
        let (leg, error) = match result {
            Ok(()) => {
                if flow.state != FlowState::Open {
                    self.first.get_or_insert(source);
                }
                return;
            }
            // Nothing more comes from there and nothing can be said to it.
            Err(Fault::Source(error)) => {
                flow.state = FlowState::Closing;
                back.state = FlowState::Done;
                (source, error)
            }
            Err(Fault::Forbidden) => {
                (flow.state, back.state) = (FlowState::Done, FlowState::Done);
                self.forbidden = true;
                return;
            }
            // It may have said something before it stopped reading, so the way back stays open.
            Err(Fault::Sink(error)) => {
                flow.state = FlowState::Done;
                (sink, error)
            }
        };
        self.first.get_or_insert(leg);
        self.fault.get_or_insert_with(|| Box::new((leg, error)));
    }

    fn verdict(&mut self) -> Ended {
        if self.forbidden {
            return Ended::Forbidden;
        }
        match self.fault.take().map(|fault| *fault) {
            Some((leg, error)) if !is_close(&error) => Ended::Failed(leg, error),
            Some((leg, _)) => closed_by(self.first.unwrap_or(leg)),
            None => closed_by(self.first.unwrap_or(Leg::Client)),
        }
    }

    /// Says close_notify on both legs and closes them, as far as they take it now. Nobody waits for
    /// a peer that does not read.
    async fn hang_up(&mut self) {
        poll_fn(|cx| {
            for wire in [&mut self.client, &mut self.backend] {
                let _ = wire.queue_close_notify();
                let _ = wire.poll_flush(cx);
                let _ = Pin::new(&mut wire.socket).poll_shutdown(cx);
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Flow {
    /// Queues what is unread on `source` for `sink`.
    fn begin(source: &mut Wire, sink: &mut Wire) -> Self {
        sink.output.push(source.input.unread());
        let octets = source.input.len() as u64;
        source.input.clear();
        Self { octets, state: FlowState::Open }
    }

    /// Moves octets until `sink` takes or `source` has no more.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Wire,
        sink: &mut Wire,
        mut passes: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Fault> {
        for _ in 0..ROUNDS {
            if self.state == FlowState::Done {
                return Ok(());
            }
            // What waits goes first, and stops the source until it is gone.
            match sink.poll_flush(cx) {
                Poll::Ready(flushed) => flushed.map_err(Fault::Sink)?,
                Poll::Pending => return Ok(()),
            }
            if self.state == FlowState::Closing {
                return self.pass_on_end(cx, sink);
            }
            if self.poll_move(cx, source, sink, &mut passes)?.is_pending() {
                return Ok(());
            }
        }
        // More may be there; the thread's other sessions come first.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Wire,
        sink: &mut Wire,
        passes: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<Poll<()>, Fault> {
        if source.ended {
            self.state = FlowState::Closing;
            sink.queue_close_notify().map_err(Fault::Sink)?;
            return Ok(Poll::Ready(()));
        }
        lend(|Scratch { reading, outgoing }| {
            match source.poll_open(cx, READ, reading, outgoing) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(Fault::Source(error)),
                Poll::Ready(Ok([])) => {}
                Poll::Ready(Ok(plain)) if !passes(plain) => return Err(Fault::Forbidden),
                Poll::Ready(Ok(plain)) => {
                    self.octets = self.octets.saturating_add(plain.len() as u64);
                    sink.send(cx, plain, outgoing).map_err(Fault::Sink)?;
                }
            }
            Ok(Poll::Ready(()))
        })
    }

    /// Tells `sink` that nothing more comes; it may still speak.
    fn pass_on_end(&mut self, cx: &mut Context<'_>, sink: &mut Wire) -> Result<(), Fault> {
        self.state = FlowState::Done;
        match Pin::new(&mut sink.socket).poll_shutdown(cx) {
            Poll::Ready(Err(error)) => Err(Fault::Sink(error.into())),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

fn closed_by(leg: Leg) -> Ended {
    match leg {
        Leg::Client => Ended::Client,
        Leg::Backend => Ended::Backend,
    }
}

/// True for the ways in which a peer that is gone shows.
fn is_close(error: &WireError) -> bool {
    match error {
        WireError::Closed => true,
        WireError::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
        ),
        WireError::Deadline
        | WireError::InputFull
        | WireError::PlaintextAfterStartTls
        | WireError::Tls(_)
        | WireError::Violation(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::Deadlines;
    use super::*;

    async fn wire() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let minute = Duration::from_mins(1);
        let deadlines = Deadlines { read: minute, write: minute, until: None };
        (Wire::new(ours.unwrap(), deadlines).unwrap(), theirs.unwrap().0)
    }

    async fn session() -> (Session, TcpStream, TcpStream) {
        let ((client, client_end), (backend, backend_end)) = (wire().await, wire().await);
        let session = Session::begin(client, backend, None);
        (session, client_end, backend_end)
    }

    /// Moves octets until `flood` has nothing to do for a while: both it and the session are stuck.
    async fn until_stuck(session: &mut Session, flood: &tokio::sync::watch::Receiver<usize>) {
        loop {
            let before = *flood.borrow();
            let moving = poll_fn(|cx| session.poll_flows(cx));
            let waited = tokio::time::timeout(Duration::from_millis(200), moving).await;
            assert!(waited.is_err(), "nobody closed");
            if *flood.borrow() == before && session.something_waits() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_costs_one_scratch_and_stops_the_backend() {
        let (mut session, client_end, mut backend_end) = session().await;
        let (count, flood) = tokio::sync::watch::channel(0);
        let flooding = tokio::spawn(async move {
            while let Ok(written) = backend_end.write(&[b'x'; 8192]).await {
                count.send_modify(|count| *count += written);
            }
        });
        until_stuck(&mut session, &flood).await;
        let kept = session.client.output.len() + session.backend.output.len();
        assert!((1..=READ).contains(&kept), "{kept} octets");
        assert!(session.client.input.is_empty() && session.backend.input.is_empty());
        let passed = session.outward.octets;
        until_stuck(&mut session, &flood).await;
        assert_eq!(session.outward.octets, passed, "more was read while something waited");
        drop((session, client_end));
        flooding.await.unwrap();
    }

    #[tokio::test]
    async fn an_idle_session_holds_no_buffers() {
        let (mut session, mut client_end, backend_end) = session().await;
        client_end.write_all(b"a1 IDLE\r\n").await.unwrap();
        while session.inward.octets < 9 {
            poll_fn(|cx| {
                let over = session.poll_flows(cx).is_ready();
                if over || session.inward.octets == 9 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        assert!(session.client.owns_no_buffers() && session.backend.owns_no_buffers());
        drop(backend_end);
    }
}

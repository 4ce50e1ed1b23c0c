//! Joining a client's session to its backend's: every octet as it is, in both directions.
//!
//! Each leg is plain or TLS. Octets go from one socket through this thread's scratch to the other;
//! only what the other does not take is kept, and while something is kept nothing more is read for
//! it. So an idle joined session owns two sockets, their TLS keys and one timer.
//!
//! No protocol is known here, so nothing is said to either side: the join cannot know whether it is
//! inside a literal. A kick ends a quiet session, or waits for the first quiet moment.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
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
/// How often [`JoinRules::answer_grace`] is asked while it is waited for.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// Reads of one direction in one poll, so that a busy session does not starve its thread's others.
const ROUNDS: usize = 16;

/// When a joined session ends, other than by its peers.
#[derive(Debug, Clone)]
pub struct JoinRules {
    /// Longest silence of both legs together.
    pub idle: Duration,
    /// Cancelled when the account has moved: the session ends at its first quiet moment.
    pub kick: CancellationToken,
    /// Longest wait for a quiet moment.
    pub kick_grace: Duration,
    /// No moment is quiet while the client has spoken last: the backend owes it an answer. This is then the
    /// longest wait. For protocols in which every word of the client's is answered, and a message that is cut
    /// off before its answer would come twice.
    pub answer_grace: Option<AnswerGrace>,
    /// Cancelled when the process ends: the session ends at once.
    pub end: CancellationToken,
}

/// Longest wait, from a kick on, for a quiet moment of a session whose backend may owe an answer. Asked again
/// while it is waited for: what happens to the account meanwhile may shorten it.
#[derive(Clone)]
pub struct AnswerGrace(Arc<dyn Fn() -> Duration + Send + Sync>);

impl AnswerGrace {
    /// As `ask` says at any moment.
    pub fn new(ask: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl std::fmt::Debug for AnswerGrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswerGrace(..)")
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
    mut client: Wire,
    mut backend: Wire,
    rules: JoinRules,
) -> impl Future<Output = Joined> + Send + 'static {
    let inward = Flow::begin(&mut client, &mut backend);
    let outward = Flow::begin(&mut backend, &mut client);
    let owed = inward.octets > 0;
    let mut session = Session { client, backend, inward, outward, owed, first: None, fault: None };
    // What the block below borrows is kept once; what it would own, or an `async fn`, twice.
    async move {
        let ended = session.run(&rules).await;
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
}

impl Session {
    async fn run(&mut self, rules: &JoinRules) -> Ended {
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
                let due = match (kicked, &rules.answer_grace) {
                    (Some(_), Some(_)) => due.min(later(Instant::now(), ASKED_AGAIN)),
                    (Some(_), None) | (None, _) => due,
                };
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
        let (grace, owed) = match &rules.answer_grace {
            Some(AnswerGrace(ask)) => (ask(), self.owed),
            None => (rules.kick_grace, false),
        };
        if owed || self.something_waits() {
            later(at, grace)
        } else {
            later(at, grace).min(later(last, QUIET))
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
            let Self { client, backend, inward, outward, .. } = self;
            let inward = inward.advance(cx, client, backend);
            let outward = outward.advance(cx, backend, client);
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
            if self.poll_move(cx, source, sink)?.is_pending() {
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
        let ((mut client, client_end), (mut backend, backend_end)) = (wire().await, wire().await);
        let inward = Flow::begin(&mut client, &mut backend);
        let outward = Flow::begin(&mut backend, &mut client);
        let owed = false;
        let session = Session { client, backend, inward, outward, owed, first: None, fault: None };
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

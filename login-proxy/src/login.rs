//! The driver of every login, whatever the protocol (DESIGN §4):
//!
//! greet → credentials → name → **session registered** → hold waited out → owner looked up → backend
//! connected, secured, told who the client is → credentials replayed → row compared → joined.
//!
//! A failed attempt goes back to the front, and the next one is routed afresh on a new connection; only
//! a backend's yes joins, and only while the row that led there still stands.

mod client;
pub(crate) mod hold;
mod joined;
mod record;
mod route;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use shared::config::{LoginConfig, NamesConfig};
use shared::credentials::{Credentials, Secret};
use shared::lifecycle::Lifecycle;
use shared::listener::Accepted;
use shared::ownership::Ownership;
use shared::seats::Seats;
use shared::wire::{Deadlines, MAX_UNREAD, Wire, WireError};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::rustls::ServerConfig;

use self::client::{client_of, counted};
use self::joined::join_sessions;
use self::record::Tried;
use self::route::{Granted, route};
use crate::backend::{Attempt, Reason, prompt};
use crate::front::{Event, Front, Terms};
use crate::guesses::{self, Guesses};
use crate::offer::CurrentOffer;
use crate::protocol::Protocol;
use crate::refusal::{Farewell, Refusal};

/// Longest wait for a client to take what we write before it has logged in.
const WRITE: Duration = Duration::from_mins(1);
/// Longest wait for a client to take our last words.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How much longer each refusal takes that is not about the credentials: the first comes at once, but a
/// client that comes again and again must not fill the log or wear out a backend.
const PUT_OFF: Duration = Duration::from_millis(250);
const MAX_PUT_OFF: Duration = Duration::from_secs(2);
/// How long an attempt goes on for a client that has closed its side: it may only have said all that it has
/// to say, and listen.
const HALF_CLOSED: Duration = Duration::from_secs(3);

/// What all listeners of a process count together.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Places for logins that wait for the end of a hold, by account.
    pub held: Arc<Seats<Box<str>>>,
    /// Who guesses passwords.
    pub guesses: Arc<Guesses>,
}

/// What every login of one listener works with.
#[derive(Debug)]
pub struct Context {
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// What it shares with the other listeners of the process.
    pub shared: Shared,
    /// Tasks and their end.
    pub lifecycle: Lifecycle,
    /// Limits and delays.
    pub rules: LoginConfig,
    /// How logins lead to accounts.
    pub names: NamesConfig,
    /// Certificates, if there are any.
    pub tls: Option<Arc<ServerConfig>>,
    /// TLS from the first octet.
    pub implicit_tls: bool,
    /// What is spoken.
    pub protocol: &'static Protocol,
    /// What is advertised before login.
    pub offer: Arc<CurrentOffer>,
}

impl Shared {
    /// Nothing is taken or counted yet.
    pub fn new(rules: &LoginConfig) -> Self {
        Self {
            held: Seats::new(rules.max_held, rules.max_held_per_account),
            guesses: Arc::new(Guesses::new(limits(rules), Instant::now().into_std())),
        }
    }

    /// The same under other rules.
    pub fn limit(&self, rules: &LoginConfig) {
        self.held.limit(rules.max_held, rules.max_held_per_account);
        self.guesses.limit(limits(rules));
    }
}

fn limits(rules: &LoginConfig) -> guesses::Limits {
    guesses::Limits {
        per_address: rules.guesses_per_address,
        window: rules.guess_window,
        delay: rules.failure_delay,
    }
}

/// A no to an attempt.
struct Refused {
    refusal: Refusal,
    /// How long the answer is delayed where the credentials are to blame.
    delay: Duration,
    /// In the backend's words, where the client may hear them.
    reason: Option<Reason>,
}

/// How a connection ended that was not joined.
#[derive(Debug, thiserror::Error)]
enum Unjoined {
    #[error("closed by the client")]
    ByClient,
    #[error("{0:?}")]
    Farewell(Farewell),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Speaks with one client until its session is joined, which is a task of its own, or it is gone.
pub async fn serve(cx: Arc<Context>, accepted: Accepted) {
    let session = uuid::Uuid::now_v7().simple().to_string();
    let (protocol, client) = (cx.protocol.kind, accepted.client);
    let deadlines = Deadlines {
        read: cx.rules.login_timeout,
        write: WRITE,
        until: Instant::now().checked_add(cx.rules.login_timeout),
    };
    let Ok(wire) = Wire::new(accepted.socket, deadlines) else { return };
    let mut wire = wire.on_behalf_of(accepted.client, accepted.local);
    let ended = tokio::select! {
        conversed = converse(&cx, &session, accepted.unnamed, &mut wire) => match conversed {
            Ok(granted) => return join_sessions(&cx, &session, wire, accepted.seat, granted),
            Err(ended) => ended,
        },
        () = cx.lifecycle.end().cancelled() => Unjoined::Farewell(Farewell::ShuttingDown),
    };
    match &ended {
        Unjoined::ByClient | Unjoined::Farewell(Farewell::ShuttingDown) => {
            tracing::debug!(session, %protocol, %client, %ended, "no login");
        }
        Unjoined::Farewell(_) | Unjoined::Wire(_) => {
            tracing::info!(session, %protocol, %client, %ended, "no login");
        }
    }
    wire.deadlines = Deadlines { read: LAST_WORDS, write: LAST_WORDS, until: None };
    wire.close().await;
}

/// From the first octet to a granted login; the front's yes is queued then. On an error its last words are.
async fn converse(
    cx: &Arc<Context>,
    session: &str,
    unnamed: bool,
    wire: &mut Wire,
) -> Result<Granted, Unjoined> {
    secure(cx, wire).await?;
    let offer = cx.offer.load_full();
    let mut front = (cx.protocol.front)(Terms {
        hostname: cx.rules.hostname.clone(),
        capabilities: Arc::clone(&offer.capabilities),
        mechanisms: offer.mechanisms,
        secured: wire.is_secured(),
        starttls: cx.tls.is_some() && !cx.implicit_tls,
        plaintext: cx.rules.allow_plaintext || wire.peer().ip().is_loopback(),
        trusted: cx.rules.is_trusted(wire.peer().ip()),
    });
    front.greet(&mut wire.output);
    let (mut refused, mut put_off) = (0, 0);
    loop {
        let credentials = next_credentials(cx, &mut *front, wire).await?;
        let began = Instant::now();
        let counted = counted(cx, wire, front.told(), unnamed);
        if cx.shared.guesses.refuses(counted, began.into_std()) {
            return Err(turn_away(cx, session, &mut *front, wire).await);
        }
        let Refused { refusal, delay, reason } =
            match attempt(cx, session, counted, &mut *front, wire, &credentials).await? {
                Ok(granted) => {
                    front.welcome(&granted.attached.welcome, &mut wire.output);
                    return Ok(granted);
                }
                Err(refused) => refused,
            };
        drop(credentials);
        let answer = if refusal == Refusal::BadCredentials {
            refused += 1;
            // Counted from the credentials, so that the time a backend took does not tell a wrong
            // password from a name that nobody has.
            began.checked_add(delay)
        } else {
            let delay = PUT_OFF.saturating_mul(put_off).min(MAX_PUT_OFF);
            put_off += 1;
            Instant::now().checked_add(delay)
        };
        pause(cx, &mut *front, wire, answer).await?;
        match reason {
            Some(reason) => front.reject(reason.as_str(), &mut wire.output),
            None => front.refuse(refusal, &mut wire.output),
        }
        // A fault of ours is no guess: the delays and the time for the login bound how often it comes.
        if refused >= cx.rules.max_failures {
            return Err(farewell(&mut *front, wire, Farewell::TooManyFailures));
        }
        // What was said ahead needs no reading, where time would be looked at.
        if wire.deadlines.until.is_some_and(|until| until <= Instant::now()) {
            return Err(farewell(&mut *front, wire, Farewell::TooSlow));
        }
    }
}

/// Refuses, for now, a client whose address has guessed too often; what it gave to log in is tried nowhere.
async fn turn_away(
    cx: &Context,
    session: &str,
    front: &mut dyn Front,
    wire: &mut Wire,
) -> Unjoined {
    let (protocol, told) = (cx.protocol.kind, front.told().clone());
    let client = client_of(wire, session, &told, None).address;
    tracing::info!(session, %protocol, %client, "login refused: too many guesses from this address");
    // Who is sent away at once comes again at once.
    if let Err(ended) =
        pause(cx, front, wire, Instant::now().checked_add(cx.rules.failure_delay)).await
    {
        return ended;
    }
    front.refuse(Refusal::TooManyGuesses, &mut wire.output);
    farewell(front, wire, Farewell::TooManyFailures)
}

/// Waits with an answer, at the longest for as long as a login may take. A stop does not wait with it, nor
/// does anybody for a client that has gone.
async fn pause(
    cx: &Context,
    front: &mut dyn Front,
    wire: &mut Wire,
    until: Option<Instant>,
) -> Result<(), Unjoined> {
    let until = [until, wire.deadlines.until].into_iter().flatten().min();
    let Some(until) = until.filter(|until| *until > Instant::now()) else { return Ok(()) };
    let stop = cx.lifecycle.stop();
    // What was said before is heard before. It also shows whether anybody is there to hear.
    match stop.run_until_cancelled(wire.flush()).await {
        Some(flushed) => flushed?,
        None => return Err(farewell(front, wire, Farewell::ShuttingDown)),
    }
    tokio::select! {
        () = sleep_until(until) => Ok(()),
        () = stop.cancelled() => Err(farewell(front, wire, Farewell::ShuttingDown)),
        () = gone(wire) => Err(Unjoined::ByClient),
    }
}

/// TLS from the first octet, or its offer. A stop does not wait for a client that shakes hands slowly.
async fn secure(cx: &Context, wire: &mut Wire) -> Result<(), Unjoined> {
    let Some(tls) = &cx.tls else { return Ok(()) };
    if !cx.implicit_tls {
        wire.offer_tls(Arc::clone(tls));
        return Ok(());
    }
    tokio::select! {
        accepted = wire.accept_tls(Arc::clone(tls)) => Ok(accepted?),
        () = cx.lifecycle.stop().cancelled() => Err(Unjoined::Farewell(Farewell::ShuttingDown)),
    }
}

/// Drives the front to the next credentials; a stop or the end of the time allowed is said to the client.
async fn next_credentials(
    cx: &Context,
    front: &mut dyn Front,
    wire: &mut Wire,
) -> Result<Credentials, Unjoined> {
    let driven = tokio::select! {
        driven = wire.drive(front) => driven,
        () = cx.lifecycle.stop().cancelled() => {
            return Err(farewell(front, wire, Farewell::ShuttingDown));
        }
    };
    match driven {
        Ok(Some(Event::Credentials(credentials))) => Ok(credentials),
        // No front answers what nobody asked.
        Ok(Some(Event::Response(_)) | None) => Err(Unjoined::ByClient),
        Err(WireError::Deadline) => Err(farewell(front, wire, Farewell::TooSlow)),
        Err(error) => Err(error.into()),
    }
}

fn farewell(front: &mut dyn Front, wire: &mut Wire, farewell: Farewell) -> Unjoined {
    front.bid_farewell(farewell, &mut wire.output);
    Unjoined::Farewell(farewell)
}

/// One attempt to log in, and its line in the log. The outer error is that the client has gone.
async fn attempt(
    cx: &Arc<Context>,
    session: &str,
    counted: Option<IpAddr>,
    front: &mut dyn Front,
    wire: &mut Wire,
    credentials: &Credentials,
) -> Result<Result<Granted, Refused>, Unjoined> {
    let began = Instant::now();
    let login_until = wire.deadlines.until;
    let until = within(cx.rules.attach_timeout, login_until);
    let (told, authority) = (front.told().clone(), wire.sni().map(str::to_owned));
    let client = client_of(wire, session, &told, authority.as_deref());
    let (prompt, mut asked) = prompt();
    let hostname = &cx.rules.hostname;
    let attempt = Attempt { credentials, client, prompt: &prompt, until, hostname };
    let mut routing = pin!(route(cx, attempt, login_until));
    let routed = loop {
        let asked = tokio::select! {
            routed = &mut routing => break routed,
            Some(asked) = asked.recv() => asked,
            () = gone(wire) => return Err(Unjoined::ByClient),
        };
        front.challenge(&asked.challenge, &mut wire.output);
        let response = tokio::select! {
            // A verdict does not wait for a client that does not answer.
            routed = &mut routing => break routed,
            response = next_response(cx, front, wire) => response?,
        };
        // Nobody waits any more when the attempt has just ended.
        let _ = asked.answer.send(response);
    };
    let tried = Tried {
        session,
        protocol: cx.protocol.kind,
        address: client.address,
        counted,
        credentials,
        upstream: told.forwarded.as_ref().and_then(|forwarded| forwarded.session.as_deref()),
        began,
    };
    Ok(match routed {
        Ok(granted) => {
            tried.log_login(&granted.owner);
            let account = granted.owner.account.as_bytes();
            cx.shared.guesses.forgive(counted, account, Instant::now().into_std());
            Ok(granted)
        }
        Err(denied) => {
            tried.log_refusal(&denied);
            let delay = match denied.guess() {
                Some(guess) => {
                    let account = guess.owner.map(|owner| owner.account.as_bytes());
                    let account = account.unwrap_or_else(|| credentials.mailbox());
                    cx.shared.guesses.note(counted, account, Instant::now().into_std())
                }
                None => cx.rules.failure_delay,
            };
            let reason = denied.reason(cx.protocol.kind);
            Err(Refused { refusal: denied.refusal(), delay, reason })
        }
    })
}

/// The end of `limit` from now; never after that of the time for the whole login.
pub(crate) fn within(limit: Duration, login_until: Option<Instant>) -> Instant {
    let now = Instant::now();
    let until = now.checked_add(limit).unwrap_or(now);
    login_until.map_or(until, |login| login.min(until))
}

/// Drives the front to the answer to a challenge.
async fn next_response(
    cx: &Context,
    front: &mut dyn Front,
    wire: &mut Wire,
) -> Result<Option<Secret>, Unjoined> {
    let driven = tokio::select! {
        driven = wire.drive(front) => driven,
        () = cx.lifecycle.stop().cancelled() => {
            return Err(farewell(front, wire, Farewell::ShuttingDown));
        }
    };
    match driven {
        Ok(Some(Event::Response(response))) => Ok(response),
        Ok(Some(Event::Credentials(_)) | None) => Err(Unjoined::ByClient),
        Err(WireError::Deadline) => Err(farewell(front, wire, Farewell::TooSlow)),
        Err(error) => Err(error.into()),
    }
}

/// Returns when the client has gone. What it sends meanwhile is kept, within bounds (LOG-9).
async fn gone(wire: &mut Wire) {
    while wire.input.len() < MAX_UNREAD {
        match wire.fill().await {
            Ok(0) => return sleep(HALF_CLOSED).await,
            Err(WireError::Closed | WireError::Io(_) | WireError::Tls(_)) => return,
            Ok(_) => {}
            // The attempt has a deadline of its own.
            Err(_) => break,
        }
    }
    std::future::pending::<()>().await;
}

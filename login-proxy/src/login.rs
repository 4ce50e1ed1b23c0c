//! The driver of every login, whatever the protocol (DESIGN §4):
//!
//! greet → credentials → name → **session registered** → owner looked up → backend connected, secured,
//! told who the client is → credentials replayed → row compared → joined.
//!
//! A failed attempt goes back to the front, and the next one is routed afresh on a new connection; only
//! a backend's yes joins, and only while the row that led there still stands.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use shared::backend::LoginProtocol;
use shared::config::{LoginConfig, NamesConfig};
use shared::credentials::{Credentials, Secret};
use shared::lifecycle::Lifecycle;
use shared::listener::{Accepted, Seat};
use shared::ownership::{self, Name, Owner, Ownership, Registration, Work};
use shared::wire::{AnswerGrace, Deadlines, JoinRules, Joined, MAX_UNREAD, Wire, WireError, join};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::rustls::ServerConfig;

use crate::backend::{AttachError, Attached, Attempt, Client, prompt};
use crate::front::{Event, Front, Terms};
use crate::offer::CurrentOffer;
use crate::protocol::Protocol;
use crate::refusal::{Farewell, Refusal};

/// Longest wait for a client to take what we write before it has logged in.
const WRITE: Duration = Duration::from_mins(1);
/// Longest wait for a client to take our last words.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often one attempt is routed anew because the account was moved meanwhile.
const MAX_ROUTINGS: u32 = 8;
/// Longest that a message may still be sent while its account is held or the lease has ended.
const HURRIED_GRACE: Duration = Duration::from_secs(5);
/// Hops through login proxies that a login may still take (Dovecot's TTL): a loop ends.
const TTL: u8 = 5;

/// What every login of one listener works with.
#[derive(Debug)]
pub struct Context {
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
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

/// A session that may be joined: its backend said yes and its row still stands.
struct Granted {
    attached: Attached,
    owner: Owner,
    registration: Registration,
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
        conversed = converse(&cx, &session, &mut wire) => match conversed {
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
async fn converse(cx: &Arc<Context>, session: &str, wire: &mut Wire) -> Result<Granted, Unjoined> {
    secure(cx, wire).await?;
    let offer = cx.offer.load_full();
    let mut front = (cx.protocol.front)(Terms {
        hostname: cx.rules.hostname.clone(),
        capabilities: Arc::clone(&offer.capabilities),
        mechanisms: offer.mechanisms,
        secured: wire.is_secured(),
        starttls: cx.tls.is_some() && !cx.implicit_tls,
        plaintext: cx.rules.allow_plaintext || wire.peer().ip().is_loopback(),
        trusted: false,
    });
    front.greet(&mut wire.output);
    let mut refused = 0;
    loop {
        let credentials = next_credentials(cx, &mut *front, wire).await?;
        let began = Instant::now();
        let refusal = match attempt(cx, session, &mut *front, wire, &credentials).await? {
            Ok(granted) => {
                front.welcome(&granted.attached.welcome, &mut wire.output);
                return Ok(granted);
            }
            Err(refusal) => refusal,
        };
        drop(credentials);
        if refusal == Refusal::BadCredentials {
            // Counted from the credentials, so that the time a backend took does not tell a wrong
            // password from a name that nobody has.
            sleep_until(began.checked_add(cx.rules.failure_delay).unwrap_or(began)).await;
        }
        front.refuse(refusal, &mut wire.output);
        refused += 1;
        if refused >= cx.rules.max_failures {
            return Err(farewell(&mut *front, wire, Farewell::TooManyFailures));
        }
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
    front: &mut dyn Front,
    wire: &mut Wire,
    credentials: &Credentials,
) -> Result<Result<Granted, Refusal>, Unjoined> {
    let began = Instant::now();
    // An attempt ends with the time for the whole login, if not before.
    let until = began.checked_add(cx.rules.attach_timeout).unwrap_or(began);
    let until = wire.deadlines.until.map_or(until, |login| login.min(until));
    let told = front.told().clone();
    let (address, local, secured) = (wire.peer(), wire.local(), wire.is_secured());
    let client = Client { address, local, session, ttl: TTL, secured, told: &told };
    let (prompt, mut asked) = prompt();
    let hostname = &cx.rules.hostname;
    let attempt = Attempt { credentials, client, prompt: &prompt, until, hostname };
    let mut routing = pin!(route(cx, attempt));
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
    let tried = Tried { session, protocol: cx.protocol.kind, address, credentials, began };
    Ok(match routed {
        Ok(granted) => {
            tried.log_login(&granted.owner);
            Ok(granted)
        }
        Err(denied) => {
            tried.log_refusal(&denied);
            Err(denied.refusal())
        }
    })
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

/// What the log says of an attempt.
struct Tried<'a> {
    session: &'a str,
    protocol: LoginProtocol,
    address: SocketAddr,
    credentials: &'a Credentials,
    began: Instant,
}

impl Tried<'_> {
    fn log_login(&self, owner: &Owner) {
        let Self { session, protocol, address, credentials, began } = self;
        let user = String::from_utf8_lossy(credentials.mailbox());
        tracing::info!(
            session, %protocol, client = %address, ?user, method = credentials.method(),
            account = %owner.account, owner = %owner.backend.name, epoch = owner.epoch,
            ms = began.elapsed().as_millis(), "login"
        );
    }

    fn log_refusal(&self, denied: &Denied) {
        let Self { session, protocol, address, credentials, began } = self;
        let (ms, method) = (began.elapsed().as_millis(), credentials.method());
        let user = String::from_utf8_lossy(credentials.mailbox());
        match denied {
            Denied::Name(why) => {
                tracing::info!(session, %protocol, client = %address, ?user, method, %why, ms, "login refused");
            }
            Denied::Owner(why @ ownership::Refusal::UnknownBackend { .. }) => {
                tracing::error!(session, %protocol, client = %address, ?user, method, %why, ms, "login refused");
            }
            Denied::Owner(why) => {
                tracing::info!(session, %protocol, client = %address, ?user, method, %why, ms, "login refused");
            }
            Denied::Backend {
                owner,
                why: why @ (AttachError::Rejected | AttachError::Cancelled),
            } => {
                let (account, owner) = (&owner.account, &owner.backend.name);
                tracing::info!(session, %protocol, client = %address, ?user, method, %account, %owner, %why, ms, "login refused");
            }
            Denied::Backend { owner, why } => {
                let (account, owner) = (&owner.account, &owner.backend.name);
                tracing::warn!(session, %protocol, client = %address, ?user, method, %account, %owner, %why, ms, "login refused");
            }
            Denied::Restless => {
                tracing::warn!(session, %protocol, client = %address, ?user, method, ms, "login refused: the account was moved meanwhile");
            }
        }
    }
}

/// Why an attempt was not granted.
enum Denied {
    Name(ownership::NameError),
    Owner(ownership::Refusal),
    Backend {
        owner: Box<Owner>,
        why: AttachError,
    },
    /// The account moved during every routing, or when the client had already answered its former owner.
    Restless,
}

impl Denied {
    fn refusal(&self) -> Refusal {
        match self {
            // No row can have such a name.
            Self::Name(_) => Refusal::BadCredentials,
            Self::Owner(refusal) => Refusal::from(refusal),
            Self::Backend { why, .. } => Refusal::from(why),
            Self::Restless => Refusal::Unavailable,
        }
    }
}

/// Registers, looks up, logs in at the owner, and compares: until a verdict comes from the owner of then.
async fn route(cx: &Context, attempt: Attempt<'_>) -> Result<Granted, Denied> {
    let name = Name::of_login(attempt.credentials.mailbox()).map_err(Denied::Name)?;
    for _ in 0..MAX_ROUTINGS {
        if attempt.prompt.was_used() {
            break;
        }
        // Registered before the owner is read: a flip from here on finds this attempt (P4).
        let (owner, registration) =
            cx.ownership.enter(&name, Work::Session).map_err(Denied::Owner)?;
        let attached = tokio::select! {
            biased;
            () = registration.outdated() => continue,
            attached = timeout_at(attempt.until, log_in(cx, &owner, attempt)) => {
                attached.unwrap_or(Err(AttachError::TimedOut))
            }
        };
        // A yes and a no count only from the owner of now; what came from a former one is closed unjoined.
        if !cx.ownership.still_stands(&registration) {
            continue;
        }
        return match attached {
            Ok(attached) => Ok(Granted { attached, owner, registration }),
            Err(why) => Err(Denied::Backend { owner: Box::new(owner), why }),
        };
    }
    Err(Denied::Restless)
}

async fn log_in(
    cx: &Context,
    owner: &Owner,
    attempt: Attempt<'_>,
) -> Result<Attached, AttachError> {
    let protocol = cx.protocol.kind;
    let Some(endpoint) = owner.backend.login(protocol) else {
        let backend = owner.backend.name.as_str().into();
        return Err(AttachError::NoEndpoint { backend, protocol });
    };
    (cx.protocol.log_in)(endpoint, attempt).await
}

/// Returns when the client has closed. What it sends meanwhile is kept, within bounds (LOG-9).
async fn gone(wire: &mut Wire) {
    while wire.input.len() < MAX_UNREAD {
        match wire.fill().await {
            Ok(0) | Err(WireError::Closed | WireError::Io(_) | WireError::Tls(_)) => return,
            Ok(_) => {}
            // The attempt has a deadline of its own.
            Err(_) => break,
        }
    }
    std::future::pending::<()>().await;
}

/// Joins the two connections in a task of their own; all that the login needed has been freed by then.
fn join_sessions(cx: &Context, session: &str, wire: Wire, seat: Seat, granted: Granted) {
    let Granted { attached, owner, registration } = granted;
    let rules = JoinRules {
        idle: cx.rules.idle_timeout,
        kick: registration.token().clone(),
        kick_grace: cx.rules.kick_grace,
        answer_grace: answer_grace(cx, &owner),
        end: cx.lifecycle.end().clone(),
    };
    let record = Box::new(Record {
        session: session.into(),
        protocol: cx.protocol.kind,
        client: wire.peer(),
        owner,
        began: Instant::now(),
    });
    let joined = join(wire, attached.wire, rules);
    cx.lifecycle.spawn("join", async move {
        let joined = joined.await;
        // Both legs are closed: only now the session is not busy any more (P5).
        drop(registration);
        record.write(&joined);
        drop(seat);
    });
}

/// How long a message that is being sent may go on: cut off before its answer, it would come twice. The
/// other protocols lose nothing.
fn answer_grace(cx: &Context, owner: &Owner) -> Option<AnswerGrace> {
    match cx.protocol.kind {
        LoginProtocol::Submission => {}
        LoginProtocol::Imap | LoginProtocol::Pop3 | LoginProtocol::ManageSieve => return None,
    }
    let (ownership, grace) = (Arc::clone(&cx.ownership), cx.rules.data_grace);
    let name = Name::of_login(owner.account.as_bytes()).ok();
    Some(AnswerGrace::new(move || {
        match name.as_ref().map(|name| ownership.look_up(name)) {
            // Whoever holds it waits; and fences do not wait for a node whose lease has ended.
            None | Some(Err(ownership::Refusal::Held { .. } | ownership::Refusal::Stale)) => {
                grace.min(HURRIED_GRACE)
            }
            Some(Ok(_) | Err(_)) => grace,
        }
    }))
}

/// What the log says of a session when it has ended.
struct Record {
    session: Box<str>,
    protocol: LoginProtocol,
    client: SocketAddr,
    owner: Owner,
    began: Instant,
}

impl Record {
    fn write(&self, joined: &Joined) {
        let (session, protocol, client) = (&self.session, self.protocol, self.client);
        tracing::info!(
            %session, %protocol, %client, account = %self.owner.account,
            owner = %self.owner.backend.name, epoch = self.owner.epoch,
            octets_in = joined.octets_in, octets_out = joined.octets_out,
            ms = self.began.elapsed().as_millis(), ended = ?joined.ended, "session ended"
        );
    }
}

//! An SMTP or LMTP connection to an owner (RFC 5321 §4, RFC 2033), as client.

mod content;
mod envelope;
mod identity;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use shared::backend::{BackendName, BackendTls, Endpoint, Identity, MailEndpoint, MailProtocol};
use shared::probe::Unanswered;
use shared::reach::Blame;
use shared::smtp::ehlo::Extensions;
use shared::smtp::reply::{Class, Reply};
use shared::smtp_client::{self, ReplyError};
use shared::wire::{ConnectError, Connected, Deadlines, Proxied, Wire, WireError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::serve::Context;

/// The service closes the connection (RFC 5321 §4.2.2). 221 is the answer to QUIT, but some servers say it
/// where 421 is meant; no verdict in any case.
const FAREWELLS: [u16; 2] = [221, 421];
/// Longest wait for an owner where nothing depends on its answer, however much it says.
const BRIEFLY: Duration = Duration::from_secs(5);
/// Messages over one connection. Servers have limits of their own (Exim 1000, Stalwart 10 by default).
const MOST_MESSAGES: u32 = 100;
/// Refused recipients over one connection: Postfix slows down after 10, and hangs up after 20.
const MOST_REFUSALS: u32 = 8;

/// A connection to an owner, past its greeting.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    offered: Extensions,
    protocol: MailProtocol,
    identity: Identity,
    /// BDAT may be said.
    chunking: bool,
    reply_timeout: Duration,
    /// The owner was told of one client, and would take all else for that client's, too.
    bound: bool,
    /// What was said on it was not heard to its end.
    over: bool,
    transactions: u32,
    /// RCPT commands in this transaction.
    recipients: u32,
    /// Recipients it has refused.
    refusals: u32,
    /// The end of the message, which is not sent yet.
    last: Vec<u8>,
    /// A refusal that came before the end of the message.
    early: Option<Reply>,
    /// It counts as one of the backend's connections by it; none for a probe.
    seat: Option<OwnedSemaphorePermit>,
}

/// Who we are and for whom we speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Our name.
    pub hostname: Box<str>,
    /// The client's address.
    pub client: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// The name it gave.
    pub helo: Box<str>,
    /// It knows extensions.
    pub extended: bool,
    /// Our name for its session; empty: none.
    pub session: Box<str>,
}

/// Why there is no verdict. The message stays with its sender, or is in doubt.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The owner cannot be reached or secured.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or no answer came in time.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It does not offer STARTTLS, which is configured. There is no downgrade.
    #[error("it does not offer STARTTLS")]
    NoStartTls,
    /// It refuses us as a client, or closes the service.
    #[error("it said: {0}")]
    Unwilling(Reply),
    /// It does not speak SMTP.
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    /// The message cannot be read back.
    #[error("cannot read the message back: {0}")]
    Body(std::io::Error),
    /// The configuration has no mail endpoint for the owner.
    #[error("it has no mail endpoint")]
    NoEndpoint,
    /// All connections that it may have are in use, and none got free in time.
    #[error("as many connections to it as are allowed are in use")]
    Busy,
    /// It could not be reached a moment ago, in the same transaction.
    #[error("it could not be reached")]
    Unreachable,
    /// No verdict within the time allowed for the whole delivery.
    #[error("no verdict within the time allowed")]
    TimedOut,
}

impl Introduction {
    /// The client for a PROXY header.
    pub fn proxied(&self) -> Proxied {
        Proxied { client: self.client, local: self.local }
    }
}

impl Connection {
    /// Connects, secures, and says who we are; a PROXY header is all that may name a client.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`].
    pub async fn open(
        mail: &MailEndpoint,
        hostname: &str,
        client: Option<Proxied>,
    ) -> Result<Self, DeliveryError> {
        let Endpoint { reply_timeout, identity, .. } = &mail.endpoint;
        let deadlines = Deadlines {
            read: *reply_timeout,
            write: *reply_timeout,
            until: Instant::now().checked_add(reply_timeout.saturating_mul(4)),
        };
        let connected = Wire::connect(&mail.endpoint, client, deadlines).await?;
        let Connected { wire, tls, trial } = connected;
        let connection = Self {
            wire,
            offered: Extensions::default(),
            protocol: mail.protocol,
            identity: *identity,
            chunking: mail.chunking,
            reply_timeout: *reply_timeout,
            bound: matches!(identity, Identity::Proxy | Identity::ProxyV1),
            over: false,
            transactions: 0,
            recipients: 0,
            refusals: 0,
            last: Vec::new(),
            early: None,
            seat: None,
        };
        let mut connection = trial.judge(connection.greeted(&tls, hostname)).await?;
        connection.wire.deadlines.until = None;
        Ok(connection)
    }

    /// Counts as one of the backend's connections until it is dropped.
    pub(super) fn occupy(&mut self, seat: OwnedSemaphorePermit) {
        self.seat = Some(seat);
    }

    /// What the owner offered at last.
    pub fn offered(&self) -> &Extensions {
        &self.offered
    }

    /// True when the owner was told of one client, and judges all that follows as that client's.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Greeting, EHLO, and STARTTLS where that is configured.
    async fn greeted(mut self, tls: &BackendTls, hostname: &str) -> Result<Self, DeliveryError> {
        self.expect(Class::Accepted).await?;
        self.hello(hostname).await?;
        if let BackendTls::StartTls(config, name) = tls {
            if !self.offered.starttls {
                return Err(DeliveryError::NoStartTls);
            }
            self.wire.say("STARTTLS\r\n").await?;
            self.expect(Class::Accepted).await?;
            self.wire.connect_tls(config.clone(), name.clone()).await?;
            self.hello(hostname).await?;
        }
        Ok(self)
    }

    /// Ends the transaction without a message, and keeps the connection if it can be used again.
    pub async fn reset_and_keep(mut self, cx: &Context, owner: &BackendName) {
        if !self.may_be_kept() {
            return self.keep(cx, owner);
        }
        // A client may be waiting for this, and nothing depends on it.
        self.wire.deadlines.until = Instant::now().checked_add(BRIEFLY);
        if self.wire.say("RSET\r\n").await.is_ok() && self.expect(Class::Accepted).await.is_ok() {
            self.wire.deadlines.until = None;
            self.keep(cx, owner);
        }
    }

    /// Keeps the connection, on which no transaction is open, if it can be used again; says goodbye in
    /// the background if not.
    pub fn keep(self, cx: &Context, owner: &BackendName) {
        if let Some(unused) = cx.pool.keep(owner, self) {
            unused.say_goodbye(cx);
        }
    }

    /// Says goodbye in the background.
    pub fn say_goodbye(self, cx: &Context) {
        cx.lifecycle.spawn("quit", self.quit());
    }

    /// Says goodbye without waiting long for an answer.
    pub async fn quit(mut self) {
        self.wire.deadlines.write = BRIEFLY;
        self.wire.output.push("QUIT\r\n");
        self.wire.close().await;
    }

    /// True when another client's mail may go over it, too, and the owner has said nothing meanwhile.
    pub fn is_reusable(&mut self) -> bool {
        self.may_be_kept() && self.wire.readable().now_or_never().is_none()
    }

    /// Servers end or slow down connections with many messages or errors; so it is not come to that.
    fn may_be_kept(&self) -> bool {
        let most = self.offered.mail_max.unwrap_or(u32::MAX).min(MOST_MESSAGES);
        !self.bound && !self.over && self.transactions < most && self.refusals < MOST_REFUSALS
    }

    /// EHLO or LHLO, and what is offered in answer.
    async fn hello(&mut self, hostname: &str) -> Result<(), DeliveryError> {
        let verb = match self.protocol {
            MailProtocol::Smtp => "EHLO",
            MailProtocol::Lmtp => "LHLO",
        };
        let mut offered = Extensions::default();
        let said = smtp_client::hello(&mut self.wire, verb, hostname, |line| offered.add(line));
        let reply = unless_farewell(said.await?)?;
        self.offered = offered;
        match (reply.class(), self.protocol) {
            (Class::Accepted, _) => Ok(()),
            // A server of 1982 knows HELO only.
            (Class::Permanent, MailProtocol::Smtp) => {
                self.offered = Extensions::default();
                self.wire.say(format!("HELO {hostname}\r\n")).await?;
                self.expect(Class::Accepted).await
            }
            (Class::Permanent | Class::GoOn | Class::Temporary, _) => {
                Err(DeliveryError::Unwilling(reply))
            }
        }
    }

    async fn expect(&mut self, class: Class) -> Result<(), DeliveryError> {
        let reply = self.reply().await?;
        if reply.class() == class { Ok(()) } else { Err(DeliveryError::Unwilling(reply)) }
    }

    async fn reply(&mut self) -> Result<Reply, DeliveryError> {
        unless_farewell(smtp_client::reply(&mut self.wire).await?)
    }
}

impl DeliveryError {
    /// Somebody has to change the configuration: it is no use to try again, or to keep a message for it.
    pub fn is_misconfigured(&self) -> bool {
        matches!(self, Self::NoEndpoint | Self::Connect(ConnectError::Own { .. }))
    }

    /// The owner cannot be reached, or gives us no service: the next message would fare no better.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::Wire(_)
            | Self::NoStartTls
            | Self::Unwilling(_)
            | Self::Protocol(_)
            | Self::NoEndpoint
            | Self::Unreachable
            | Self::TimedOut => true,
            Self::Body(_) | Self::Busy => false,
        }
    }
}

/// A farewell is the end of the connection, whatever it was the answer to; the one to QUIT is not read.
fn unless_farewell(reply: Reply) -> Result<Reply, DeliveryError> {
    if FAREWELLS.contains(&reply.code()) { Err(DeliveryError::Unwilling(reply)) } else { Ok(reply) }
}

impl Blame for DeliveryError {
    fn blame(&self) -> Option<&WireError> {
        match self {
            Self::Wire(error) => Some(error),
            Self::Connect(error) => error.blame(),
            Self::NoStartTls
            | Self::Unwilling(_)
            | Self::Protocol(_)
            | Self::Body(_)
            | Self::NoEndpoint
            | Self::Busy
            | Self::Unreachable
            | Self::TimedOut => None,
        }
    }
}

impl Unanswered for DeliveryError {
    fn timed_out() -> Self {
        Self::TimedOut
    }

    fn is_down(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::Down { .. }))
    }
}

impl From<ReplyError> for DeliveryError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Wire(error) => Self::Wire(error),
            ReplyError::Malformed(what) => Self::Protocol(what),
        }
    }
}

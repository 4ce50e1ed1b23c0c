//! An SMTP or LMTP connection to an owner (RFC 5321 §4, RFC 2033), as client.

mod content;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use shared::address::{Address, Domain};
use shared::backend::{BackendName, BackendTls, Endpoint, Identity, MailEndpoint, MailProtocol};
use shared::reach::Blame;
use shared::smtp::command::Mail;
use shared::smtp::ehlo::Extensions;
use shared::smtp::reply::{Class, Reply};
use shared::smtp::xclient;
use shared::smtp_client::{self, ReplyError};
use shared::wire::{ConnectError, Connected, Deadlines, Proxied, Wire, WireError};
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
    reply_timeout: Duration,
    /// The owner was told of one client, and would take all else for that client's, too.
    bound: bool,
    transactions: u32,
    /// Recipients it has refused.
    refusals: u32,
    /// The end of the message, which is not sent yet.
    last: Vec<u8>,
    /// A refusal that came before the end of the message.
    early: Option<Reply>,
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
    /// It could not be reached a moment ago, in the same transaction.
    #[error("it could not be reached")]
    Unreachable,
    /// No verdict within the time allowed for the whole delivery.
    #[error("no verdict within the time allowed")]
    TimedOut,
}

impl Connection {
    /// Connects, secures and introduces.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`].
    pub async fn open(
        mail: &MailEndpoint,
        introduction: &Introduction,
    ) -> Result<Self, DeliveryError> {
        let Endpoint { reply_timeout, identity, .. } = &mail.endpoint;
        let deadlines = Deadlines {
            read: *reply_timeout,
            write: *reply_timeout,
            until: Instant::now().checked_add(reply_timeout.saturating_mul(4)),
        };
        let proxied = Proxied { client: introduction.client, local: introduction.local };
        let connected = Wire::connect(&mail.endpoint, Some(proxied), deadlines).await?;
        let Connected { wire, tls, trial } = connected;
        let connection = Self {
            wire,
            offered: Extensions::default(),
            protocol: mail.protocol,
            reply_timeout: *reply_timeout,
            bound: matches!(identity, Identity::Proxy | Identity::Xclient),
            transactions: 0,
            refusals: 0,
            last: Vec::new(),
            early: None,
        };
        let mut connection = trial.judge(connection.greeted(&tls, &introduction.hostname)).await?;
        if *identity == Identity::Xclient {
            connection.name_client(introduction).await?;
        }
        connection.wire.deadlines.until = None;
        Ok(connection)
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

    /// Begins a transaction with its first recipient: the replies to MAIL and, if that was accepted, to
    /// RCPT.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub async fn begin(
        &mut self,
        mail: &Mail,
        to: &Address,
    ) -> Result<(Reply, Option<Reply>), DeliveryError> {
        self.transactions = self.transactions.saturating_add(1);
        self.wire.deadlines.read = self.reply_timeout;
        let mut command = format!("MAIL FROM:{}", mail.from);
        if let (Some(size), true) = (mail.size, self.offered.takes_size) {
            command = format!("{command} SIZE={size}");
        }
        // Sent as it is where the owner does not say that it takes 8-bit; changing it would break signatures.
        if mail.eight_bit && self.offered.eight_bit {
            command.push_str(" BODY=8BITMIME");
        }
        command.push_str("\r\n");
        self.wire.output.push(command);
        if self.offered.pipelining {
            self.wire.say(rcpt(to)).await?;
            let from = self.reply().await?;
            let to = self.answer_to_rcpt().await?;
            return Ok((from.clone(), (from.class() == Class::Accepted).then_some(to)));
        }
        self.wire.flush().await?;
        let from = self.reply().await?;
        if from.class() != Class::Accepted {
            return Ok((from, None));
        }
        self.add(to).await.map(|to| (from, Some(to)))
    }

    /// Adds a recipient: the reply to its RCPT.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub async fn add(&mut self, to: &Address) -> Result<Reply, DeliveryError> {
        self.wire.say(rcpt(to)).await?;
        self.answer_to_rcpt().await
    }

    async fn answer_to_rcpt(&mut self) -> Result<Reply, DeliveryError> {
        let reply = self.reply().await?;
        self.refusals = self.refusals.saturating_add(u32::from(reply.class() != Class::Accepted));
        Ok(reply)
    }

    /// True when a message of that size is more than the owner takes.
    pub fn is_too_large(&self, octets: u64) -> bool {
        self.offered.is_too_large(octets)
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
        !self.bound && self.transactions < MOST_MESSAGES && self.refusals < MOST_REFUSALS
    }

    /// XCLIENT, with what is offered of it. An owner that does not offer it to us takes the mail all the
    /// same, but judges it by our address: that is for an operator to mend.
    ///
    /// What is said in EHLO behind it counts for the client's name, too, so that is said, if it is one.
    async fn name_client(&mut self, introduction: &Introduction) -> Result<(), DeliveryError> {
        let Introduction { hostname, client, local, helo, extended } = introduction;
        let (client, local, extended) = (*client, *local, *extended);
        let subject = xclient::Subject { client, local, helo, extended, login: None };
        let commands = xclient::commands(&self.offered, subject);
        if commands.is_empty() {
            let peer = self.wire.peer();
            tracing::warn!(%peer, "the owner offers no XCLIENT, so it takes us for the client");
            return Ok(());
        }
        for command in commands {
            self.wire.say(command).await?;
            self.expect(Class::Accepted).await?;
        }
        let helo = Domain::parse(helo).ok();
        self.hello(helo.as_ref().map_or(&**hostname, Domain::as_str)).await
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
            | Self::Unreachable
            | Self::TimedOut => None,
        }
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

fn rcpt(to: &Address) -> String {
    format!("RCPT TO:<{to}>\r\n")
}

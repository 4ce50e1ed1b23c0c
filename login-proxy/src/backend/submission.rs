//! Logging in to a submission backend (RFC 6409, RFC 4954), with XCLIENT where it is offered.

use shared::address::Domain;
use shared::backend::{BackendTls, Endpoint, Identity};
use shared::credentials::Secret;
use shared::sasl::{Mechanism, Mechanisms, decode_base64};
use shared::smtp::ehlo::Extensions;
use shared::smtp::reply::{Class, Enhanced, Reply};
use shared::smtp::xclient::{self, Login, Subject};
use shared::smtp_client::{self, ReplyError};
use shared::wire::{Connected, Wire};
use tokio::time::Instant;

use super::sasl::{self, Answer, Carrier};
use super::{
    Abilities, AttachError, Attached, Attempt, Client, Reason, Welcome, connect,
    says_too_many_sessions,
};

/// Longest command in octets with its line end (RFC 5321 §4.5.3.1.4): longer responses go in a line of
/// their own, for which there is a limit of its own (RFC 4954 §4).
const MAX_LINE: usize = 512;

/// Connects to `endpoint` and logs in.
///
/// # Errors
///
/// An [`AttachError`]; the connection is closed.
pub async fn log_in(endpoint: &Endpoint, attempt: Attempt<'_>) -> Result<Attached, AttachError> {
    let Attempt { credentials, client, prompt, until, hostname } = attempt;
    // The backend judges and records the client's name, not ours.
    let told = client.told.helo.as_deref();
    let name = told.and_then(|name| Domain::parse(name).ok());
    let name = name.as_ref().unwrap_or(hostname).as_str();
    let connected = connect(endpoint, Some(client), until).await?;
    let (mut wire, mut offered) = open(connected, name).await?;
    if endpoint.identity == Identity::Xclient
        && name_client(&mut wire, &offered.extensions, client).await?
    {
        offered = hello(&mut wire, name).await?;
    }
    let mut carrier = SubmissionCarrier { wire: &mut wire };
    sasl::authenticate(&mut carrier, offered.mechanisms, credentials, prompt).await?;
    Ok(Attached { wire, welcome: Welcome::default(), watch: None })
}

/// What a backend says that it can.
///
/// # Errors
///
/// An [`AttachError`].
pub async fn probe(endpoint: &Endpoint, until: Instant) -> Result<Abilities, AttachError> {
    let connected = connect(endpoint, None, until).await?;
    // An address where no name is known (RFC 5321 §4.1.4).
    let name = match connected.wire.local().ip() {
        std::net::IpAddr::V4(v4) => format!("[{v4}]"),
        std::net::IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    };
    let (mut wire, offered) = open(connected, &name).await?;
    wire.output.push("QUIT\r\n");
    wire.close().await;
    let Offered { extensions, lines, mechanisms } = offered;
    let believes_us =
        (endpoint.identity == Identity::Xclient).then(|| extensions.takes_xclient("ADDR"));
    Ok(Abilities { capabilities: lines, mechanisms, believes_us })
}

/// What a server says in answer to EHLO.
#[derive(Debug, Default)]
struct Offered {
    extensions: Extensions,
    mechanisms: Mechanisms,
    /// All lines but those of TLS and SASL.
    lines: Vec<Box<str>>,
}

impl Offered {
    fn add(&mut self, line: &str) {
        self.extensions.add(line);
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        // `AUTH=PLAIN` is a form older than the standard; such servers say both.
        if let Some(first) = keyword.strip_prefix("AUTH=") {
            let named = std::iter::once(first).chain(words);
            self.mechanisms = self.mechanisms.union(Mechanisms::of_words(named));
        } else if keyword == "AUTH" {
            self.mechanisms = self.mechanisms.union(Mechanisms::of_words(words));
        } else if keyword != "STARTTLS" {
            self.lines.push(line.trim().into());
        }
    }
}

/// Greeting, EHLO, and STARTTLS where that is configured; what was said in the clear is forgotten.
async fn open(connected: Connected, name: &str) -> Result<(Wire, Offered), AttachError> {
    let Connected { mut wire, tls, trial } = connected;
    let greeted = async {
        let offered = greeted(&mut wire, &tls, name).await?;
        Ok((wire, offered))
    };
    trial.judge(greeted).await
}

async fn greeted(wire: &mut Wire, tls: &BackendTls, name: &str) -> Result<Offered, AttachError> {
    expect(wire).await?;
    let offered = hello(wire, name).await?;
    let BackendTls::StartTls(config, server_name) = tls else { return Ok(offered) };
    if !offered.extensions.starttls {
        return Err(AttachError::NoStartTls);
    }
    wire.say("STARTTLS\r\n").await?;
    let reply = smtp_client::reply(wire).await?;
    match reply.class() {
        Class::Accepted => {}
        Class::Permanent => return Err(AttachError::NoStartTls),
        Class::GoOn | Class::Temporary => return Err(unwilling(&reply)),
    }
    wire.connect_tls(config.clone(), server_name.clone()).await?;
    hello(wire, name).await
}

async fn hello(wire: &mut Wire, name: &str) -> Result<Offered, AttachError> {
    let mut offered = Offered::default();
    let reply = smtp_client::hello(wire, "EHLO", name, |line| offered.add(line)).await?;
    if reply.class() == Class::Accepted { Ok(offered) } else { Err(unwilling(&reply)) }
}

/// Reads a reply that must be a yes.
async fn expect(wire: &mut Wire) -> Result<(), AttachError> {
    let reply = smtp_client::reply(wire).await?;
    if reply.class() == Class::Accepted { Ok(()) } else { Err(unwilling(&reply)) }
}

/// XCLIENT; false where the backend does not offer it to us. It begins anew after each, with 220.
async fn name_client(
    wire: &mut Wire,
    offered: &Extensions,
    client: Client<'_>,
) -> Result<bool, AttachError> {
    let Client { address, local, session, ttl, tls, told, .. } = client;
    let subject = Subject {
        client: address,
        local,
        helo: told.helo.as_deref().unwrap_or_default(),
        extended: true,
        login: Some(Login { session, ttl, secured: tls.is_some() }),
    };
    let commands = xclient::commands(offered, subject);
    for command in &commands {
        wire.say(command).await?;
        expect(wire).await?;
    }
    Ok(!commands.is_empty())
}

/// AUTH.
struct SubmissionCarrier<'w> {
    wire: &'w mut Wire,
}

impl Carrier for SubmissionCarrier<'_> {
    type Yes = ();

    fn takes_initial(&self, mechanism: Mechanism, octets: usize) -> bool {
        let others = "AUTH  \r\n".len().saturating_add(mechanism.as_str().len());
        octets.saturating_add(others) <= MAX_LINE
    }

    async fn begin(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&Secret>,
    ) -> Result<(), AttachError> {
        sasl::say_auth(self.wire, mechanism, initial).await
    }

    async fn respond(&mut self, response: Option<&Secret>) -> Result<(), AttachError> {
        sasl::say_response(self.wire, response).await
    }

    async fn answer(&mut self) -> Result<Answer<()>, AttachError> {
        let mut text = String::new();
        let reply = smtp_client::reply_with(self.wire, |line| line.clone_into(&mut text)).await?;
        match reply.code() {
            235 => Ok(Answer::Yes(())),
            334 => challenge(&text).map(Answer::Challenge),
            _ => Err(refusal(&reply)),
        }
    }
}

/// A challenge, not in base64. Some servers say a no in its place: `334 5.7.8 Second factor required`.
fn challenge(text: &str) -> Result<Vec<u8>, AttachError> {
    if let Ok(challenge) = decode_base64(text.trim().as_bytes()) {
        return Ok(challenge.expose().to_vec());
    }
    let permanent = Reply::of_lines(535, text);
    let temporary = Reply::of_lines(454, text);
    match (permanent.enhanced(), temporary.enhanced()) {
        (Some(_), _) => Err(refusal(&permanent)),
        (None, Some(_)) => Err(refusal(&temporary)),
        (None, None) => Err(AttachError::Protocol("a challenge that is not base64")),
    }
}

/// What a no to AUTH means (RFC 4954 §6, RFC 5248).
fn refusal(reply: &Reply) -> AttachError {
    // Whatever the code: credentials invalid, account disabled.
    if let (Class::Permanent, Some(Enhanced { subject: 7, detail: 8 | 13 })) =
        (reply.class(), reply.enhanced())
    {
        return AttachError::Rejected(Reason::of(reply.text()));
    }
    match reply.code() {
        535 => AttachError::Rejected(Reason::of(reply.text())),
        // Too weak a mechanism, encryption required and all else that blames how we speak: 534, 538, 50x.
        _ => unwilling(reply),
    }
}

/// What a no means that is not about the credentials.
fn unwilling(reply: &Reply) -> AttachError {
    match reply.class() {
        Class::Permanent => AttachError::Refuses,
        Class::Temporary if says_too_many_sessions(reply.text()) => AttachError::TooManySessions,
        Class::Temporary => AttachError::Unavailable,
        Class::Accepted | Class::GoOn => AttachError::Protocol("a reply out of turn"),
    }
}

impl From<ReplyError> for AttachError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Wire(error) => Self::Wire(error),
            ReplyError::Malformed(what) => Self::Protocol(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::cause;

    fn heard(code: u16, text: &str) -> String {
        cause(&refusal(&Reply::of_lines(code, text)))
    }

    #[test]
    fn each_no_is_understood_by_its_cause() {
        for (code, text, expected) in [
            (535, "5.7.8 Authentication failed", "Rejected"),
            (535, "no", "Rejected"),
            (535, "5.7.3 Authentication unsuccessful", "Rejected"),
            (550, "5.7.8 bad credentials", "Rejected"),
            (525, "5.7.13 account disabled", "Rejected"),
            (534, "5.7.9 too weak", "Refuses"),
            (538, "5.7.11 TLS", "Refuses"),
            (530, "5.7.0 Must issue a STARTTLS command first", "Refuses"),
            (504, "5.5.4 what", "Refuses"),
            (500, "", "Refuses"),
            (454, "4.7.0 later", "Unavailable"),
            (432, "4.7.12 transition", "Unavailable"),
            (421, "4.3.2 closing", "Unavailable"),
            (421, "4.7.0 Maximum number of connections from user+IP exceeded", "TooManySessions"),
            (250, "Ok", "Protocol"),
            (354, "go on", "Protocol"),
        ] {
            assert_eq!(heard(code, text), expected, "{code} {text}");
        }
    }

    #[test]
    fn a_challenge_is_base64_or_a_no_in_disguise() {
        assert_eq!(challenge("").unwrap(), b"");
        assert_eq!(challenge("VXNlcm5hbWU6").unwrap(), b"Username:");
        let no = |text: &str| cause(&challenge(text).unwrap_err());
        assert_eq!(no("5.7.8 Second factor required."), "Rejected");
        assert_eq!(no("5.7.8"), "Rejected");
        assert_eq!(no("4.7.0 later!"), "Unavailable");
        assert_eq!(no("Username:"), "Protocol");
    }

    #[test]
    fn both_forms_of_auth_are_read_and_the_rest_is_kept() {
        let mut offered = Offered::default();
        for line in ["SIZE 1000", "auth=LOGIN", "AUTH PLAIN XOAUTH2 GSSAPI", "STARTTLS", "dsn"] {
            offered.add(line);
        }
        let names: Vec<_> = offered.mechanisms.iter().map(Mechanism::as_str).collect();
        assert_eq!(names, ["PLAIN", "LOGIN", "XOAUTH2"]);
        assert_eq!(offered.lines.join(", "), "SIZE 1000, dsn");
        assert!(offered.extensions.starttls);
    }
}

//! Logging in to a POP3 backend (RFC 1939, RFC 2449, RFC 5034), with Dovecot's XCLIENT.
//!
//! Replies have no tags, so a word that nobody asked for could pass for the answer to the next command:
//! whatever is unread when it is our turn ends the attempt.

mod reply;

use shared::backend::{BackendTls, Endpoint, Identity};
use shared::credentials::{Credentials, Secret};
use shared::sasl::{Mechanism, Mechanisms};
use shared::wire::{Connected, Wire};
use tokio::time::Instant;

use super::sasl::{self, Answer, Carrier};
use super::{Abilities, AttachError, Attached, Attempt, Client, Prompt, Welcome, connect, xclient};
use reply::Reply;

/// Longest AUTH command in octets, its line end included, that may have an initial response
/// (RFC 5034 §4).
const MAX_AUTH_LINE: usize = 255;

/// Connects to `endpoint` and logs in.
///
/// # Errors
///
/// An [`AttachError`]; the connection is closed.
pub async fn log_in(endpoint: &Endpoint, attempt: Attempt<'_>) -> Result<Attached, AttachError> {
    let Attempt { credentials, client, prompt, until, .. } = attempt;
    let (mut wire, capabilities, _) = open(endpoint, Some(client), until).await?;
    authenticate(&mut wire, credentials, prompt, &capabilities).await?;
    Ok(Attached { wire, welcome: Welcome::default(), watch: None })
}

/// What a backend says that it can.
///
/// # Errors
///
/// An [`AttachError`].
pub async fn probe(endpoint: &Endpoint, until: Instant) -> Result<Abilities, AttachError> {
    let (mut wire, capabilities, offers_xclient) = open(endpoint, None, until).await?;
    wire.output.push("QUIT\r\n");
    wire.close().await;
    let mut mechanisms = capabilities.mechanisms();
    if capabilities.takes_user() {
        mechanisms = mechanisms.union(Mechanisms::PASSWORDS);
    }
    let told_by_front = |line: &&String| {
        let (word, _) = split_word(line);
        ["STLS", "SASL", "USER"].iter().any(|known| word.eq_ignore_ascii_case(known))
    };
    let lines = capabilities.0.iter().flatten().filter(|line| !told_by_front(line));
    let believes_us = (endpoint.identity == Identity::Xclient).then_some(offers_xclient);
    let capabilities = lines.map(|line| line.as_str().into()).collect();
    Ok(Abilities { capabilities, mechanisms, believes_us })
}

/// A connection that is greeted, secured and told who the client is; what it says that it can; and whether
/// it offers XCLIENT.
async fn open(
    endpoint: &Endpoint,
    client: Option<Client<'_>>,
    until: Instant,
) -> Result<(Wire, Capabilities, bool), AttachError> {
    let Connected { wire, tls, trial } = connect(endpoint, client, until).await?;
    trial.judge(introduce(wire, &tls, endpoint.identity, client)).await
}

async fn introduce(
    mut wire: Wire,
    tls: &BackendTls,
    identity: Identity,
    client: Option<Client<'_>>,
) -> Result<(Wire, Capabilities, bool), AttachError> {
    let greeting = Reply::verdict(&mut wire).await?.map_err(|no| no.to_anything_else())?;
    if let BackendTls::StartTls(config, name) = tls {
        our_turn(&wire)?;
        wire.say("STLS\r\n").await?;
        Reply::verdict(&mut wire).await?.map_err(|_| AttachError::NoStartTls)?;
        wire.connect_tls(config.clone(), name.clone()).await?;
    }
    our_turn(&wire)?;
    // Said to trusted peers alone, and nowhere but in the greeting.
    let offers_xclient = offers_xclient(&greeting);
    let forwards = client.filter(|_| identity == Identity::Xclient && offers_xclient);
    if let Some(client) = forwards {
        wire.output.push(format!("XCLIENT {}\r\n", xclient::attributes(client)));
    }
    wire.say("CAPA\r\n").await?;
    if forwards.is_some() {
        // Its verdict does not matter: a backend that does not trust us says yes, too, and takes no address
        // from us.
        Reply::verdict(&mut wire).await?.ok();
    }
    let capabilities = match Reply::verdict(&mut wire).await? {
        Ok(_) => Capabilities(Some(reply::list(&mut wire).await?)),
        // A server from before RFC 2449.
        Err(_) => Capabilities(None),
    };
    our_turn(&wire)?;
    Ok((wire, capabilities, offers_xclient))
}

/// `[XCLIENT]` in front of a greeting's text.
fn offers_xclient(greeting: &str) -> bool {
    greeting.get(..9).is_some_and(|code| code.eq_ignore_ascii_case("[XCLIENT]"))
}

fn our_turn(wire: &Wire) -> Result<(), AttachError> {
    if wire.input.is_empty() {
        return Ok(());
    }
    Err(AttachError::Protocol("words that nobody asked for"))
}

/// What a server says that it can: the lines of CAPA; `None` where it does not know the command.
#[derive(Debug)]
struct Capabilities(Option<Vec<String>>);

impl Capabilities {
    fn parameters(&self, name: &str) -> Option<&str> {
        let words = self.0.iter().flatten().map(|line| split_word(line));
        words.filter(|(word, _)| word.eq_ignore_ascii_case(name)).map(|(_, rest)| rest).next()
    }

    fn mechanisms(&self) -> Mechanisms {
        Mechanisms::of_words(self.parameters("SASL").unwrap_or_default().split(' '))
    }

    /// USER is in the list, or there is none. A server whose list lacks it takes no passwords on this
    /// connection.
    fn takes_user(&self) -> bool {
        self.0.is_none() || self.parameters("USER").is_some()
    }
}

fn split_word(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// Gives the credentials in the form that the backend takes.
async fn authenticate(
    wire: &mut Wire,
    credentials: &Credentials,
    prompt: &Prompt,
    capabilities: &Capabilities,
) -> Result<(), AttachError> {
    let offered = capabilities.mechanisms();
    if let Some(password) = credentials.password()
        && !offered.contains(Mechanism::Plain)
        && capabilities.takes_user()
        && credentials.authzid.is_none()
        && is_sayable(&credentials.authcid)
        && is_sayable(password.expose())
    {
        return user_and_pass(wire, &credentials.authcid, password).await;
    }
    sasl::authenticate(&mut Pop3Carrier { wire }, offered, credentials, prompt).await
}

/// What USER and PASS have no way to say (RFC 1939 §3).
fn is_sayable(argument: &[u8]) -> bool {
    !argument.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0))
}

/// USER and PASS, for backends without SASL. Not in one segment: some servers read one line at a time.
async fn user_and_pass(wire: &mut Wire, name: &[u8], password: &Secret) -> Result<(), AttachError> {
    for (command, argument) in [("USER ", name), ("PASS ", password.expose())] {
        our_turn(wire)?;
        wire.output.push(command);
        wire.output.push(argument);
        wire.say("\r\n").await?;
        // A server may say already to USER that it has no such name.
        Reply::verdict(wire).await?.map_err(|no| no.to_credentials())?;
    }
    Ok(())
}

/// AUTH (RFC 5034).
struct Pop3Carrier<'w> {
    wire: &'w mut Wire,
}

impl Carrier for Pop3Carrier<'_> {
    type Yes = ();

    fn takes_initial(&self, mechanism: Mechanism, octets: usize) -> bool {
        let frame = "AUTH  \r\n".len().saturating_add(mechanism.as_str().len());
        octets.saturating_add(frame) <= MAX_AUTH_LINE
    }

    async fn begin(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&Secret>,
    ) -> Result<(), AttachError> {
        our_turn(self.wire)?;
        sasl::say_auth(self.wire, mechanism, initial).await
    }

    async fn respond(&mut self, response: Option<&Secret>) -> Result<(), AttachError> {
        our_turn(self.wire)?;
        sasl::say_response(self.wire, response).await
    }

    async fn answer(&mut self) -> Result<Answer<()>, AttachError> {
        match Reply::next(self.wire).await? {
            Reply::Ok(_) => Ok(Answer::Yes(())),
            Reply::Continue(text) => Ok(Answer::Challenge(reply::challenge(&text)?)),
            Reply::Err(no) => Err(no.to_credentials()),
        }
    }
}

//! Logging in to an IMAP backend (RFC 3501 §6.1, §6.2), with Dovecot's ID forwarding.

mod response;

use shared::backend::{BackendTls, Endpoint, Identity};
use shared::credentials::Secret;
use shared::dialogue::Input;
use shared::sasl::{Mechanism, Mechanisms, decode_base64};
use shared::wire::{Connected, Watch, Wire};
use tokio::time::Instant;

use super::sasl::{self, Answer, Carrier};
use super::watch::CommandWatch;
use super::{Abilities, AttachError, Attached, Attempt, Client, Welcome, connect};
use response::{Exchange, Reply, Status, next_reply};

/// Longest command that is sent in one line: Dovecot takes about a kilobyte before login.
const MAX_LINE: usize = 1000;
/// Longest value of an ID pair that is passed on, in octets (RFC 2971 §3.3).
const MAX_ID_VALUE: usize = 1024;
/// Longest key of an ID pair (RFC 2971 §3.3); Dovecot takes a longer one for an error.
const MAX_ID_KEY: usize = 30;
/// Pairs in an ID command (RFC 2971 §3.3).
const MAX_ID_PAIRS: usize = 30;

/// Connects to `endpoint` and logs in.
///
/// # Errors
///
/// An [`AttachError`]; the connection is closed.
pub async fn log_in(endpoint: &Endpoint, attempt: Attempt<'_>) -> Result<Attached, AttachError> {
    let Attempt { client, until, .. } = attempt;
    let (mut wire, capabilities) = open(endpoint, Some(client), until).await?;
    let forwards = endpoint.identity == Identity::DovecotId && capabilities.has("ID");
    if forwards {
        wire.output.push(id_command(client));
    }
    let mut exchange = Exchange::default();
    let yes = authenticate(&mut wire, &mut exchange, attempt, &capabilities, forwards).await?;
    let Capabilities(mut welcome) = match yes {
        Some(capabilities) => capabilities,
        None => asked_capabilities(&mut wire, &mut exchange).await?,
    };
    // What else it has said meanwhile (an ALERT, say) is for the client, before the rest.
    if !exchange.said.is_empty() {
        let rest = Input::from_octets(wire.input.unread());
        wire.input = Input::from_octets(exchange.said.as_bytes());
        wire.input.push(rest.unread());
    }
    let watch = without_unauthenticate(&mut welcome);
    Ok(Attached { wire, welcome: Welcome { capabilities: welcome, ..Welcome::default() }, watch })
}

/// Takes UNAUTHENTICATE out of what the client is told, and COMPRESS with it, which would hide it; the
/// connection of a backend that has it is watched.
fn without_unauthenticate(capabilities: &mut String) -> Option<Box<dyn Watch>> {
    let unauthenticates = |word: &str| word.eq_ignore_ascii_case("UNAUTHENTICATE");
    if !capabilities.split(' ').any(unauthenticates) {
        return None;
    }
    let compresses = |word: &str| word.to_ascii_uppercase().starts_with("COMPRESS=");
    let others = capabilities.split(' ').filter(|w| !unauthenticates(w) && !compresses(w));
    *capabilities = others.collect::<Vec<_>>().join(" ");
    Some(Box::new(CommandWatch::imap()))
}

/// What a backend says that it can.
///
/// # Errors
///
/// An [`AttachError`].
pub async fn probe(endpoint: &Endpoint, until: Instant) -> Result<Abilities, AttachError> {
    let (mut wire, capabilities) = open(endpoint, None, until).await?;
    let believes_us = match endpoint.identity {
        Identity::DovecotId if capabilities.has("ID") => believes_us(&mut wire).await?,
        Identity::DovecotId => Some(false),
        Identity::None
        | Identity::Xclient
        | Identity::Xforward
        | Identity::Proxy
        | Identity::ProxyV1
        | Identity::Forwarded => None,
    };
    wire.output.push("Q LOGOUT\r\n");
    wire.close().await;
    let words = capabilities.0.split(' ').filter(|word| !word.is_empty());
    let told_by_front = |word: &str| {
        let word = word.to_ascii_uppercase();
        let others = ["STARTTLS", "LOGINDISABLED", "UNAUTHENTICATE", "LOGIN-REFERRALS"];
        word.starts_with("AUTH=") || others.contains(&&*word)
    };
    let mut mechanisms = capabilities.mechanisms();
    if !capabilities.has("LOGINDISABLED") {
        mechanisms = mechanisms.union(Mechanisms::PASSWORDS);
    }
    let capabilities = words.filter(|word| !told_by_front(word)).map(Into::into).collect();
    Ok(Abilities { capabilities, mechanisms, believes_us })
}

/// Dovecot 2.4 says to whom it listens; an older one says the same to everybody.
async fn believes_us(wire: &mut Wire) -> Result<Option<bool>, AttachError> {
    wire.say("I ID (\"x-session-id\" \"probe\")\r\n").await?;
    let reply = Exchange::default().tagged(wire, "I").await?;
    Ok(reply.text.starts_with("Trusted ").then_some(true))
}

/// A connection that is greeted and secured, and what it says that it can.
async fn open(
    endpoint: &Endpoint,
    client: Option<Client<'_>>,
    until: Instant,
) -> Result<(Wire, Capabilities), AttachError> {
    let Connected { wire, tls, trial } = connect(endpoint, client, until).await?;
    trial.judge(greeted(wire, &tls)).await
}

async fn greeted(mut wire: Wire, tls: &BackendTls) -> Result<(Wire, Capabilities), AttachError> {
    let mut capabilities = greeting(&mut wire).await?;
    if let BackendTls::StartTls(config, name) = tls {
        start_tls(&mut wire, capabilities.as_ref()).await?;
        wire.connect_tls(config.clone(), name.clone()).await?;
        // What was said in the clear is forgotten.
        capabilities = None;
    }
    let capabilities = match capabilities {
        Some(capabilities) => capabilities,
        None => ask_capabilities(&mut wire).await?,
    };
    Ok((wire, capabilities))
}

/// What a server says that it can, as it said it.
#[derive(Debug, Clone)]
struct Capabilities(String);

impl Capabilities {
    fn has(&self, word: &str) -> bool {
        self.0.split(' ').any(|offered| offered.eq_ignore_ascii_case(word))
    }

    fn mechanisms(&self) -> Mechanisms {
        let names = self.0.split(' ').filter_map(|word| {
            let (key, name) = word.split_once('=')?;
            key.eq_ignore_ascii_case("AUTH").then_some(name)
        });
        Mechanisms::of_words(names)
    }
}

/// `* OK`, with capabilities or without. A backend that takes us for logged in is not one (PREAUTH would
/// also bypass STARTTLS).
async fn greeting(wire: &mut Wire) -> Result<Option<Capabilities>, AttachError> {
    let Reply { status, capabilities, .. } = next_reply(wire, "*").await?;
    match status {
        Status::Ok => Ok(capabilities.map(Capabilities)),
        Status::Bye => Err(AttachError::Unavailable),
        Status::Preauth => Err(AttachError::Protocol("PREAUTH greeting")),
        Status::No | Status::Bad | Status::Continue => Err(AttachError::Protocol("greeting")),
    }
}

async fn start_tls(wire: &mut Wire, known: Option<&Capabilities>) -> Result<(), AttachError> {
    if known.is_some_and(|known| !known.has("STARTTLS")) {
        return Err(AttachError::NoStartTls);
    }
    wire.say("S STARTTLS\r\n").await?;
    match Exchange::default().tagged(wire, "S").await?.status {
        Status::Ok => Ok(()),
        Status::Bye => Err(AttachError::Unavailable),
        Status::No | Status::Bad | Status::Preauth | Status::Continue => {
            Err(AttachError::NoStartTls)
        }
    }
}

async fn ask_capabilities(wire: &mut Wire) -> Result<Capabilities, AttachError> {
    asked_capabilities(wire, &mut Exchange::default()).await
}

async fn asked_capabilities(
    wire: &mut Wire,
    exchange: &mut Exchange,
) -> Result<Capabilities, AttachError> {
    wire.say("C CAPABILITY\r\n").await?;
    let reply = exchange.tagged(wire, "C").await?;
    match (reply.status, exchange.capabilities.take().or(reply.capabilities)) {
        (Status::Ok, Some(capabilities)) => Ok(Capabilities(capabilities)),
        (Status::Bye, _) => Err(AttachError::Unavailable),
        (Status::Ok | Status::No | Status::Bad | Status::Preauth | Status::Continue, _) => {
            Err(AttachError::Protocol("CAPABILITY"))
        }
    }
}

/// Gives the credentials in the form that the backend takes, and returns its verdict: the capabilities
/// that came with its yes. The ID command may be on its way before.
async fn authenticate(
    wire: &mut Wire,
    exchange: &mut Exchange,
    attempt: Attempt<'_>,
    capabilities: &Capabilities,
    after_id: bool,
) -> Result<Option<Capabilities>, AttachError> {
    let Attempt { credentials, prompt, .. } = attempt;
    let mut offered = capabilities.mechanisms();
    let takes_initial = capabilities.has("SASL-IR");
    let mut carrier = ImapCarrier { wire, exchange, takes_initial, after_id };
    let by_command = !capabilities.has("LOGINDISABLED") && credentials.authzid.is_none();
    if let Some(password) = credentials.password()
        && by_command
        && !offered.contains(Mechanism::Plain)
    {
        return carrier.log_in(&credentials.authcid, password, capabilities).await;
    }
    if capabilities.has("LOGINDISABLED") {
        // A backend that wants no passwords on this connection; what AUTH=LOGIN would be, too.
        offered.remove(Mechanism::Login);
    }
    sasl::authenticate(&mut carrier, offered, credentials, prompt).await
}

/// AUTHENTICATE under the tag `L`.
struct ImapCarrier<'w> {
    wire: &'w mut Wire,
    exchange: &'w mut Exchange,
    /// SASL-IR (RFC 4959).
    takes_initial: bool,
    /// The reply to ID is still to come.
    after_id: bool,
}

impl Carrier for ImapCarrier<'_> {
    type Yes = Option<Capabilities>;

    fn takes_initial(&self, _: Mechanism, octets: usize) -> bool {
        self.takes_initial && octets < MAX_LINE
    }

    async fn begin(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&Secret>,
    ) -> Result<(), AttachError> {
        // With the credentials in it, it goes in the same segment as the ID; else the ID's end is waited for.
        let command = format!("L AUTHENTICATE {mechanism}");
        let Some(initial) = initial else {
            self.after_id().await?;
            return Ok(self.wire.say(format!("{command}\r\n")).await?);
        };
        self.wire.output.push(format!("{command} "));
        self.wire.output.push(initial.expose());
        self.wire.say("\r\n").await?;
        self.after_id().await
    }

    async fn respond(&mut self, response: Option<&Secret>) -> Result<(), AttachError> {
        sasl::say_response(self.wire, response).await
    }

    async fn answer(&mut self) -> Result<Answer<Option<Capabilities>>, AttachError> {
        let reply = self.exchange.next(self.wire, "L").await?;
        match reply.status {
            Status::Ok => {
                let capabilities = reply.capabilities.or(self.exchange.capabilities.take());
                Ok(Answer::Yes(capabilities.map(Capabilities)))
            }
            Status::Continue => {
                // What is not base64 is no challenge of a mechanism; a bare prompt is empty.
                let text = decode_base64(reply.text.trim().as_bytes());
                Ok(Answer::Challenge(text.map(|text| text.expose().to_vec()).unwrap_or_default()))
            }
            Status::No | Status::Bad | Status::Bye | Status::Preauth => Err(reply.refusal()),
        }
    }
}

impl ImapCarrier<'_> {
    /// Waits for the ID command's end. Its verdict does not matter: a backend that does not trust us says
    /// OK, too, and takes no address from us.
    async fn after_id(&mut self) -> Result<(), AttachError> {
        if std::mem::take(&mut self.after_id) {
            self.wire.flush().await?;
            let reply = Exchange::default().tagged(self.wire, "I").await?;
            if reply.status == Status::Bye {
                return Err(AttachError::Unavailable);
            }
        }
        Ok(())
    }

    /// LOGIN, for backends without SASL: quoted where that is safe, else as literals.
    async fn log_in(
        &mut self,
        name: &[u8],
        password: &Secret,
        capabilities: &Capabilities,
    ) -> Result<Option<Capabilities>, AttachError> {
        self.after_id().await?;
        self.wire.output.push("L LOGIN");
        for argument in [name, password.expose()] {
            self.wire.output.push(" ");
            if is_quotable(argument) {
                self.wire.output.push("\"");
                self.wire.output.push(argument);
                self.wire.output.push("\"");
                continue;
            }
            // RFC 7888: LITERAL- is LITERAL+ for up to 4096 octets.
            let small = argument.len() <= 4096 && capabilities.has("LITERAL-");
            if small || capabilities.has("LITERAL+") {
                self.wire.output.push(format!("{{{}+}}\r\n", argument.len()));
            } else {
                self.wire.say(format!("{{{}}}\r\n", argument.len())).await?;
                sasl::invited(self).await?;
            }
            self.wire.output.push(argument);
        }
        self.wire.say("\r\n").await?;
        match self.answer().await? {
            Answer::Yes(capabilities) => Ok(capabilities),
            Answer::Challenge(_) => Err(AttachError::Protocol("continuation out of turn")),
        }
    }
}

/// 7-bit text without anything that would have to be escaped.
fn is_quotable(text: &[u8]) -> bool {
    text.len() < MAX_LINE / 2
        && text.iter().all(|octet| matches!(octet, b' '..=b'~') && !b"\"\\".contains(octet))
}

/// Dovecot's extension of ID (RFC 2971): who the client is, and what it told of itself. Only the first
/// ID of a connection counts, so everything is in this one.
fn id_command(client: Client<'_>) -> Vec<u8> {
    let mut command = b"I ID (".to_vec();
    let mut pair = |key: &[u8], value: &[u8]| {
        if command.last() != Some(&b'(') {
            command.push(b' ');
        }
        command.push(b'"');
        command.extend_from_slice(key);
        command.extend_from_slice(b"\" \"");
        command.extend_from_slice(value);
        command.push(b'"');
    };
    let own = [
        ("x-session-id", client.session.to_owned()),
        ("x-originating-ip", client.address.ip().to_string()),
        ("x-originating-port", client.address.port().to_string()),
        ("x-connected-ip", client.local.ip().to_string()),
        ("x-connected-port", client.local.port().to_string()),
        ("x-proxy-ttl", client.ttl.to_string()),
    ];
    // A trusted proxy need not have told the port, and 0 is none.
    for (key, value) in own.iter().filter(|(_, value)| value != "0") {
        pair(key.as_bytes(), value.as_bytes());
    }
    // A client must not speak with our voice: x- keys of its own stay behind.
    let told = client.told.id.iter().filter(|(key, value)| {
        key.len() <= MAX_ID_KEY
            && value.len() <= MAX_ID_VALUE
            && !key.to_ascii_lowercase().starts_with(b"x-")
            && is_quotable(key)
            && is_quotable(value)
    });
    for (key, value) in told.take(MAX_ID_PAIRS.saturating_sub(own.len())) {
        pair(key, value);
    }
    command.extend_from_slice(b")\r\n");
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::Told;

    #[test]
    fn the_id_names_the_client_and_lets_nobody_else_do_so() {
        let id = [
            (b"name".to_vec(), b"Outlook".to_vec()),
            (b"X-Originating-IP".to_vec(), b"203.0.113.9".to_vec()),
            (b"os".to_vec(), b"a\"b".to_vec()),
        ];
        let told = Told { id: id.into(), ..Told::default() };
        let client = Client {
            address: "[2001:db8::1]:4711".parse().unwrap(),
            local: "192.0.2.1:993".parse().unwrap(),
            session: "abc",
            ttl: 5,
            tls: Some("TLSv1.3"),
            authority: None,
            told: &told,
        };
        assert_eq!(
            String::from_utf8(id_command(client)).unwrap(),
            "I ID (\"x-session-id\" \"abc\" \"x-originating-ip\" \"2001:db8::1\" \
             \"x-originating-port\" \"4711\" \"x-connected-ip\" \"192.0.2.1\" \
             \"x-connected-port\" \"993\" \"x-proxy-ttl\" \"5\" \"name\" \"Outlook\")\r\n"
        );
    }
}

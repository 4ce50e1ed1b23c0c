//! Logging in to an IMAP backend (RFC 3501 §6.1, §6.2), with Dovecot's ID forwarding.

mod response;

use shared::backend::{BackendTls, Endpoint, Identity};
use shared::credentials::Credentials;
use shared::dialogue::Input;
use shared::sasl::encode_plain;
use shared::wire::{Deadlines, Proxied, Wire};
use tokio::time::Instant;

use super::{AttachError, Attached, Client, Welcome};
use response::{Exchange, Reply, Status, next_reply};

/// Longest command that is sent in one line: Dovecot takes about a kilobyte before login.
const MAX_LINE: usize = 1000;
/// Hops through login proxies that a login may still take (Dovecot's x-proxy-ttl): a loop ends.
const PROXY_TTL: u8 = 5;
/// Longest value of an ID pair that is passed on, in octets (RFC 2971 §3.3).
const MAX_ID_VALUE: usize = 1024;
/// Longest key of an ID pair (RFC 2971 §3.3); Dovecot takes a longer one for an error.
const MAX_ID_KEY: usize = 30;
/// Pairs in an ID command (RFC 2971 §3.3).
const MAX_ID_PAIRS: usize = 30;

/// Connects to `endpoint` and logs in as `credentials` say.
///
/// # Errors
///
/// An [`AttachError`]; the connection is closed.
pub async fn log_in(
    endpoint: &Endpoint,
    credentials: &Credentials,
    client: Client<'_>,
    until: Instant,
) -> Result<Attached, AttachError> {
    let reply = endpoint.reply_timeout;
    let deadlines = Deadlines { read: reply, write: reply, until: Some(until) };
    let proxied = Proxied { client: client.address, local: client.local };
    let mut wire = Wire::connect(endpoint, Some(proxied), deadlines).await?;
    let mut capabilities = greeting(&mut wire).await?;
    if let BackendTls::StartTls(config, name) = &endpoint.tls {
        start_tls(&mut wire, capabilities.as_ref()).await?;
        wire.connect_tls(config.clone(), name.clone()).await?;
        // What was said in the clear is forgotten.
        capabilities = None;
    }
    let capabilities = match capabilities {
        Some(capabilities) => capabilities,
        None => ask_capabilities(&mut wire).await?,
    };
    let forwards = endpoint.identity == Identity::DovecotId && capabilities.has("ID");
    if forwards {
        let id = id_command(client);
        wire.output.push(id);
    }
    let welcome = authenticate(&mut wire, credentials, &capabilities, forwards).await?;
    let welcome = match welcome {
        Some(capabilities) => capabilities,
        None => ask_again(&mut wire).await?,
    };
    Ok(Attached { wire, welcome: Welcome { capabilities: welcome.0 } })
}

/// What a server says that it can, as it said it.
#[derive(Debug, Clone)]
struct Capabilities(String);

impl Capabilities {
    fn has(&self, word: &str) -> bool {
        self.0.split(' ').any(|offered| offered.eq_ignore_ascii_case(word))
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

/// After login. What else the backend says meanwhile (an ALERT, say) is for the client, before the rest.
async fn ask_again(wire: &mut Wire) -> Result<Capabilities, AttachError> {
    let mut exchange = Exchange::default();
    let capabilities = asked_capabilities(wire, &mut exchange).await?;
    if !exchange.said.is_empty() {
        let rest = Input::from_octets(wire.input.unread());
        wire.input = Input::from_octets(exchange.said.as_bytes());
        wire.input.push(rest.unread());
    }
    Ok(capabilities)
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
    credentials: &Credentials,
    capabilities: &Capabilities,
    after_id: bool,
) -> Result<Option<Capabilities>, AttachError> {
    let plain = encode_plain(credentials);
    let response = plain.expose();
    let mut exchange = Exchange::default();
    if !capabilities.has("AUTH=PLAIN") {
        if credentials.authzid.is_some() || capabilities.has("LOGINDISABLED") {
            return Err(AttachError::NoMechanism);
        }
        after(wire, after_id).await?;
        login(wire, credentials, capabilities, &mut exchange).await?;
    } else if capabilities.has("SASL-IR") && response.len() < MAX_LINE {
        wire.output.push("L AUTHENTICATE PLAIN ");
        wire.output.push(response);
        wire.say("\r\n").await?;
        after(wire, after_id).await?;
    } else {
        after(wire, after_id).await?;
        wire.say("L AUTHENTICATE PLAIN\r\n").await?;
        invited(&mut exchange, wire).await?;
        wire.output.push(response);
        wire.say("\r\n").await?;
    }
    let reply = exchange.tagged(wire, "L").await?;
    match reply.status {
        Status::Ok => Ok(reply.capabilities.or(exchange.capabilities).map(Capabilities)),
        Status::No | Status::Bad | Status::Bye | Status::Preauth | Status::Continue => {
            Err(reply.refusal())
        }
    }
}

/// Waits for leave to go on. A no that comes before the credentials cannot be about them.
async fn invited(exchange: &mut Exchange, wire: &mut Wire) -> Result<(), AttachError> {
    match exchange.invitation(wire, "L").await {
        Err(AttachError::Rejected) => Err(AttachError::Refuses),
        verdict => verdict,
    }
}

/// Waits for the ID command's end. Its verdict does not matter: a backend that does not trust us says OK,
/// too, and takes no address from us.
async fn after(wire: &mut Wire, id: bool) -> Result<(), AttachError> {
    if id {
        wire.flush().await?;
        let reply = Exchange::default().tagged(wire, "I").await?;
        if reply.status == Status::Bye {
            return Err(AttachError::Unavailable);
        }
    }
    Ok(())
}

/// LOGIN, for backends without SASL: quoted where that is safe, else as literals.
async fn login(
    wire: &mut Wire,
    credentials: &Credentials,
    capabilities: &Capabilities,
    exchange: &mut Exchange,
) -> Result<(), AttachError> {
    wire.output.push("L LOGIN");
    for argument in [&*credentials.authcid, credentials.password.expose()] {
        wire.output.push(" ");
        if is_quotable(argument) {
            wire.output.push("\"");
            wire.output.push(argument);
            wire.output.push("\"");
            continue;
        }
        // RFC 7888: LITERAL- is LITERAL+ for up to 4096 octets.
        let small = argument.len() <= 4096 && capabilities.has("LITERAL-");
        if small || capabilities.has("LITERAL+") {
            wire.output.push(format!("{{{}+}}\r\n", argument.len()));
        } else {
            wire.say(format!("{{{}}}\r\n", argument.len())).await?;
            invited(exchange, wire).await?;
        }
        wire.output.push(argument);
    }
    wire.say("\r\n").await?;
    Ok(())
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
        ("x-proxy-ttl", PROXY_TTL.to_string()),
    ];
    for (key, value) in &own {
        pair(key.as_bytes(), value.as_bytes());
    }
    // A client must not speak with our voice: x- keys of its own stay behind.
    let told = client.id.iter().filter(|(key, value)| {
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

    #[test]
    fn the_id_names_the_client_and_lets_nobody_else_do_so() {
        let id = [
            (b"name".to_vec(), b"Outlook".to_vec()),
            (b"X-Originating-IP".to_vec(), b"203.0.113.9".to_vec()),
            (b"os".to_vec(), b"a\"b".to_vec()),
        ];
        let client = Client {
            address: "[2001:db8::1]:4711".parse().unwrap(),
            local: "192.0.2.1:993".parse().unwrap(),
            session: "abc",
            id: &id,
        };
        assert_eq!(
            String::from_utf8(id_command(client)).unwrap(),
            "I ID (\"x-session-id\" \"abc\" \"x-originating-ip\" \"2001:db8::1\" \
             \"x-originating-port\" \"4711\" \"x-connected-ip\" \"192.0.2.1\" \
             \"x-connected-port\" \"993\" \"x-proxy-ttl\" \"5\" \"name\" \"Outlook\")\r\n"
        );
    }
}

//! Logging in to a ManageSieve backend (RFC 5804), with Dovecot's XCLIENT.

mod response;

use shared::backend::{BackendTls, Endpoint, Identity};
use shared::credentials::{Proof, Secret};
use shared::sasl::{Mechanism, Mechanisms, decode_base64};
use shared::wire::{Connected, Watch, Wire};
use tokio::time::Instant;

use super::sasl::{self, Answer, Carrier};
use super::watch::CommandWatch;
use super::{Abilities, AttachError, Attached, Attempt, Client, Welcome, connect, xclient};
use crate::managesieve::{Capability, Speaker, push_string};
use response::{Reply, Responses, Said, Status};

/// Capabilities that are about a connection or a user, not about what a server can (RFC 5804 §1.7).
const PERSONAL: [&str; 6] =
    ["IMPLEMENTATION", "SASL", "STARTTLS", "OWNER", "UNAUTHENTICATE", "XCLIENT"];

/// Connects to `endpoint` and logs in.
///
/// # Errors
///
/// An [`AttachError`]; the connection is closed.
pub async fn log_in(endpoint: &Endpoint, attempt: Attempt<'_>) -> Result<Attached, AttachError> {
    let Attempt { credentials, client, prompt, until, .. } = attempt;
    let (mut wire, capabilities) = open(endpoint, Some(client), until).await?;
    if endpoint.identity == Identity::Xclient && capabilities.has("XCLIENT") {
        tell_client(&mut wire, client).await?;
    }
    // Without tags, what comes unasked would be taken for the answer to what is said next.
    if !wire.input.is_empty() {
        return Err(AttachError::Protocol("words that nobody asked for"));
    }
    let mut carrier = SieveCarrier { wire: &mut wire, responses: Responses::default() };
    let last = sasl::authenticate(&mut carrier, capabilities.mechanisms(), credentials, prompt);
    let last = last.await?;
    settle(&mut wire).await?;
    // A password has no last words, whatever they are: its mechanism here need not be the client's.
    let sasl = last.filter(|_| !matches!(credentials.proof, Proof::Password(_)));
    let watch = capabilities
        .has("UNAUTHENTICATE")
        .then(|| -> Box<dyn Watch> { Box::new(CommandWatch::managesieve()) });
    Ok(Attached { wire, welcome: Welcome { sasl, ..Welcome::default() }, watch })
}

/// What a backend says that it can.
///
/// # Errors
///
/// An [`AttachError`].
pub async fn probe(endpoint: &Endpoint, until: Instant) -> Result<Abilities, AttachError> {
    let (mut wire, capabilities) = open(endpoint, None, until).await?;
    wire.output.push("LOGOUT\r\n");
    wire.close().await;
    let mechanisms = capabilities.mechanisms();
    let offered = capabilities.0.iter().filter(|offered| !PERSONAL.contains(&&*offered.name));
    let believes_us = (endpoint.identity == Identity::Xclient).then(|| capabilities.has("XCLIENT"));
    Ok(Abilities {
        capabilities: offered.map(Capability::to_line).collect(),
        mechanisms,
        believes_us,
    })
}

/// What a server says that it can.
#[derive(Debug, Default)]
struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// Reads the list up to its OK.
    async fn read(wire: &mut Wire) -> Result<Self, AttachError> {
        let mut responses = Responses::default();
        let mut list = Self::default();
        loop {
            match responses.next(wire).await? {
                Said::Strings(strings) => list.0.extend(Capability::of(&strings)),
                Said::Reply(Reply { status: Status::Ok, .. }) => return Ok(list),
                Said::Reply(reply) => return Err(reply.refusal_of_all()),
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|offered| offered.name == name)
    }

    fn mechanisms(&self) -> Mechanisms {
        let lists = self.0.iter().filter(|offered| offered.name == "SASL");
        let values = lists.filter_map(|list| list.value.as_deref());
        Mechanisms::of_words(values.flat_map(str::split_ascii_whitespace))
    }
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
    let mut capabilities = Capabilities::read(&mut wire).await?;
    if let BackendTls::StartTls(config, name) = tls {
        start_tls(&mut wire, &capabilities).await?;
        wire.connect_tls(config.clone(), name.clone()).await?;
        // Told again, unasked; what was said in the clear is forgotten.
        capabilities = Capabilities::read(&mut wire).await?;
    }
    Ok((wire, capabilities))
}

async fn start_tls(wire: &mut Wire, known: &Capabilities) -> Result<(), AttachError> {
    if !known.has("STARTTLS") {
        return Err(AttachError::NoStartTls);
    }
    wire.say("STARTTLS\r\n").await?;
    match Responses::default().reply(wire).await?.status {
        Status::Ok => Ok(()),
        Status::Bye => Err(AttachError::Unavailable),
        Status::No => Err(AttachError::NoStartTls),
    }
}

/// A server that does not trust us says no and takes no address from us; the login is not its matter.
async fn tell_client(wire: &mut Wire, client: Client<'_>) -> Result<(), AttachError> {
    wire.say(format!("XCLIENT {}\r\n", xclient::attributes(client))).await?;
    let reply = Responses::default().reply(wire).await?;
    if reply.status == Status::Bye { Err(reply.refusal_of_all()) } else { Ok(()) }
}

/// Some servers tell their capabilities behind their yes, unasked (Cyrus; RFC 5804 §4 has that for SASL
/// security layers only). A client would take them for answers to what it says next. Whether they come
/// can only be known by asking for something else: NOOP is for that (§2.13), and a server that does not
/// know it says no.
async fn settle(wire: &mut Wire) -> Result<(), AttachError> {
    wire.say("NOOP \"in step\"\r\n").await?;
    let mut responses = Responses::default();
    let mut is_listing = false;
    loop {
        match (responses.next(wire).await?, is_listing) {
            (Said::Strings(_), _) => is_listing = true,
            (Said::Reply(Reply { status: Status::Ok, .. }), true) => is_listing = false,
            (Said::Reply(Reply { status: Status::Ok | Status::No, .. }), false) => return Ok(()),
            (Said::Reply(Reply { status: Status::No, .. }), true) => {
                return Err(AttachError::Protocol("capabilities without an end"));
            }
            (Said::Reply(reply @ Reply { status: Status::Bye, .. }), _) => {
                return Err(reply.refusal_of_all());
            }
        }
    }
}

/// AUTHENTICATE.
struct SieveCarrier<'w> {
    wire: &'w mut Wire,
    responses: Responses,
}

impl Carrier for SieveCarrier<'_> {
    /// The mechanism's last words.
    type Yes = Option<Box<[u8]>>;

    /// A literal has no limit of its own.
    fn takes_initial(&self, _: Mechanism, _: usize) -> bool {
        true
    }

    async fn begin(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&Secret>,
    ) -> Result<(), AttachError> {
        self.wire.output.push(format!("AUTHENTICATE \"{mechanism}\""));
        if let Some(initial) = initial {
            self.wire.output.push(" ");
            push_string(initial.expose(), Speaker::Client, &mut self.wire.output);
        }
        Ok(self.wire.say("\r\n").await?)
    }

    async fn respond(&mut self, response: Option<&Secret>) -> Result<(), AttachError> {
        push_string(
            response.map_or(&b"*"[..], Secret::expose),
            Speaker::Client,
            &mut self.wire.output,
        );
        Ok(self.wire.say("\r\n").await?)
    }

    async fn answer(&mut self) -> Result<Answer<Self::Yes>, AttachError> {
        match self.responses.next(self.wire).await? {
            Said::Strings(strings) => match &*strings {
                [challenge] => Ok(Answer::Challenge(decoded(challenge)?)),
                _ => Err(AttachError::Protocol("a challenge of several strings")),
            },
            Said::Reply(reply) if reply.status == Status::Ok => {
                let last = reply.sasl.as_ref().map(decoded).transpose()?;
                Ok(Answer::Yes(last.map(Vec::into_boxed_slice)))
            }
            Said::Reply(reply) => Err(reply.refusal()),
        }
    }
}

fn decoded(text: &Secret) -> Result<Vec<u8>, AttachError> {
    let decoded = decode_base64(text.expose());
    let decoded = decoded.map_err(|_| AttachError::Protocol("a challenge that is not base64"))?;
    Ok(decoded.expose().to_vec())
}

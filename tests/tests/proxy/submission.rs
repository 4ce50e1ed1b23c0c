//! Mail submission through the node (LOG-3, FWD-2): what IMAP's tests show of the driver is shown again
//! where SMTP's words or replies make it another thing.

mod faults;
mod flips;
mod forms;
mod login;
mod tokens;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use login_proxy::offer::Offer;
use shared::backend::LoginProtocol;
use shared::sasl::{Mechanism, Mechanisms};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners};
use tests::login_node::{DOMAIN, LoginNode, Settings};

const YES: &str = "235 2.7.0 Authentication successful";
const WRONG: &str = "535 5.7.8 Authentication failed";
const LATER: &str = "454 4.7.0 Account is temporarily unavailable, please try again later";
const BROKEN: &str = "454 4.7.0 Logins do not work at the moment, please tell your administrator";
const FIRST: &str = "530 5.7.0 Authentication required";

fn manners() -> Manners {
    Manners::of(LoginProtocol::Submission)
}

fn settings() -> Settings {
    let mechanisms = Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str));
    let offer = Offer { capabilities: ["SIZE 1000000".into()].into(), mechanisms };
    let protocol = LoginProtocol::Submission;
    Settings { protocol, offer: Some(offer), ..Settings::default() }
}

/// Two backends, and a node at which `ann` and `bob` live on `old`.
struct Stage {
    old: LoginBackend,
    new: LoginBackend,
    node: LoginNode,
}

impl Stage {
    async fn set(old: Manners, new: Manners) -> Result<Self> {
        Self::set_with(old, new, settings()).await
    }

    async fn set_with(old: Manners, new: Manners, settings: Settings) -> Result<Self> {
        let (old, new) = crate::two(old, new).await?;
        let node = LoginNode::start_with(crate::configured(&old, &new), settings)?;
        node.set_owner("ann", "old");
        node.set_owner("bob", "old");
        Ok(Self { old, new, node })
    }
}

/// A node with one backend, `old`, where `ann` lives.
async fn alone(manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", manners).await?;
    let node = LoginNode::start_with([old.configured()], settings())?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

/// A client that has said EHLO.
async fn come(node: &LoginNode) -> Result<Conversation> {
    let mut client = Conversation::connect(node.address).await?;
    client.expect("220 localhost ESMTP").await?;
    say_hello(&mut client).await?;
    Ok(client)
}

/// Says EHLO, and returns what is offered.
async fn say_hello(client: &mut Conversation) -> Result<Vec<String>> {
    client.say("EHLO client.example.org").await?;
    let mut offered = Vec::new();
    loop {
        let line = client.line().await?;
        anyhow::ensure!(line.starts_with("250"), "{line}");
        offered.push(line[4..].to_owned());
        if line.starts_with("250 ") {
            return Ok(offered);
        }
    }
}

/// PLAIN with its response, as an account of the domain.
fn plain(local: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{local}@{DOMAIN}\0{password}")))
}

/// A client that has logged in as an account of the domain.
async fn log_in(node: &LoginNode, local: &str) -> Result<Conversation> {
    let mut client = come(node).await?;
    client.say(&plain(local, "secret")).await?;
    client.expect(YES).await?;
    Ok(client)
}

/// What `ann` hears, and that she may go on with us afterwards.
async fn refused(node: &LoginNode) -> Result<String> {
    let mut client = come(node).await?;
    client.say(&plain("ann", "secret")).await?;
    let said = client.line().await?;
    client.say("RSET").await?;
    client.expect("250 2.0.0 Ok").await?;
    Ok(said)
}

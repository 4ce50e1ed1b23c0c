//! What the gateway finds out about senders, with a name server of its own; and what of it reaches the owner.

mod dns;
mod edge;
mod signatures;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use mx_gateway::authentication::{Authenticator, Findings, Subject};
use mx_gateway::body::{Body, Limits, Memory, Message};
use shared::address::Domain;
use shared::config::{AuthenticationConfig, Enforcement, EnforcementMode};
use shared::smtp::path::ReversePath;
use tests::dns_zone::DnsZone;

/// The client in tests without sockets.
const CLIENT: &str = "192.0.2.1";
/// How long what is known may take to be found out, at most.
const LONG: Duration = Duration::from_secs(60);

/// A name server, and an authenticator that asks it.
struct Desk {
    zone: DnsZone,
    authenticator: Authenticator,
}

impl Desk {
    async fn set() -> Result<Self> {
        Self::set_with(|_| ()).await
    }

    async fn set_with(change: impl FnOnce(&mut AuthenticationConfig)) -> Result<Self> {
        let zone = DnsZone::start().await?;
        let authenticator = authenticator(&zone, change)?;
        Ok(Self { zone, authenticator })
    }

    /// What is found out about a message.
    async fn look(&self, client: &str, helo: &str, from: &str, text: &str) -> Result<Findings> {
        let message = kept(text.as_bytes()).await;
        let from = match from {
            "" => ReversePath::Null,
            mailbox => ReversePath::Mailbox(mailbox.into()),
        };
        let (client, ours): (IpAddr, _) = (client.parse()?, domain("example.org"));
        let (recipients, message) = (vec![&ours], &message);
        let subject = Subject { client, helo, from: &from, recipients, message };
        Ok(self.authenticator.examine(subject).await)
    }

    /// What is found out about a message from [`CLIENT`], `mail.example.com`.
    async fn look_at(&self, from: &str, text: &str) -> Result<Findings> {
        self.look(CLIENT, "mail.example.com", from, text).await
    }
}

fn authenticator(
    zone: &DnsZone,
    change: impl FnOnce(&mut AuthenticationConfig),
) -> Result<Authenticator> {
    let name = domain("mx.example.org");
    let mut config = AuthenticationConfig {
        name: name.clone(),
        time_limit: LONG,
        name_servers: vec![zone.address],
        enforcement: Enforcement::default(),
        max_signatures: 8,
        max_verified_size: 25 * 1024 * 1024,
        arc_seal: None,
    };
    change(&mut config);
    Ok(Authenticator::new(&config, &name)?)
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

/// Mail to `example.org` is refused, or marked, if its author's domain wishes it.
fn enforce(config: &mut AuthenticationConfig, mode: EnforcementMode) {
    config.enforcement =
        Enforcement::new([(domain("example.org"), mode)].into(), EnforcementMode::Off);
}

/// A message as if it had been received.
async fn kept(text: &[u8]) -> Message {
    let memory = Memory::new(100 * 1024 * 1024);
    let directory = std::env::temp_dir();
    let (max_size, in_memory) = (100 * 1024 * 1024, 100 * 1024 * 1024);
    let mut body =
        Body::new(Limits { max_size, in_memory, memory: Arc::clone(&memory), directory });
    body.append(text.to_vec()).await;
    body.finish().unwrap()
}

/// The results of a header, one each, unfolded.
fn results(header: &str) -> Vec<String> {
    let unfolded = header.replace("\r\n\t  ", " ").replace("\r\n\t", " ");
    let ours = unfolded.lines().find(|line| line.starts_with("Authentication-Results: "));
    let (_, results) = ours.unwrap().split_once("; ").unwrap();
    results.split("; ").map(str::to_owned).collect()
}

/// The only result of a method, or the one with a property.
fn result(findings: &Findings, words: &str) -> String {
    let (method, property) = words.split_once(' ').unwrap_or((words, ""));
    let all = results(&findings.header);
    let mut found = all
        .iter()
        .filter(|result| result.starts_with(&format!("{method}=")) && result.contains(property));
    let only = found.next().unwrap_or_else(|| panic!("no {words} in {all:?}")).clone();
    assert_eq!(found.next(), None, "{words} in {all:?}");
    only
}

/// A message of this author's.
fn letter(from: &str) -> String {
    format!(
        "From: {from}\r\nTo: ann@example.org\r\nSubject: hello\r\n\
         Date: Thu, 01 Jan 2026 12:00:00 +0000\r\n\r\nHello Ann,\r\n\r\n  how are you?\r\n"
    )
}

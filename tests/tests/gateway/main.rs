//! The gateway between real sockets: senders on one side, small SMTP and LMTP servers with manners of
//! their own on the other, and an owner map that the tests write to.

mod authentication;
mod chats;
mod chunks;
mod clients;
mod content;
mod edge;
mod faults;
mod fingerprints;
mod flips;
mod front;
mod grace;
mod health;
mod identity;
mod internal;
mod legs;
mod lookups;
mod mail_log;
mod outcomes;
mod queue;
mod routing;
mod tls;

use anyhow::{Result, ensure};
use tests::gateway_node::GatewayNode;
use tests::sink::{Manners, Sink};
use tests::smtp::{self, Reply, Smtp};

const SENDER: &str = "Bob.Sender@example.com";
const ANN: &str = "ann@example.org";
const BEN: &str = "ben@example.org";
const NED: &str = "ned@example.org";

/// Two backends, `old` and `new`, and a node at which `ann` and `ben` live on `old`, `ned` on `new`.
struct Stage {
    old: Sink,
    new: Sink,
    node: GatewayNode,
}

impl Stage {
    async fn set() -> Result<Self> {
        Self::set_with(Manners::default(), Manners::default()).await
    }

    async fn set_with(old: Manners, new: Manners) -> Result<Self> {
        let (old, new) = (Sink::start("old", old).await?, Sink::start("new", new).await?);
        let node = GatewayNode::start([old.configured(), new.configured()])?;
        populate(&node);
        Ok(Self { old, new, node })
    }

    /// Sends one message on a connection of its own.
    async fn send(&self, to: &[&str]) -> Result<Reply> {
        smtp::send(self.node.address, SENDER, to, &smtp::message("hello")).await
    }

    /// A client in the middle of a transaction with these recipients.
    async fn envelope(&self, to: &[&str]) -> Result<Smtp> {
        envelope(&self.node, to).await
    }
}

fn populate(node: &GatewayNode) {
    node.set_owner("ann", "old");
    node.set_owner("ben", "old");
    node.set_owner("ned", "new");
}

/// A client in the middle of a transaction with these recipients, all accepted.
async fn envelope(node: &GatewayNode, to: &[&str]) -> Result<Smtp> {
    let mut client = node.connect().await?;
    good(&mut client, "EHLO client.example.com").await?;
    good(&mut client, &format!("MAIL FROM:<{SENDER}>")).await?;
    for to in to {
        good(&mut client, &format!("RCPT TO:<{to}>")).await?;
    }
    Ok(client)
}

/// A command that must be taken.
async fn good(client: &mut Smtp, line: &str) -> Result<Reply> {
    let reply = client.command(line).await?;
    ensure!(reply.is_positive(), "{line}: {reply}");
    Ok(reply)
}

/// DATA and a small message, without waiting for the verdict.
async fn say_message(client: &mut Smtp) -> Result<()> {
    good(client, "DATA").await?;
    client.conversation.send(b"Subject: x\r\n\r\nhello\r\n.\r\n").await
}

/// DATA, a small message, and its verdict.
async fn message(client: &mut Smtp) -> Result<Reply> {
    say_message(client).await?;
    client.reply().await
}

/// A node with one backend, `old`, where `ann` and `ben` live.
async fn alone(manners: Manners) -> Result<(Sink, GatewayNode)> {
    let old = Sink::start("old", manners).await?;
    let node = GatewayNode::start([old.configured()])?;
    node.set_owner("ann", "old");
    node.set_owner("ben", "old");
    Ok((old, node))
}

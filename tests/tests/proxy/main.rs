//! The login proxy between real sockets: clients on one side, small servers with manners of their
//! own on the other, and an owner map that the tests write to.

mod any_octets;
mod attacks;
mod backend_faults;
mod backend_forms;
mod chats;
mod client_faults;
mod command_line;
mod flips;
mod forbidden;
mod forwarded;
mod guess_log;
mod guesses;
mod health;
mod holds;
mod hostile;
mod managesieve;
mod mechanisms;
mod memory;
mod names;
mod offers;
mod pipelining;
mod pop3;
mod reasons;
mod resumption;
mod routing;
mod secrets;
mod submission;
mod tls;

use anyhow::Result;
use shared::backend::Backend;
use tests::login_backend::{LoginBackend, Manners};
use tests::login_node::{LoginNode, Settings};

/// Two backends, `old` and `new`, and a node at which `ann` and `bob` live on `old`.
struct Stage {
    old: LoginBackend,
    new: LoginBackend,
    node: LoginNode,
}

impl Stage {
    async fn set() -> Result<Self> {
        Self::set_with(Manners::default(), Manners::default()).await
    }

    async fn set_with(old: Manners, new: Manners) -> Result<Self> {
        let settings = speaking(&old);
        let (old, new) = two(old, new).await?;
        let node = LoginNode::start_with(configured(&old, &new), settings)?;
        node.set_owner("ann", "old");
        node.set_owner("bob", "old");
        Ok(Self { old, new, node })
    }
}

fn speaking(manners: &Manners) -> Settings {
    Settings { protocol: manners.protocol, ..Settings::default() }
}

async fn two(old: Manners, new: Manners) -> Result<(LoginBackend, LoginBackend)> {
    Ok((LoginBackend::start("old", old).await?, LoginBackend::start("new", new).await?))
}

fn configured(old: &LoginBackend, new: &LoginBackend) -> [Backend; 2] {
    [old.configured(), new.configured()]
}

/// A node with one backend, `old`, where `ann` lives.
async fn alone(manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let settings = speaking(&manners);
    let old = LoginBackend::start("old", manners).await?;
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

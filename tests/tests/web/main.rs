//! HTTP through the login proxy between real sockets: clients that say exactly what they are told, backends
//! that keep every octet, and an owner map that the tests write to.

mod bodies;
mod flips;
mod heads;
mod http2;
mod lab;
mod refusals;
mod routing;
mod smuggling;
mod streams;

use anyhow::Result;
use tests::login_backend::PASSWORD;
use tests::web_backend::{Manners, WebBackend};
use tests::web_node::{WebNode, rules};

/// Two backends, `old` and `new`, and a node at which `ann` and `bob` live on `old`.
struct Stage {
    old: WebBackend,
    new: WebBackend,
    node: WebNode,
}

impl Stage {
    async fn set() -> Result<Self> {
        Self::set_with(rules(), Manners::default()).await
    }

    async fn set_with(rules: shared::config::LoginConfig, manners: Manners) -> Result<Self> {
        let old = WebBackend::start("old", manners.clone()).await?;
        let new = WebBackend::start("new", manners).await?;
        let node = WebNode::start([old.configured(), new.configured()], rules, None)?;
        node.set_owner("ann", "old");
        node.set_owner("bob", "old");
        Ok(Self { old, new, node })
    }
}

/// A request with a body, by somebody with the right password.
fn post(path: &str, local: &str, fields: &str, body: &str) -> String {
    let authorization = tests::web_node::basic(local, PASSWORD);
    format!("POST {path} HTTP/1.1\nHost: mail.example.org\n{authorization}\n{fields}\n{body}")
}

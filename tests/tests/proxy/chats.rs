//! `tests/chats/{imap,…}`: conversations before login, played against the bare front, cut at every octet,
//! and over sockets against a node with its backend.

use std::sync::Arc;

use anyhow::{Context, Result};
use login_proxy::backend::Welcome;
use login_proxy::front::{Event, Front, Terms};
use login_proxy::protocol::{self, Protocol};
use login_proxy::refusal::Refusal;
use shared::address::Domain;
use shared::backend::LoginProtocol;
use shared::dialogue::Output;
use tests::chat::{Octets, Prompter, Script, escape};
use tests::login_backend::{LoginBackend, Manners, PASSWORD};
use tests::login_node::{LoginNode, Settings};
use tests::test_ca::{TestCa, server_name};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const HOST: &str = "localhost";

fn scripts(protocol: LoginProtocol) -> Result<Vec<Script>> {
    Script::all(format!("{}/chats/{protocol}", env!("CARGO_MANIFEST_DIR")))
}

/// From where a script's client comes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// TLS from the first octet.
    Tls,
    /// From another host, with STARTTLS to be had.
    Remote,
    /// From this host, likewise.
    Local,
}

fn scene(with: &[String]) -> Option<Scene> {
    match with {
        [word] => match word.as_str() {
            "tls" => Some(Scene::Tls),
            "remote" => Some(Scene::Remote),
            "local" => Some(Scene::Local),
            _ => None,
        },
        _ => None,
    }
}

/// Stands in for the driver: `ann` and `bob` have [`PASSWORD`], `carl` is nobody's for now.
struct Driver(&'static Protocol);

impl Prompter for Driver {
    type Dialogue = Box<dyn Front>;

    fn start(&mut self, with: &[String], output: &mut Output) -> Box<dyn Front> {
        let scene = scene(with).expect("one of tls, remote, local");
        let offer = (self.0.modest)();
        let mut front = (self.0.front)(Terms {
            hostname: Domain::localhost(),
            capabilities: offer.capabilities,
            mechanisms: offer.mechanisms,
            secured: scene == Scene::Tls,
            starttls: scene != Scene::Tls,
            plaintext: scene == Scene::Local,
            trusted: false,
        });
        front.greet(output);
        front
    }

    fn describe(&mut self, event: &Event) -> Option<String> {
        let Event::Credentials(event) = event else { return Some(format!("{event:?}")) };
        let name = escape(&event.authcid);
        Some(match &event.authzid {
            Some(mailbox) => format!("Credentials({name} for {})", escape(mailbox)),
            None => format!("Credentials({name})"),
        })
    }

    fn answer(
        &mut self,
        front: &mut Box<dyn Front>,
        event: Event,
        _: Option<&str>,
        output: &mut Output,
    ) {
        let Event::Credentials(event) = event else { return };
        let right =
            event.password().is_some_and(|password| password.expose() == PASSWORD.as_bytes());
        match event.mailbox() {
            b"ann@example.org" | b"bob@example.org" if right => {
                let capabilities = format!("{} IDLE", Manners::default().capabilities);
                front.welcome(&Welcome { capabilities, ..Welcome::default() }, output);
            }
            b"carl@example.org" => front.refuse(Refusal::Unavailable, output),
            _ => front.refuse(Refusal::BadCredentials, output),
        }
    }
}

#[test]
fn every_conversation_goes_as_written_wherever_it_is_cut() -> Result<()> {
    for protocol in LoginProtocol::ALL {
        for script in scripts(protocol)? {
            script.play(&mut Driver(protocol::of(protocol)))?;
        }
    }
    Ok(())
}

/// Nodes that clients come to in each scene.
struct Nodes {
    _old: LoginBackend,
    tls: LoginNode,
    clear: LoginNode,
    connector: TlsConnector,
}

impl Nodes {
    async fn start(protocol: LoginProtocol) -> Result<Self> {
        let ca = TestCa::new()?;
        let old = LoginBackend::start("old", Manners::of(protocol)).await?;
        let tls = Some(Arc::clone(ca.issue(HOST)?.acceptor()?.config()));
        let node = |implicit_tls: bool| -> Result<LoginNode> {
            let tls = tls.clone();
            let proxied = !implicit_tls;
            let settings = Settings { protocol, tls, implicit_tls, proxied, ..Settings::default() };
            let node = LoginNode::start_with([old.configured()], settings)?;
            node.set_owner("ann", "old");
            node.set_owner("bob", "old");
            node.set_owner("carl", "no-such-backend");
            Ok(node)
        };
        let (tls, clear) = (node(true)?, node(false)?);
        Ok(Self { _old: old, tls, clear, connector: ca.connector()? })
    }

    async fn come(&self, scene: Scene) -> Result<Box<dyn Octets>> {
        let header = match scene {
            Scene::Tls => {
                return self.secure(Box::new(TcpStream::connect(self.tls.address).await?)).await;
            }
            Scene::Remote => "PROXY TCP4 192.0.2.7 192.0.2.1 40000 143\r\n",
            Scene::Local => "PROXY TCP4 127.0.0.1 127.0.0.1 40000 143\r\n",
        };
        let mut stream = TcpStream::connect(self.clear.address).await?;
        stream.write_all(header.as_bytes()).await?;
        Ok(Box::new(stream))
    }

    async fn secure(&self, stream: Box<dyn Octets>) -> Result<Box<dyn Octets>> {
        Ok(Box::new(self.connector.connect(server_name(HOST)?, stream).await?))
    }
}

#[tokio::test]
async fn every_conversation_goes_as_written_over_sockets() -> Result<()> {
    for protocol in LoginProtocol::ALL {
        let nodes = Nodes::start(protocol).await?;
        for script in scripts(protocol)? {
            let scene = scene(script.with()).with_context(|| script.name().to_owned())?;
            let stream = nodes.come(scene).await?;
            script.play_over(stream, async |stream| nodes.secure(stream).await).await?;
        }
    }
    Ok(())
}

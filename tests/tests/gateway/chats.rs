//! `tests/chats/smtp`: conversations with senders, played against the bare session, cut at every octet,
//! and over sockets against a node with its owners.

use std::sync::Arc;

use anyhow::{Context, Result};
use mx_gateway::refusal;
use mx_gateway::session::{Event, Protocol, Session, Terms};
use shared::address::Address;
use shared::config::MxKind;
use shared::dialogue::Output;
use shared::ownership::Refusal;
use shared::smtp::command::Rcpt;
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::Reply;
use tests::chat::{Octets, Prompter, Script, escape};
use tests::gateway_node::Settings;
use tests::sink::{Answer, Manners, Sink};
use tests::test_ca::{TestCa, server_name};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

const HOST: &str = "mx.example.org";

fn scripts() -> Result<Vec<Script>> {
    Script::all(concat!(env!("CARGO_MANIFEST_DIR"), "/chats/smtp"))
}

/// Where a conversation takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// SMTP without TLS.
    Clear,
    /// SMTP with STARTTLS.
    StartTls,
    /// LMTP.
    Lmtp,
    /// SMTP with a client that may say who its client is.
    Trusted,
}

impl Scene {
    fn of(script: &[String]) -> Option<Self> {
        let words: Vec<&str> = script.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["clear"] => Some(Self::Clear),
            ["starttls"] => Some(Self::StartTls),
            ["clear", "lmtp"] => Some(Self::Lmtp),
            ["clear", "trusted"] => Some(Self::Trusted),
            _ => None,
        }
    }
}

/// Stands in for the driver: ann, ben and the postmaster have an owner who takes everything.
#[derive(Default)]
struct Driver {
    content: Vec<u8>,
}

impl Driver {
    fn rcpt(path: &ForwardPath) -> Reply {
        let ForwardPath::Mailbox(to) = path else {
            return Reply::new(250, (1, 5), "Recipient ok");
        };
        let account = || "x@example.org".into();
        let by_table = |why: &Refusal| refusal::by_table(why, to);
        if to.domain().as_str() != "example.org" || to.local().contains(['%', '!', '@']) {
            return refusal::relaying(to);
        }
        match to.local().to_lowercase().as_str() {
            "ann" | "ben" => Reply::new(250, (1, 5), "Recipient ok"),
            "carl" => by_table(&Refusal::UnknownBackend { account: account(), owner: "x".into() }),
            "held" => by_table(&Refusal::Held { account: account() }),
            _ => by_table(&Refusal::NoSuchAccount),
        }
    }
}

impl Prompter for Driver {
    type Dialogue = Session;

    fn start(&mut self, with: &[String], output: &mut Output) -> Session {
        self.content.clear();
        let scene = Scene::of(with).expect("a scene");
        let terms = Terms {
            hostname: HOST.into(),
            max_size: Settings::default().rules.max_message_size,
            starttls: scene == Scene::StartTls,
            protocol: if scene == Scene::Lmtp { Protocol::Lmtp } else { Protocol::Smtp },
            dsn: false,
            smtputf8: false,
            chunking: true,
            trusted: scene == Scene::Trusted,
        };
        let mut session = Session::new(terms, false);
        session.greet(false, output);
        session
    }

    fn describe(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Mail(mail) => {
                let size = mail.size.map(|size| format!(" SIZE={size}")).unwrap_or_default();
                format!(
                    "Mail({}{size}{})",
                    mail.from,
                    if mail.eight_bit { " 8BITMIME" } else { "" }
                )
            }
            Event::Rcpt(Rcpt { path, notify, orcpt }) => {
                let to = match path {
                    ForwardPath::Mailbox(to) => to.to_string(),
                    ForwardPath::Postmaster => "postmaster".to_owned(),
                };
                let notify = notify.as_ref().map(|n| format!(" NOTIFY={n}")).unwrap_or_default();
                let orcpt = orcpt.as_ref().map(|o| format!(" ORCPT={o}")).unwrap_or_default();
                format!("Rcpt(<{to}>{notify}{orcpt})")
            }
            Event::EndOfData { flawed: true } => "EndOfData(flawed)".to_owned(),
            Event::EndOfData { flawed: false } => format!("EndOfData({})", escape(&self.content)),
            Event::Xclient(told) => format!("Xclient({})", told.client_ip?),
            Event::Data | Event::Body(_) | Event::Reset => return None,
        })
    }

    fn answer(
        &mut self,
        session: &mut Session,
        event: Event,
        _: Option<&str>,
        output: &mut Output,
    ) {
        let reply = match event {
            Event::Mail(_) => Reply::new(250, (1, 0), "Sender ok"),
            Event::Rcpt(rcpt) => Self::rcpt(&rcpt.path),
            Event::Data => Reply::bare(354, "End data with <CR><LF>.<CR><LF>"),
            Event::Body(octets) => return self.content.extend(octets),
            Event::EndOfData { flawed } => {
                self.content.clear();
                if flawed {
                    Reply::new(550, (6, 0), "Lone CR, or LF before a dot, in the message")
                } else {
                    Reply::new(250, (0, 0), "Ok, delivered as id")
                }
            }
            Event::Xclient(_) => return session.begin_anew(false, output),
            Event::Reset => return self.content.clear(),
        };
        session.answer(&reply, output);
    }
}

#[test]
fn every_conversation_goes_as_written_wherever_it_is_cut() -> Result<()> {
    for script in scripts()? {
        script.play(&mut Driver::default())?;
    }
    Ok(())
}

/// A node for each scene.
struct Nodes {
    _old: Sink,
    clear: GatewayNode,
    starttls: GatewayNode,
    lmtp: GatewayNode,
    trusted: GatewayNode,
    connector: TlsConnector,
}

impl Nodes {
    async fn start() -> Result<Self> {
        let ca = TestCa::new()?;
        let unknown = Answer::Say("550 5.1.1 unknown");
        let old = Sink::start("old", Manners::default().but("RCPT TO:<gone@", unknown)).await?;
        let tls = Arc::clone(ca.issue(HOST)?.acceptor()?.config());
        let node = |scene| -> Result<GatewayNode> {
            let mut settings = Settings::default();
            match scene {
                Scene::Clear => {}
                Scene::StartTls => settings.tls = Some(Arc::clone(&tls)),
                Scene::Lmtp => settings.kind = MxKind::Lmtp,
                Scene::Trusted => settings.rules.trusted_networks = vec!["127.0.0.0/8".parse()?],
            }
            settings.rules.postmaster = Some(Address::parse(ANN)?);
            let node = GatewayNode::start_with([old.configured()], settings)?;
            node.set_domain(Some("old"));
            node.set_owner("ann", "old");
            node.set_owner("carl", "no-such-backend");
            node.hold("held", "old");
            Ok(node)
        };
        Ok(Self {
            clear: node(Scene::Clear)?,
            starttls: node(Scene::StartTls)?,
            lmtp: node(Scene::Lmtp)?,
            trusted: node(Scene::Trusted)?,
            connector: ca.connector()?,
            _old: old,
        })
    }

    async fn secure(&self, stream: Box<dyn Octets>) -> Result<Box<dyn Octets>> {
        Ok(Box::new(self.connector.connect(server_name(HOST)?, stream).await?))
    }
}

#[tokio::test]
async fn every_conversation_goes_as_written_over_sockets() -> Result<()> {
    let nodes = Nodes::start().await?;
    for script in scripts()? {
        let node = match Scene::of(script.with()).with_context(|| script.name().to_owned())? {
            Scene::Clear => &nodes.clear,
            Scene::StartTls => &nodes.starttls,
            Scene::Lmtp => &nodes.lmtp,
            Scene::Trusted => &nodes.trusted,
        };
        let stream = Box::new(TcpStream::connect(node.address).await?);
        script.play_over(stream, async |stream| nodes.secure(stream).await).await?;
    }
    Ok(())
}

//! Mail programs as people use them, through real servers (LOG-15): each logs in at the old server, the
//! account moves, and the program's next login is at the new one, with nothing changed on its side.

mod cyrus;
mod identity;
mod imap;
mod mechanisms;
mod pop3;
mod sieve;
mod submission;

use std::net::SocketAddr;

use tests::dovecot::{self, Full};
use tests::imap::Imap;
use tests::lab::{ACCOUNTS, Lab};
use tests::node::Node;
use tests::program::{Home, Program};
use tests::sink::{Manners, Sink};
use tests::table::{Engine, Table};

use crate::ANN;

/// The name that programs know the login proxy by.
const HOST: &str = "localhost";
/// Every account's.
const PASSWORD: &str = "secret";
/// Somebody who may open every mailbox.
const MASTER: (&str, &str) = ("admin", "master-secret");
/// Sessions and deliveries by Python's own modules.
const PYTHON: &str = include_str!("clients/session.py");

/// Puts a message for ann that says where it is.
async fn mark(imap: SocketAddr, name: &str) {
    let text = tests::smtp::message(&format!("at {name}"));
    let mut imap = Imap::connect(imap).await.unwrap();
    imap.log_in(ANN, PASSWORD).await.unwrap();
    let append = format!("APPEND INBOX {{{}+}}\r\n{text}", text.len());
    assert!(imap.command(&append).await.unwrap().is_ok());
}

/// Two whole mail servers, the proxy before them, and somebody's home.
struct Provider {
    lab: Lab,
    node: Node,
    home: Home,
    /// Where the servers relay what is submitted, old first.
    relays: [Sink; 2],
    ca: String,
}

impl Provider {
    /// Each server has one message for ann, which says where it is.
    async fn start() -> Self {
        let mut relays = Vec::new();
        for name in ["old", "new"] {
            relays.push(Sink::start(name, Manners::default()).await.unwrap());
        }
        let relays: [Sink; 2] = relays.try_into().unwrap();
        let options = |relay: &Sink| dovecot::Options {
            full: Some(Full {
                relay: relay.address,
                masters: vec![(MASTER.0.to_owned(), MASTER.1.to_owned())],
            }),
            ..dovecot::Options::with_users(ACCOUNTS)
        };
        let table = Table::create(Engine::Sqlite).unwrap();
        let servers = [options(&relays[0]), options(&relays[1])];
        let lab = Lab::with_servers(table, servers).await.unwrap();
        for server in [&lab.old, &lab.new] {
            mark(server.imap(), server.name()).await;
        }
        let node = lab.node("node1").await.unwrap();
        let ca = lab.ca.file().to_string_lossy().into_owned();
        Self { lab, node, home: Home::new().unwrap(), relays, ca }
    }

    /// Moves ann.
    async fn flip(&self) {
        self.lab.table.flip(ANN, "new").unwrap();
        self.lab.table.settled(ANN).await.unwrap();
    }

    fn port(&self, listener: &str) -> u16 {
        self.node.listener(listener).port()
    }

    async fn run(&self, command: &[&str]) -> String {
        self.home.run(command, "").await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts a session of Python's own modules: it says where it is, waits for the session's end, comes
    /// again and says where it is then.
    async fn python(&self, listener: &str, user: &str, secret: &str, mechanism: &str) -> Program {
        let program = self.home.write("session.py", PYTHON).unwrap();
        let port = self.port(listener).to_string();
        let command = ["python3", &program, listener, &port, &self.ca, user, secret, mechanism];
        self.home.start(&command, "").await.unwrap()
    }

    /// A session of Python's that the flip ends, and that is at the new server then.
    async fn python_follows(&self, listener: &str, user: &str, secret: &str, mechanism: &str) {
        let mut session = self.python(listener, user, secret, mechanism).await;
        session.says("at old").await.unwrap();
        self.flip().await;
        session.says("at new").await.unwrap();
        session.finished().await.unwrap();
    }
}

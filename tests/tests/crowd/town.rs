//! Two whole mail servers, two nodes before them, and many people who are logged in by all protocols.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tests::dovecot::{self, Dovecot, Full};
use tests::imap::Imap;
use tests::node::{self, Node};
use tests::patience::until;
use tests::session::{Login, Protocol, Session};
use tests::sink::{Manners, Sink};
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;

use crate::ledger::Ledger;

/// The nodes' names; the ledger knows them, too.
pub const NODES: [&str; 2] = ["node1", "node2"];

/// Where people log in, and what may be true of them.
#[derive(Debug)]
pub struct Streets {
    /// Everybody.
    pub accounts: Vec<String>,
    /// What may be true of them and of the nodes.
    pub ledger: Ledger,
    doors: Vec<[SocketAddr; 4]>,
}

/// Everything together.
pub struct Town {
    /// What traffic needs of it.
    pub streets: Arc<Streets>,
    /// Who owns what.
    pub table: Table,
    /// The nodes.
    pub nodes: [Node; 2],
    old: Dovecot,
    new: Dovecot,
    residents: Vec<Resident>,
    _relays: [Sink; 2],
}

/// Somebody's open session.
struct Resident {
    account: String,
    protocol: Protocol,
    node: usize,
    session: Session,
}

impl Streets {
    /// Where a node speaks a protocol.
    pub fn address(&self, node: usize, protocol: Protocol) -> SocketAddr {
        let doors = self.doors[node];
        doors[Protocol::ALL.iter().position(|known| *known == protocol).unwrap_or(0)]
    }
}

impl Town {
    /// A town of so many people on this table, each at `old` and with a session by every protocol at every
    /// node. `ownership` is more keys of the nodes' section.
    pub async fn build(table: Table, people: usize, ownership: &str) -> Self {
        let accounts: Vec<String> = (0..people).map(|n| format!("user{n}@example.org")).collect();
        let relays = [
            Sink::start("old", Manners::default()).await.unwrap(),
            Sink::start("new", Manners::default()).await.unwrap(),
        ];
        let server = async |name: &str, relay: &Sink| {
            let options = dovecot::Options {
                full: Some(Full { relay: relay.address, masters: Vec::new() }),
                ..dovecot::Options::with_users(accounts.iter().map(String::as_str))
            };
            let server = Dovecot::start(name, options).await.unwrap();
            for account in &accounts {
                mark(&server, account).await;
            }
            server
        };
        let (old, new) = (server("old", &relays[0]).await, server("new", &relays[1]).await);
        let rows: Vec<String> = accounts.iter().map(|name| format!("('{name}', 'old')")).collect();
        let rows = rows.join(", ");
        table
            .sql(&format!(
                "INSERT INTO domains (domain) VALUES ('example.org');
                 INSERT INTO accounts (account, owner) VALUES {rows};"
            ))
            .unwrap();
        let ca = TestCa::new().unwrap();
        let options = |name: &str| node::Options {
            name: name.to_owned(),
            url: table.url(),
            backends: node::dovecot("old", &old) + &node::dovecot("new", &new),
            every_protocol: true,
            ownership: ownership.to_owned(),
            ..node::Options::default()
        };
        let nodes = [
            Node::start(&options(NODES[0]), &ca).await.unwrap(),
            Node::start(&options(NODES[1]), &ca).await.unwrap(),
        ];
        let doors = nodes.iter().map(|node| Protocol::ALL.map(|p| node.listener(p.listener())));
        let doors = doors.collect();
        let streets = Arc::new(Streets { accounts, ledger: Ledger::default(), doors });
        for account in &streets.accounts {
            streets.ledger.begin(account, "old");
            streets.ledger.settle(account);
        }
        let mut town =
            Self { streets, table, nodes, old, new, residents: Vec::new(), _relays: relays };
        town.move_in().await;
        // Else it would say nothing that a server has no session of somebody.
        assert_eq!(town.old.sessions().unwrap().len(), town.residents());
        town
    }

    /// How many sessions are open.
    pub fn residents(&self) -> usize {
        self.residents.len()
    }

    /// Anybody who lives at `owner`.
    pub fn anybody_at(&self, owner: &str) -> String {
        let at = |account: &&String| self.streets.ledger.owner(account) == owner;
        let all: Vec<&String> = self.streets.accounts.iter().filter(at).collect();
        fastrand::choice(all).cloned().expect("somebody lives there")
    }

    /// Moves an account by plain SQL, and waits until that is settled.
    pub async fn move_plainly(&mut self, account: &str, owner: &str) {
        self.streets.ledger.begin(account, owner);
        self.table.flip(account, owner).unwrap();
        self.settled(account).await;
    }

    /// Waits until the newest change of an account is settled: whoever was at its former owner is gone, and
    /// its sessions have ended. Then they come again.
    pub async fn settled(&mut self, account: &str) {
        self.table.settled(account).await.unwrap();
        self.streets.ledger.settle(account);
        self.nobody_left(account).await;
        self.move_in().await;
    }

    /// No session of the account is at the other server, and those that were open have ended.
    async fn nobody_left(&mut self, account: &str) {
        let owner = self.streets.ledger.owner(account);
        let former = if owner == "old" { &self.new } else { &self.old };
        until("the former owner to be left", || {
            (!former.sessions().ok()?.iter().any(|name| name == account)).then_some(())
        })
        .await
        .unwrap();
        for resident in self.residents.extract_if(.., |resident| resident.account == account) {
            let Resident { mut session, node, protocol, .. } = resident;
            session
                .ended()
                .await
                .unwrap_or_else(|e| panic!("{account} {protocol:?} {node}: {e:#}"));
        }
    }

    /// Moves everybody from `old` to `new` in one statement; all sessions end.
    pub async fn move_everybody(&mut self) {
        let streets = Arc::clone(&self.streets);
        let at_old = |r: &mut Resident| streets.ledger.owner(&r.account) == "old";
        let leaving: Vec<Resident> = self.residents.extract_if(.., at_old).collect();
        streets.accounts.iter().for_each(|account| streets.ledger.begin(account, "new"));
        self.table.sql("UPDATE accounts SET owner = 'new' WHERE owner = 'old';").unwrap();
        for account in &streets.accounts {
            self.table.settled(account).await.unwrap();
            streets.ledger.settle(account);
        }
        for mut resident in leaving {
            resident.session.ended().await.unwrap();
        }
        let left = || self.old.sessions().ok()?.is_empty().then_some(());
        until("the old server to be left", left).await.unwrap();
        self.move_in().await;
    }

    /// Everybody who has no session by a protocol at a node logs in.
    pub async fn move_in(&mut self) {
        let streets = Arc::clone(&self.streets);
        for account in &streets.accounts {
            for (node, protocol) in
                (0..NODES.len()).flat_map(|n| Protocol::ALL.map(|protocol| (n, protocol)))
            {
                let is_in = |r: &Resident| {
                    r.account == *account && r.node == node && r.protocol == protocol
                };
                if self.residents.iter().any(is_in) {
                    continue;
                }
                let address = streets.address(node, protocol);
                let Login::Joined(mut session) =
                    Session::log_in(protocol, address, account).await.unwrap()
                else {
                    panic!("{account} by {protocol:?} at {} was refused", NODES[node])
                };
                let server = session.server().await.unwrap();
                assert_eq!(server, streets.ledger.owner(account), "{account} {protocol:?}");
                self.residents.push(Resident { account: account.clone(), protocol, node, session });
            }
        }
    }

    /// Every open session still answers, from where its account lives.
    pub async fn everybody_is_home(&mut self) {
        for Resident { account, protocol, node, session } in &mut self.residents {
            let server = session.server().await;
            let server = server.unwrap_or_else(|e| panic!("{account} {protocol:?} {node}: {e:#}"));
            assert_eq!(server, self.streets.ledger.owner(account), "{account} {protocol:?}");
        }
    }

    /// Waits until a node lets somebody in.
    pub async fn is_served_again(&self, node: usize) {
        let (somebody, protocol) = (&self.streets.accounts[0], Protocol::Imap);
        let address = self.streets.address(node, protocol);
        for _ in 0..300 {
            match Session::log_in(protocol, address, somebody).await.unwrap() {
                Login::Joined(_) => return,
                Login::Refused(words) => assert!(protocol.is_temporary(&words), "{words}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} serves nobody", NODES[node]);
    }

    /// Every session at a node ends.
    pub async fn everybody_leaves(&mut self, node: usize) {
        for mut resident in self.residents.extract_if(.., |resident| resident.node == node) {
            resident.session.ended().await.unwrap();
        }
    }
}

/// A message that says where it is.
async fn mark(server: &Dovecot, account: &str) {
    let text = tests::smtp::message(&format!("at {}", server.name()));
    let mut imap = Imap::connect(server.imap()).await.unwrap();
    imap.log_in(account, "secret").await.unwrap();
    let append = format!("APPEND INBOX {{{}+}}\r\n{text}", text.len());
    assert!(imap.command(&append).await.unwrap().is_ok());
}

/// A table of its own kind for a town.
pub fn table() -> Table {
    Table::create(Engine::Postgres).unwrap()
}

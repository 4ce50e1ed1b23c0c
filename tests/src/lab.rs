//! What most end-to-end tests start from: two Dovecots that know the same accounts, `old` and `new`, and a
//! table in which everything lives at `old`.

use anyhow::Result;

use crate::dovecot::{self, Dovecot};
use crate::node::{self, Node};
use crate::table::{Engine, Table};
use crate::test_ca::TestCa;
use crate::user::User;

/// The accounts that both servers know, all with the password `secret`.
pub const ACCOUNTS: [&str; 4] =
    ["ann@example.org", "bob@example.org", "cat@example.org", "dan@example.org"];

/// Two mail systems and a table.
#[derive(Debug)]
pub struct Lab {
    /// The authority of all certificates.
    pub ca: TestCa,
    /// The old server.
    pub old: Dovecot,
    /// The new server.
    pub new: Dovecot,
    /// Who owns what.
    pub table: Table,
}

impl Lab {
    /// Starts the servers and fills the table.
    ///
    /// # Errors
    ///
    /// Something does not start; the message says what is missing.
    pub async fn start(engine: Engine) -> Result<Self> {
        Self::with_table(Table::create(engine)?).await
    }

    /// The same with a table in a file of `user`'s. Wants root.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn start_for(user: User) -> Result<Self> {
        Self::with_table(Table::of_user(user)?).await
    }

    /// The same with a table made elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn with_table(table: Table) -> Result<Self> {
        let options = dovecot::Options { gate: true, ..dovecot::Options::with_users(ACCOUNTS) };
        Self::with_servers(table, [options.clone(), options]).await
    }

    /// The same with other servers.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn with_servers(table: Table, servers: [dovecot::Options; 2]) -> Result<Self> {
        let [old, new] = servers;
        let (old, new) = (Dovecot::start("old", old).await?, Dovecot::start("new", new).await?);
        let rows: Vec<String> =
            ACCOUNTS.iter().map(|account| format!("('{account}', 'old')")).collect();
        table.sql(&format!(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES {};",
            rows.join(", ")
        ))?;
        Ok(Self { ca: TestCa::new()?, old, new, table })
    }

    /// Starts a node on this table.
    ///
    /// # Errors
    ///
    /// A service does not start; the end of its log is in the message.
    pub async fn node(&self, name: &str) -> Result<Node> {
        Node::start(&self.options(name), &self.ca).await
    }

    /// What [`Self::node`] starts, to be changed.
    pub fn options(&self, name: &str) -> node::Options {
        node::Options {
            name: name.to_owned(),
            url: self.table.url(),
            backends: node::dovecot("old", &self.old) + &node::dovecot("new", &self.new),
            every_protocol: self.old.is_full() && self.new.is_full(),
            ..node::Options::default()
        }
    }
}

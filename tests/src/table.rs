//! An ownership table for a test, in either database, and the shells in which operators change it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::node::binary;
use crate::patience::until;
use crate::place::Place;
use crate::postgres::{Database, Server};
use crate::user::{User, as_root};

/// Where the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A private Postgres server.
    Postgres,
    /// A file.
    Sqlite,
}

/// Makes of each scenario, a function of the engine, one test in Postgres and one in SQLite.
#[macro_export]
macro_rules! in_both {
    ($($scenario:ident),+ $(,)?) => {
        mod in_postgres {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario($crate::table::Engine::Postgres).await;
            })+
        }
        mod in_sqlite {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario($crate::table::Engine::Sqlite).await;
            })+
        }
    };
}

/// An ownership table with its schema.
#[derive(Debug)]
pub struct Table {
    store: Store,
}

#[derive(Debug)]
enum Store {
    Shared(&'static Server, Database),
    Own(Box<Server>, Database),
    /// With what has to be put before commands that open it.
    File(Place, &'static [&'static str]),
}

/// What was in a table at one moment.
#[derive(Debug)]
pub enum Backup {
    /// SQL text for psql.
    Dump(String),
    /// A copy of the file.
    File(PathBuf),
}

/// Views over both SQLite files, which `mailshift sql` makes for a session, too.
const VIEWS: &str = include_str!("../../config/schema/sqlite/views.sql");

impl Table {
    /// Makes an empty table.
    ///
    /// # Errors
    ///
    /// The database or `mailshift schema apply` fails; the message says how.
    pub fn create(engine: Engine) -> Result<Self> {
        let store = match engine {
            Engine::Postgres => {
                let server = Server::shared();
                Store::Shared(server, server.create_database()?)
            }
            Engine::Sqlite => {
                let place = Place::new()?;
                place.directory("db", 0o2770, None)?;
                Store::File(place, &[])
            }
        };
        Self::with_schema(store)
    }

    /// Makes an empty table on a Postgres server that the test may stop.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub fn on_own_server() -> Result<Self> {
        let server = Server::start()?;
        let database = server.create_database()?;
        Self::with_schema(Store::Own(Box::new(server), database))
    }

    /// Makes an empty table in a file of `user`'s. Wants root, or `sudo -n`.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub fn of_user(user: User) -> Result<Self> {
        let place = Place::new()?;
        // Setgid: whatever a shell makes in it belongs to the services' group.
        place.directory("db", 0o2770, Some(user))?;
        Self::with_schema(Store::File(place, as_root("a table of another user's")?))
    }

    fn with_schema(store: Store) -> Result<Self> {
        let table = Self { store };
        table.mailshift(&["schema", "apply"])?;
        Ok(table)
    }

    /// As `ownership.url` wants it.
    pub fn url(&self) -> String {
        match &self.store {
            Store::Shared(_, database) | Store::Own(_, database) => database.url.clone(),
            Store::File(..) => format!("sqlite:{}", self.file().display()),
        }
    }

    /// The Postgres server's socket directory, and the database's name.
    ///
    /// # Panics
    ///
    /// The table is in a file.
    pub fn postgres(&self) -> (PathBuf, String) {
        match &self.store {
            Store::Shared(server, database) => (server.socket(), database.name.clone()),
            Store::Own(server, database) => (server.socket(), database.name.clone()),
            Store::File(..) => panic!("a file has no server"),
        }
    }

    /// The SQLite file.
    ///
    /// # Panics
    ///
    /// The table is in Postgres.
    pub fn file(&self) -> PathBuf {
        match &self.store {
            Store::File(place, _) => place.join("db/ownership.db"),
            Store::Shared(..) | Store::Own(..) => panic!("Postgres has no file"),
        }
    }

    /// The server of [`Self::on_own_server`].
    pub fn server(&self) -> Option<&Server> {
        match &self.store {
            Store::Own(server, _) => Some(server),
            Store::Shared(..) | Store::File(..) => None,
        }
    }

    /// Runs statements as an operator does, in `psql` or in the `sqlite3` shell, and returns what it
    /// prints: a line a row, `|` between columns.
    ///
    /// # Errors
    ///
    /// What the shell complains about.
    pub fn sql(&self, statements: &str) -> Result<String> {
        match &self.store {
            Store::Shared(server, database) => server.psql(&database.name, statements),
            Store::Own(server, database) => server.psql(&database.name, statements),
            Store::File(_, before) => sqlite3(before, &self.file(), statements),
        }
        .map(|printed| printed.trim_end().to_owned())
        .with_context(|| statements.chars().take(200).collect::<String>())
    }

    /// Copies the table as it is now.
    ///
    /// # Errors
    ///
    /// What the shell complains about.
    pub fn back_up(&self) -> Result<Backup> {
        match &self.store {
            Store::Shared(server, database) => server.dump(&database.name).map(Backup::Dump),
            Store::Own(server, database) => server.dump(&database.name).map(Backup::Dump),
            Store::File(..) => {
                let file = self.file().with_file_name("backup.db");
                self.sql(&format!(".backup {}", file.display()))?;
                Ok(Backup::File(file))
            }
        }
    }

    /// Puts a copy in the table's place: what was committed since is lost, and `then` has been done to the
    /// copy already. Postgres ends all connections.
    ///
    /// # Errors
    ///
    /// What the shell complains about.
    pub fn restore(&self, backup: &Backup, then: &str) -> Result<()> {
        let (server, name) = match &self.store {
            Store::Shared(server, database) => (*server, &database.name),
            Store::Own(server, database) => (&**server, &database.name),
            Store::File(_, before) => {
                let Backup::File(file) = backup else { bail!("a dump is no file") };
                sqlite3(before, file, then)?;
                return self.sql(&format!(".restore {}", file.display())).map(drop);
            }
        };
        let Backup::Dump(dump) = backup else { bail!("a file is no dump") };
        server.psql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"))?;
        server.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        // At once: nobody is to see half of it.
        let restore = format!("BEGIN;\n{dump}\nSET search_path = public;\n{then}\nCOMMIT;\n");
        server.psql(name, &restore).map(drop)
    }

    /// Gives an account to a backend by the one statement that is the interface.
    ///
    /// # Errors
    ///
    /// What the shell complains about.
    pub fn flip(&self, account: &str, owner: &str) -> Result<()> {
        self.sql(&format!("UPDATE accounts SET owner = '{owner}' WHERE account = '{account}';"))
            .map(drop)
    }

    /// What the view `flip_status` says of an account, columns separated by `|`.
    ///
    /// # Errors
    ///
    /// What the shell complains about.
    pub fn flip_status(&self, account: &str, columns: &str) -> Result<String> {
        let ask = format!("SELECT {columns} FROM flip_status WHERE account = '{account}';");
        match &self.store {
            Store::Shared(..) | Store::Own(..) => self.sql(&ask),
            Store::File(place, _) => {
                let nodes = place.join("db/ownership-nodes.db");
                self.sql(&format!("ATTACH '{}' AS nodes;\n{VIEWS}\n{ask}", nodes.display()))
            }
        }
    }

    /// Waits until every live node has applied the newest change of an account: its older sessions and
    /// deliveries are gone everywhere.
    ///
    /// # Errors
    ///
    /// It does not come to that.
    pub async fn settled(&self, account: &str) -> Result<()> {
        until(&format!("{account} to settle"), || {
            let settled = self.flip_status(account, "CASE WHEN settled THEN 'settled' END");
            settled.ok().filter(|printed| printed == "settled").map(drop)
        })
        .await
    }

    /// Runs the operator's command line on this table and returns what it prints.
    ///
    /// # Errors
    ///
    /// What it complains about.
    pub fn mailshift(&self, arguments: &[&str]) -> Result<String> {
        let before: &[&str] = match &self.store {
            Store::Shared(..) | Store::Own(..) => &[],
            Store::File(_, before) => before,
        };
        let words: Vec<&str> = before.iter().copied().chain(["env"]).collect();
        let (program, first) = words.split_first().context("nothing to run")?;
        let output = Command::new(program)
            .args(first)
            .arg(format!("MAILSHIFT_URL={}", self.url()))
            .arg(binary("mailshift")?)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("mailshift")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mailshift {}: {complaint}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Runs statements in the `sqlite3` shell, started by the command `before` (such as one that changes the
/// user).
///
/// # Errors
///
/// What the shell complains about.
pub fn sqlite3(before: &[&str], file: &Path, statements: &str) -> Result<String> {
    let words: Vec<&str> = before.iter().copied().chain(["sqlite3"]).collect();
    let (program, arguments) = words.split_first().context("nothing to run")?;
    let mut child = Command::new(program)
        .args(arguments)
        .args(["-bail", "-batch", "-cmd", ".timeout 10000"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("no sqlite3 was found: run `tests/deps.sh test`, or install sqlite3")?;
    let input = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.map(|mut pipe| pipe.write_all(statements.as_bytes())));
        child.wait_with_output()
    })?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && complaint.is_empty(), "{complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Locks an SQLite file for writing in a `sqlite3` shell of its own, until something comes by `release`.
///
/// # Errors
///
/// What the shell complains about.
pub fn with_lock(file: &Path, release: std::sync::mpsc::Receiver<()>) -> Result<()> {
    let mut child = Command::new("sqlite3")
        .args(["-bail", "-batch", "-cmd", ".timeout 10000"])
        .arg(file)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("sqlite3")?;
    let mut input = child.stdin.take().context("a pipe was asked for")?;
    input.write_all(b"BEGIN EXCLUSIVE;\n")?;
    // An error only says that the other side has gone.
    let _ = release.recv_timeout(crate::patience::PATIENCE);
    input.write_all(b"ROLLBACK;\n")?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

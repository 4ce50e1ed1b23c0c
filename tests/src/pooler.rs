//! A private pgbouncer before a private Postgres server: it gives each transaction another connection.

use anyhow::{Context, Result};

use crate::children::Child;
use crate::patience::block_until;
use crate::place::Place;
use crate::postgres::Server;
use crate::user::User;

/// A pooler that runs until this value is dropped.
#[derive(Debug)]
pub struct Pooler {
    child: Child,
    place: Place,
}

impl Pooler {
    /// Starts one, with `settings` beside those that every one has.
    ///
    /// # Errors
    ///
    /// There is no pgbouncer, or it does not start; the message says which.
    pub fn start(server: &Server, settings: &str) -> Result<Self> {
        let place = Place::new()?;
        let user = User::unprivileged()?;
        place.directory("socket", 0o755, Some(user))?;
        let (servers, sockets) = (server.socket(), place.join("socket"));
        // One after the other, so that nothing works by luck.
        let file = place.write(
            "pgbouncer.ini",
            &format!(
                "[databases]\n* = host={} port=5432 user=postgres\n\
                 [pgbouncer]\nunix_socket_dir = {}\nlisten_port = 5432\nauth_type = any\n\
                 pool_mode = transaction\ndefault_pool_size = 4\nmin_pool_size = 3\n\
                 server_round_robin = 1\n{settings}\n",
                servers.display(),
                sockets.display(),
            ),
            0o644,
            None,
        )?;
        let file = file.display().to_string();
        let words = user.before_command();
        let as_user: &[String] = if user == User::own() { &[] } else { &words };
        let mut command: Vec<&str> = as_user.iter().map(String::as_str).collect();
        command.extend(["pgbouncer", &file]);
        let child = Child::start(&[], &command, place.path(), "log")?;
        let socket = sockets.join(".s.PGSQL.5432");
        block_until("pgbouncer", || Ok((socket.exists() || !child.is_running()).then_some(())))?;
        let pooler = Self { child, place };
        socket
            .exists()
            .then_some(pooler)
            .with_context(|| "pgbouncer does not run: run `tests/deps.sh test`")
    }

    /// How to connect to a database through it.
    pub fn url(&self, database: &str) -> String {
        let sockets = self.place.join("socket");
        format!("postgres://postgres@localhost/{database}?host={}", sockets.display())
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.child.log()
    }
}

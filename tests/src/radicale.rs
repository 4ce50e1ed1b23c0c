//! A private Radicale: CalDAV and CardDAV on loopback, users from a file, everybody sees what is theirs.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::children::Child;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};

/// What it writes.
const LOG: &str = "radicale.log";
/// The log of a start that failed because the port was taken meanwhile.
const TAKEN: &str = "Address already in use";
/// What it says once the port is its own.
const BOUND: &str = "Listening on";
/// What to do where there is none.
const INSTALL: &str = "no Radicale was found: run `tests/deps.sh test`, or install radicale";
/// Debian's and Ubuntu's, whose interpreter has the modules.
const PROGRAM: &str = "/usr/bin/radicale";

/// A private Radicale server, ended with this value.
#[derive(Debug)]
pub struct Radicale {
    name: String,
    http: SocketAddr,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
}

impl Radicale {
    /// Starts a server whose accounts all have the password `secret`. Its `name` is in the header
    /// `X-Backend` of every answer.
    ///
    /// # Errors
    ///
    /// There is no Radicale, or it does not start; the end of its log is in the message.
    pub async fn start(name: &str, accounts: &[&str]) -> Result<Self> {
        ensure!(fs::exists(PROGRAM)?, INSTALL);
        let place = Place::new()?;
        place.directory("storage", 0o700, None)?;
        let users = accounts.iter().fold(String::new(), |mut text, account| {
            let _ = writeln!(text, "{account}:secret");
            text
        });
        place.write("users", &users, 0o600, None)?;
        let http = ports::reserve_one()?;
        let mut server = Self { name: name.to_owned(), http, child: None, place };
        for _ in 0..ATTEMPTS {
            match server.resume().await {
                Err(_) if server.log().contains(TAKEN) => server.http = ports::reserve_one()?,
                other => return other.map(|()| server),
            }
        }
        bail!("Radicale found its port taken {ATTEMPTS} times");
    }

    /// Starts it again after [`Self::stop`], with what it had, on the same port.
    ///
    /// # Errors
    ///
    /// It does not start; the end of its log is in the message.
    pub async fn resume(&mut self) -> Result<()> {
        self.place.write("config", &self.settings(), 0o644, None)?;
        self.place.write(LOG, "", 0o644, None)?;
        let file = self.place.join("config").to_string_lossy().into_owned();
        let command = [PROGRAM, "--config", &file];
        let child = Child::start(&[], &command, self.place.path(), LOG)?;
        let started = until("Radicale to listen", || {
            (child.log().contains(BOUND) || !child.is_running()).then_some(())
        });
        started.await?;
        ensure!(child.is_running(), "Radicale ended: {}", child.end_of_log());
        self.child = Some(child);
        Ok(())
    }

    /// Ends it as an outage does.
    ///
    /// # Errors
    ///
    /// It does not run, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.child.take().context("it does not run")?.kill()
    }

    /// What it says it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it speaks HTTP/1.1, without TLS.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address of something it has.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// What it has written: for each request who asked, from where (with the forwarded address) and for what.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.join(LOG)).unwrap_or_default()
    }

    fn settings(&self) -> String {
        let place = self.place.path().display();
        format!(
            "[server]
hosts = {http}
[auth]
type = htpasswd
htpasswd_filename = {place}/users
htpasswd_encryption = plain
# It would wait after a wrong password.
delay = 0
[rights]
type = owner_only
[storage]
filesystem_folder = {place}/storage
[web]
type = none
[logging]
level = info
mask_passwords = true
[headers]
X-Backend = {name}
",
            http = self.http,
            name = self.name,
        )
    }
}

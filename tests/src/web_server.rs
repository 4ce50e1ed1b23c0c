//! A small web server as a backend: it says what it got, streams, and misbehaves where a request wants it.
//!
//! `web_server/server.py` (aiohttp) is the server, and the list of what it answers is at its end. All of it
//! but `/public/`, `/auth/`, `/.well-known/` and `/state` asks for a password or a token.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::children::Child;
use crate::curl;
use crate::place::Place;
use crate::program::Home;

/// The server.
const SERVER: &str = include_str!("web_server/server.py");
/// What it writes: its address, and a line for each request.
const LOG: &str = "web.log";
/// Debian's own interpreter, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";

/// What a server is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Accounts and their passwords.
    pub users: Vec<(String, String)>,
    /// Bearer tokens and whose they are. None says so by itself.
    pub tokens: Vec<(String, String)>,
    /// Seconds that it keeps a connection without a request; 75 where it is none.
    pub keepalive: Option<f64>,
}

impl Options {
    /// Accounts that all have the password `secret`.
    pub fn with_users<'a>(accounts: impl IntoIterator<Item = &'a str>) -> Self {
        let users = accounts.into_iter().map(|name| (name.to_owned(), "secret".to_owned()));
        Self { users: users.collect(), ..Self::default() }
    }
}

/// A web server, ended with this value.
#[derive(Debug)]
pub struct WebServer {
    name: String,
    options: Options,
    http: SocketAddr,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
    home: Home,
}

impl WebServer {
    /// Starts a server, which says its `name` in every answer.
    ///
    /// # Errors
    ///
    /// There is no Python with aiohttp; the end of what it says is in the message.
    pub async fn start(name: &str, options: Options) -> Result<Self> {
        let place = Place::new()?;
        place.write("server.py", SERVER, 0o644, None)?;
        let mut server = Self {
            name: name.to_owned(),
            options,
            // It binds port 0 and says what it got.
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            child: None,
            place,
            home: Home::new()?,
        };
        server.resume().await?;
        Ok(server)
    }

    /// Starts it again after [`Self::stop`], on the same port.
    ///
    /// # Errors
    ///
    /// It does not start, for one because somebody has got its port.
    pub async fn resume(&mut self) -> Result<()> {
        let script = self.place.join("server.py").to_string_lossy().into_owned();
        let mut words = vec![PYTHON.to_owned(), script, "--name".to_owned(), self.name.clone()];
        words.extend(["--port".to_owned(), self.http.port().to_string()]);
        for (flag, pairs) in [("--user", &self.options.users), ("--token", &self.options.tokens)] {
            for (name, value) in pairs {
                words.extend([flag.to_owned(), format!("{name}:{value}")]);
            }
        }
        if let Some(seconds) = self.options.keepalive {
            words.extend(["--keepalive".to_owned(), seconds.to_string()]);
        }
        let command: Vec<&str> = words.iter().map(String::as_str).collect();
        // An earlier start's lines do not count.
        self.place.write(LOG, "", 0o644, None)?;
        let child = Child::start(&[], &command, self.place.path(), LOG)?;
        let line = child
            .logged(&["listening at "])
            .await
            .context("the web server does not start: run `tests/deps.sh test`")?;
        let (_, address) = line.rsplit_once(' ').context("no address")?;
        self.http = address.parse()?;
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

    /// What it has seen since it started, and what runs: `connections`, `requests`, `refused`, `octets` (of
    /// bodies, while they come), `sse` and `ws` (open now), `paths`. Asking counts, too.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub async fn state(&self) -> Result<Value> {
        let answer = curl::get(&self.home, &self.url("/state")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        answer.json()
    }

    /// Waits until one of the numbers of [`Self::state`] is this.
    ///
    /// # Errors
    ///
    /// It never is.
    pub async fn reaches(&self, what: &str, number: u64) -> Result<()> {
        let deadline = tokio::time::Instant::now() + crate::patience::PATIENCE;
        loop {
            let state = self.state().await?;
            if state[what] == number {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "{what} is never {number}: {state}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits until a line of its log has all of these words.
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn logged(&self, words: &[&str]) -> Result<String> {
        self.child.as_ref().context("it does not run")?.logged(words).await
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.child.as_ref().map(Child::log).unwrap_or_default()
    }
}

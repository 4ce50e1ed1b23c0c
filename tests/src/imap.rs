//! An IMAP client (RFC 9051, RFC 3501) as far as tests need one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio_rustls::TlsConnector;

use crate::conversation::Conversation;

/// A client's connection, greeted.
#[derive(Debug)]
pub struct Imap {
    /// The conversation itself, for what has no method here.
    pub conversation: Conversation,
    /// The server's first line.
    pub greeting: String,
    tags: u32,
}

/// What a server said to a command.
#[derive(Debug, Clone)]
pub struct Response {
    /// Untagged responses; a literal is part of its line.
    pub untagged: Vec<String>,
    /// The tagged one without its tag, such as `OK done`.
    pub tagged: String,
}

impl Response {
    /// Whether the command succeeded.
    pub fn is_ok(&self) -> bool {
        self.tagged.starts_with("OK")
    }
}

impl Imap {
    /// Connects without TLS.
    ///
    /// # Errors
    ///
    /// Nobody is there, or does not greet.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        Self::greeted(Conversation::connect(address).await?).await
    }

    /// Connects from an address of one's own.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Result<Self> {
        Self::greeted(Conversation::connect_from(source, address).await?).await
    }

    /// Connects with implicit TLS.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`], or TLS fails.
    pub async fn connect_tls(address: SocketAddr, tls: &TlsConnector, name: &str) -> Result<Self> {
        Self::greeted(Conversation::connect_tls(address, tls, name).await?).await
    }

    async fn greeted(mut conversation: Conversation) -> Result<Self> {
        let greeting = conversation.expect("* OK").await.context("IMAP greeting")?;
        Ok(Self { conversation, greeting, tags: 0 })
    }

    /// STARTTLS (RFC 9051 §6.2.1).
    ///
    /// # Errors
    ///
    /// It is refused, or TLS fails.
    pub async fn start_tls(&mut self, tls: &TlsConnector, name: &str) -> Result<()> {
        let response = self.command("STARTTLS").await?;
        ensure!(response.is_ok(), "STARTTLS: {}", response.tagged);
        self.conversation.start_tls(tls, name).await
    }

    /// Sends a command with a tag and returns what the server says to it.
    ///
    /// # Errors
    ///
    /// The server closes or is silent.
    pub async fn command(&mut self, command: &str) -> Result<Response> {
        let tag = self.send_command(command).await?;
        self.response(&tag).await
    }

    /// Sends a command and returns its tag, for [`Self::response`].
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub async fn send_command(&mut self, command: &str) -> Result<String> {
        self.tags += 1;
        let tag = format!("a{}", self.tags);
        self.conversation.say(&format!("{tag} {command}")).await?;
        Ok(tag)
    }

    /// Reads up to the tagged response.
    ///
    /// # Errors
    ///
    /// The server closes or is silent.
    pub async fn response(&mut self, tag: &str) -> Result<Response> {
        let mut untagged = Vec::new();
        loop {
            let line = self.logical_line().await?;
            match line.strip_prefix(tag).and_then(|rest| rest.strip_prefix(' ')) {
                Some(tagged) => return Ok(Response { untagged, tagged: tagged.to_owned() }),
                None => untagged.push(line),
            }
        }
    }

    /// A line with the literals in it (RFC 9051 §4.3).
    async fn logical_line(&mut self) -> Result<String> {
        let mut line = self.conversation.line().await?;
        while let Some(count) = literal(&line) {
            let octets = self.conversation.octets(count).await?;
            line.push_str("\r\n");
            line.push_str(&String::from_utf8_lossy(&octets));
            line.push_str(&self.conversation.line().await?);
        }
        Ok(line)
    }

    /// LOGIN.
    ///
    /// # Errors
    ///
    /// The server closes or is silent. A refusal is a [`Response`].
    pub async fn login(&mut self, user: &str, password: &str) -> Result<Response> {
        self.command(&format!("LOGIN {} {}", quoted(user), quoted(password))).await
    }

    /// LOGIN that must succeed.
    ///
    /// # Errors
    ///
    /// Also a refusal, with the server's words.
    pub async fn log_in(&mut self, user: &str, password: &str) -> Result<()> {
        let response = self.login(user, password).await?;
        ensure!(response.is_ok(), "login refused: {}", response.tagged);
        Ok(())
    }

    /// The messages of a mailbox, whole and in order. They stay unread.
    ///
    /// # Errors
    ///
    /// There is no such mailbox.
    pub async fn messages(&mut self, mailbox: &str) -> Result<Vec<String>> {
        let examined = self.command(&format!("EXAMINE {}", quoted(mailbox))).await?;
        ensure!(examined.is_ok(), "EXAMINE: {}", examined.tagged);
        if examined.untagged.iter().any(|line| line == "* 0 EXISTS") {
            return Ok(Vec::new());
        }
        let fetched = self.command("FETCH 1:* BODY.PEEK[]").await?;
        ensure!(fetched.is_ok(), "FETCH: {}", fetched.tagged);
        Ok(fetched
            .untagged
            .into_iter()
            .filter(|line| line.contains(" FETCH "))
            .filter_map(|line| Some(line.split_once("}\r\n")?.1.strip_suffix(')')?.to_owned()))
            .collect())
    }

    /// What the server calls itself in its answer to ID (RFC 2971).
    ///
    /// # Errors
    ///
    /// It does not say.
    pub async fn server_name(&mut self) -> Result<String> {
        let response = self.command("ID NIL").await?;
        let fields = response.untagged.iter().find_map(|line| line.strip_prefix("* ID ("));
        let mut words = fields.context("no ID")?.split('"');
        words
            .by_ref()
            .find(|word| word.eq_ignore_ascii_case("name"))
            .and_then(|_| words.nth(1))
            .map(str::to_owned)
            .context("no name in ID")
    }

    /// Begins IDLE (RFC 2177), on the inbox.
    ///
    /// # Errors
    ///
    /// The server does not agree.
    pub async fn idle(&mut self) -> Result<()> {
        let selected = self.command("SELECT INBOX").await?;
        ensure!(selected.is_ok(), "SELECT: {}", selected.tagged);
        self.send_command("IDLE").await?;
        self.conversation.expect("+").await.map(drop)
    }

    /// Waits for the server to end the session, and returns what it says before.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn ended(&mut self) -> Result<Vec<String>> {
        self.conversation.closed().await
    }
}

/// The octets announced by a literal at the end of a line.
fn literal(line: &str) -> Option<usize> {
    line.strip_suffix('}')?.rsplit_once('{')?.1.parse().ok()
}

/// A quoted string (RFC 9051 §4.3).
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

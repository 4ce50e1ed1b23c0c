//! A user's session in any of the protocols that the login proxy speaks, as far as tests ask the same of all
//! of them: log in, say where you are, stay until you are sent away.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::conversation::Conversation;

/// What is spoken. Each is also the name of a listener of [`crate::node::Node`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
    /// Mail submission.
    Submission,
    /// ManageSieve.
    ManageSieve,
}

/// A session that is logged in.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    conversation: Conversation,
}

/// What a login comes to.
#[derive(Debug)]
pub enum Login {
    /// It is joined to a server.
    Joined(Session),
    /// It was refused, in these words.
    Refused(String),
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Imap, Self::Pop3, Self::Submission, Self::ManageSieve];

    /// Its listener.
    pub fn listener(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Submission => "submission",
            Self::ManageSieve => "managesieve",
        }
    }

    /// True for the words of a refusal that the client takes for "not now", and that do not blame its
    /// password.
    pub fn is_temporary(self, words: &str) -> bool {
        match self {
            Self::Imap => words.contains("NO [UNAVAILABLE]"),
            Self::Pop3 => words.starts_with("-ERR [SYS/TEMP]"),
            Self::Submission => words.starts_with('4'),
            Self::ManageSieve => words.starts_with("NO (TRYLATER)"),
        }
    }
}

impl Session {
    /// Logs in without TLS with the password that all test accounts have.
    ///
    /// # Errors
    ///
    /// The server closes, is silent, or says what is no answer.
    pub async fn log_in(protocol: Protocol, address: SocketAddr, account: &str) -> Result<Login> {
        let mut conversation = Conversation::connect(address).await?;
        let plain = BASE64_STANDARD.encode(format!("\0{account}\0secret"));
        let answer = match protocol {
            Protocol::Imap => {
                conversation.expect("* OK").await?;
                conversation.say(&format!("a LOGIN {account} secret")).await?;
                line_of(&mut conversation, |line| line.starts_with("a ")).await?
            }
            Protocol::Pop3 => {
                conversation.expect("+OK").await?;
                conversation.say(&format!("USER {account}")).await?;
                conversation.expect("+OK").await?;
                conversation.say("PASS secret").await?;
                conversation.line().await?
            }
            Protocol::Submission => {
                conversation.expect("220").await?;
                conversation.say("EHLO client.example.com").await?;
                line_of(&mut conversation, |line| line.starts_with("250 ")).await?;
                conversation.say(&format!("AUTH PLAIN {plain}")).await?;
                conversation.line().await?
            }
            Protocol::ManageSieve => {
                line_of(&mut conversation, |line| line.starts_with("OK")).await?;
                conversation.say(&format!("AUTHENTICATE \"PLAIN\" \"{plain}\"")).await?;
                line_of(&mut conversation, |line| !line.starts_with('"')).await?
            }
        };
        let yes = ["a OK", "+OK", "235", "OK"];
        Ok(match yes.iter().any(|word| answer.starts_with(word)) {
            true => Login::Joined(Self { protocol, conversation }),
            false => Login::Refused(answer),
        })
    }

    /// The name of the server that it is joined to, as that server says it. By POP3 it has to be in the
    /// subject of the first message: `at NAME`.
    ///
    /// # Errors
    ///
    /// The server closes, is silent, or does not say.
    pub async fn server(&mut self) -> Result<String> {
        let (question, marker, end): (_, _, fn(&str) -> bool) = match self.protocol {
            Protocol::Imap => ("i ID NIL", "* ID (\"name\" \"", |line| line.starts_with("i ")),
            Protocol::Pop3 => ("TOP 1 0", "Subject: at ", |line| line == "."),
            Protocol::Submission => ("EHLO client.example.com", "250-", |l| l.starts_with("250 ")),
            Protocol::ManageSieve => {
                ("CAPABILITY", "\"IMPLEMENTATION\" \"", |line| line.starts_with("OK"))
            }
        };
        self.conversation.say(question).await?;
        let mut said = Vec::new();
        loop {
            let line = self.conversation.line().await?;
            let over = end(&line) || line.starts_with("-ERR");
            said.push(line);
            if over {
                break;
            }
        }
        let name = said.iter().find_map(|line| line.strip_prefix(marker));
        let name = name.and_then(|rest| rest.split(['"', '.', ' ']).next());
        name.map(str::to_owned).with_context(|| format!("no server's name in {said:?}"))
    }

    /// Waits for the server to end it.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn ended(&mut self) -> Result<()> {
        self.conversation.closed().await.map(drop)
    }
}

/// The first line of that kind; what comes before is passed over.
async fn line_of(conversation: &mut Conversation, is: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..100 {
        let line = conversation.line().await?;
        if is(&line) {
            return Ok(line);
        }
    }
    bail!("a hundred lines and not the one that was waited for")
}

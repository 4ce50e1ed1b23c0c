//! Plays `.chat` files: conversations written down line by line, each one a complete test.
//!
//! ```text
//! # A comment. Empty lines are ignored, too.
//! !with plaintext max_size=100        words for whoever sets the scene (Prompter::start)
//! S: 220 mx.example.org ESMTP         the server says exactly this line
//! S~ 250-                             the server says a line that begins with this
//! C: EHLO client.example.com          the client says this line and CRLF
//! C\ DATA\r\n..x\r\n.\r\n             the client says these octets; \r \n \t \0 \\ \xHH are escapes
//! !event Rcpt(ann@example.org)        the dialogue asks its driver (bare player only)
//! !answer 550 5.1.1                   what the driver answers (bare player only)
//! !tls                                the handshake takes place
//! !end                                the client closes its side (over a socket only)
//! !close                              the server closes; nothing may follow
//! !uncut                              what is said depends on how the octets arrive: play it whole only
//! ```
//!
//! [`Script::play`] runs a script against the bare [`Dialogue`], once whole and once for each octet of
//! the client, cut there: where the network cuts must never matter. [`Script::play_over`] runs the same
//! script over a connection, against a real server; `!event` and `!answer` are skipped there, so the
//! server's backends must be such that they answer the same.
//!
//! Consecutive client lines arrive together, as from a client that pipelines.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use shared::dialogue::{Dialogue, Input, Output, Step};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Longest wait for a real server's next words.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sets the scene for a dialogue and stands in for its driver.
pub trait Prompter {
    /// The dialogue that is played.
    type Dialogue: Dialogue;

    /// A new dialogue under the script's `!with` words, its greeting on `output`. Called once for each
    /// cut, so it forgets what it kept of the one before.
    fn start(&mut self, with: &[String], output: &mut Output) -> Self::Dialogue;

    /// How `!event` lines write this event; `None` for one that scripts do not show, such as a piece
    /// of message data whose size depends on the cut. It is answered all the same.
    fn describe(&mut self, event: &Event<Self>) -> Option<String>;

    /// Answers an event; `words` are those of the `!answer` line behind it, if there is one.
    fn answer(
        &mut self,
        dialogue: &mut Self::Dialogue,
        event: Event<Self>,
        words: Option<&str>,
        output: &mut Output,
    );
}

/// An event of a prompter's dialogue.
pub type Event<P> = <<P as Prompter>::Dialogue as Dialogue>::Event;

/// Both directions of a connection.
pub trait Octets: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Octets for T {}

/// One conversation.
#[derive(Debug)]
pub struct Script {
    name: String,
    with: Vec<String>,
    uncut: bool,
    lines: Vec<(usize, Line)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Client(Vec<u8>),
    Exactly(String),
    Prefix(String),
    Event(String),
    Answer(String),
    Tls,
    End,
    Close,
}

/// What a dialogue did.
#[derive(Debug)]
enum Seen<E> {
    Said(String),
    Asked(E),
    StartsTls,
    Closed(String),
    Waits,
}

impl Script {
    /// Every `.chat` file of a directory, by name. At least one must be there.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is no script.
    pub fn all(directory: impl AsRef<Path>) -> Result<Vec<Self>> {
        let directory = directory.as_ref();
        let entries = directory.read_dir().with_context(|| directory.display().to_string())?;
        let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "chat"));
        files.sort();
        ensure!(!files.is_empty(), "no .chat files in {}", directory.display());
        files.iter().map(Self::read).collect()
    }

    /// One file.
    ///
    /// # Errors
    ///
    /// It cannot be read or is no script.
    pub fn read(file: impl AsRef<Path>) -> Result<Self> {
        let name = file.as_ref().display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
        Self::parse(&name, &text)
    }

    /// A script from its text.
    ///
    /// # Errors
    ///
    /// Names the line that is none.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut script =
            Self { name: name.to_owned(), with: Vec::new(), uncut: false, lines: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            script.line(number + 1, line).with_context(|| format!("{name}:{}", number + 1))?;
        }
        Ok(script)
    }

    /// The file it is from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The words of its `!with` lines.
    pub fn with(&self) -> &[String] {
        &self.with
    }

    fn line(&mut self, number: usize, line: &str) -> Result<()> {
        let (head, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        let text = rest.strip_prefix(' ').unwrap_or(rest);
        let line = match head {
            "" => return Ok(()),
            _ if head.starts_with('#') => return Ok(()),
            "C:" => Line::Client(format!("{text}\r\n").into_bytes()),
            "C\\" => Line::Client(unescape(text)?),
            "S:" => Line::Exactly(text.to_owned()),
            "S~" => Line::Prefix(text.to_owned()),
            _ => match line.split_once(' ').unwrap_or((line, "")) {
                ("!event", text) => Line::Event(text.to_owned()),
                ("!answer", text) => Line::Answer(text.to_owned()),
                ("!tls", "") => Line::Tls,
                ("!end", "") => Line::End,
                ("!close", "") => Line::Close,
                ("!uncut", "") => {
                    self.uncut = true;
                    return Ok(());
                }
                ("!with", words) => {
                    self.with.extend(words.split_whitespace().map(str::to_owned));
                    return Ok(());
                }
                _ => bail!("{line:?} is no line of a .chat file"),
            },
        };
        // What the client says in one go arrives in one go.
        match (self.lines.last_mut(), line) {
            (Some((_, Line::Client(before))), Line::Client(more)) => before.extend(more),
            (_, line) => self.lines.push((number, line)),
        }
        Ok(())
    }

    /// Plays this against the bare dialogue: whole, then cut at each octet of the client.
    ///
    /// # Errors
    ///
    /// Names the line of the script where the dialogue went another way.
    pub fn play<P: Prompter>(&self, prompter: &mut P) -> Result<()> {
        let octets: usize = self.lines.iter().map(|(_, line)| line.client().len()).sum();
        let cuts = if self.uncut { 1 } else { octets.max(1) };
        for cut in 0..cuts {
            Stage::new(self, prompter, cut)
                .play()
                .with_context(|| format!("{}, cut at octet {cut}", self.name))?;
        }
        Ok(())
    }

    /// Plays this over a connection. `upgrade` makes the handshake of a `!tls` line.
    ///
    /// # Errors
    ///
    /// Names the line of the script where the server went another way.
    pub async fn play_over(
        &self,
        mut stream: Box<dyn Octets>,
        mut upgrade: impl AsyncFnMut(Box<dyn Octets>) -> Result<Box<dyn Octets>>,
    ) -> Result<()> {
        let mut unread = Vec::new();
        for (number, line) in &self.lines {
            let at = || format!("{}:{number}", self.name);
            match line {
                Line::Client(octets) => stream.write_all(octets).await.with_context(at)?,
                Line::Exactly(text) => {
                    let said = heard(&mut stream, &mut unread).await.with_context(at)?;
                    let said = said.unwrap_or_else(|| "(closed)".into());
                    ensure!(said == *text, "{}: expected {text:?}, heard {said:?}", at());
                }
                Line::Prefix(text) => {
                    let said = heard(&mut stream, &mut unread).await.with_context(at)?;
                    let said = said.unwrap_or_else(|| "(closed)".into());
                    ensure!(said.starts_with(text), "{}: expected {text:?}…, heard {said:?}", at());
                }
                Line::Event(_) | Line::Answer(_) => {}
                Line::Tls => {
                    ensure!(unread.is_empty(), "{}: said before TLS: {unread:?}", at());
                    stream = upgrade(stream).await.with_context(at)?;
                }
                Line::End => stream.shutdown().await.with_context(at)?,
                Line::Close => {
                    let said = heard(&mut stream, &mut unread).await.with_context(at)?;
                    ensure!(said.is_none(), "{}: expected the end, heard {said:?}", at());
                }
            }
        }
        Ok(())
    }
}

impl Line {
    fn client(&self) -> &[u8] {
        match self {
            Self::Client(octets) => octets,
            _ => &[],
        }
    }
}

/// One performance of a script.
struct Stage<'a, P: Prompter> {
    script: &'a Script,
    prompter: &'a mut P,
    dialogue: P::Dialogue,
    input: Input,
    output: Output,
    /// Octets of the client until its input is cut.
    until_cut: usize,
    /// What the client has said and the dialogue has not been given.
    under_way: VecDeque<Vec<u8>>,
    seen: VecDeque<Seen<Event<P>>>,
    closed: bool,
}

impl<'a, P: Prompter> Stage<'a, P> {
    fn new(script: &'a Script, prompter: &'a mut P, cut: usize) -> Self {
        let mut output = Output::default();
        let dialogue = prompter.start(&script.with, &mut output);
        let mut stage = Self {
            script,
            prompter,
            dialogue,
            input: Input::default(),
            output,
            until_cut: cut,
            under_way: VecDeque::new(),
            seen: VecDeque::new(),
            closed: false,
        };
        stage.listen();
        stage
    }

    fn play(mut self) -> Result<()> {
        let lines = &self.script.lines;
        for (index, (number, line)) in lines.iter().enumerate() {
            let words = match lines.get(index + 1) {
                Some((_, Line::Answer(words))) => Some(words.as_str()),
                _ => None,
            };
            self.act(line, words).with_context(|| format!("line {number}"))?;
        }
        match self.next() {
            Seen::Waits | Seen::Closed(_) => Ok(()),
            other => bail!("at the end of the script: {}", self.show(&other)),
        }
    }

    fn act(&mut self, line: &Line, words: Option<&str>) -> Result<()> {
        match line {
            Line::Client(octets) => {
                let (first, rest) = octets.split_at(self.until_cut.min(octets.len()));
                self.until_cut = self.until_cut.saturating_sub(octets.len());
                self.under_way.extend([first, rest].iter().map(|part| part.to_vec()));
            }
            Line::Answer(_) | Line::End => {}
            Line::Exactly(text) => match self.next() {
                Seen::Said(said) if said == *text => {}
                other => bail!("expected {text:?}: {}", self.show(&other)),
            },
            Line::Prefix(text) => match self.next() {
                Seen::Said(said) if said.starts_with(text) => {}
                other => bail!("expected {text:?}…: {}", self.show(&other)),
            },
            Line::Event(text) => match self.next() {
                Seen::Asked(event)
                    if self.prompter.describe(&event).as_deref() == Some(text.as_str()) =>
                {
                    self.prompter.answer(&mut self.dialogue, event, words, &mut self.output);
                    self.listen();
                }
                other => bail!("expected the event {text}: {}", self.show(&other)),
            },
            Line::Tls => match self.next() {
                Seen::StartsTls => {
                    ensure!(self.input.is_empty(), "unread before TLS: {:?}", self.input.unread());
                    self.dialogue.secured(&mut self.output);
                    self.listen();
                }
                other => bail!("expected STARTTLS: {}", self.show(&other)),
            },
            Line::Close => match self.next() {
                Seen::Closed(_) => {}
                other => bail!("expected the end: {}", self.show(&other)),
            },
        }
        Ok(())
    }

    /// What the dialogue does next.
    fn next(&mut self) -> Seen<Event<P>> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return seen;
            }
            if self.closed {
                return Seen::Closed("closed before".to_owned());
            }
            let step = self.dialogue.step(&mut self.input, &mut self.output);
            self.listen();
            match step {
                Ok(Step::NeedInput) if !self.seen.is_empty() => {}
                Ok(Step::NeedInput) => match self.under_way.pop_front() {
                    Some(octets) => self.input.push(&octets),
                    None => return Seen::Waits,
                },
                Ok(Step::StartTls) => self.seen.push_back(Seen::StartsTls),
                Ok(Step::Event(event)) => {
                    if let Some(event) = self.unless_unseen(event) {
                        self.seen.push_back(Seen::Asked(event));
                    }
                }
                Ok(Step::Close) => self.end("closed"),
                Err(violation) => self.end(&violation.to_string()),
            }
        }
    }

    /// An event that scripts do not show is answered at once.
    fn unless_unseen(&mut self, event: Event<P>) -> Option<Event<P>> {
        if self.prompter.describe(&event).is_some() {
            return Some(event);
        }
        self.prompter.answer(&mut self.dialogue, event, None, &mut self.output);
        self.listen();
        None
    }

    fn end(&mut self, why: &str) {
        self.closed = true;
        self.seen.push_back(Seen::Closed(why.to_owned()));
    }

    /// Takes down what the dialogue has said.
    fn listen(&mut self) {
        let said = self.output.take();
        for line in said.split_inclusive(|&b| b == b'\n') {
            let line = match line.strip_suffix(b"\r\n") {
                Some(line) => escape(line),
                None => format!("{} (no CRLF)", escape(line)),
            };
            self.seen.push_back(Seen::Said(line));
        }
    }

    fn show(&mut self, seen: &Seen<Event<P>>) -> String {
        match seen {
            Seen::Said(line) => format!("it says {line:?}"),
            Seen::Asked(event) => {
                format!("it asks {}", self.prompter.describe(event).unwrap_or_default())
            }
            Seen::StartsTls => "it starts TLS".to_owned(),
            Seen::Closed(why) => format!("it ends ({why})"),
            Seen::Waits => "it waits for the client".to_owned(),
        }
    }
}

/// The next line from a server, without CRLF; `None` when it has closed.
async fn heard(stream: &mut Box<dyn Octets>, unread: &mut Vec<u8>) -> Result<Option<String>> {
    loop {
        if let Some(end) = unread.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let line = line.strip_suffix(b"\r\n").context("a line without CRLF")?;
            return Ok(Some(escape(line)));
        }
        let mut octets = [0; 4096];
        match timeout(PATIENCE, stream.read(&mut octets)).await.context("silence")? {
            // A server that closes with octets of ours unread resets the connection.
            Ok(0) | Err(_) if unread.is_empty() => return Ok(None),
            Ok(0) | Err(_) => bail!("closed after {:?}", String::from_utf8_lossy(unread)),
            Ok(count) => unread.extend_from_slice(&octets[..count]),
        }
    }
}

/// Octets as a `C\` line writes them.
pub fn escape(octets: &[u8]) -> String {
    let mut text = String::new();
    for &octet in octets {
        match octet {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\0' => text.push_str("\\0"),
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(octet)),
            _ => {
                let _ = write!(text, "\\x{octet:02x}");
            }
        }
    }
    text
}

/// The octets of a `C\` line.
///
/// # Errors
///
/// An escape that is none.
pub fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut octets = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        if *first != b'\\' {
            octets.push(*first);
            continue;
        }
        let [escape, more @ ..] = rest else { bail!("a lone \\ at the end") };
        rest = more;
        octets.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let (digits, more) = rest.split_at_checked(2).context("\\x without two digits")?;
                rest = more;
                u8::from_str_radix(std::str::from_utf8(digits)?, 16)?
            }
            other => bail!("\\{} is no escape", char::from(*other)),
        });
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::dialogue::Violation;

    /// Says back each line, asks for `?` lines, closes at `.`.
    struct Echo;
    struct Stand;

    impl Dialogue for Echo {
        type Event = String;
        fn step(
            &mut self,
            input: &mut Input,
            output: &mut Output,
        ) -> Result<Step<String>, Violation> {
            while let Some(line) = input.line(20)? {
                let text = String::from_utf8_lossy(line.octets()).into_owned();
                match text.as_str() {
                    "." => return Ok(Step::Close),
                    "tls" => return Ok(Step::StartTls),
                    _ if text.starts_with('?') => return Ok(Step::Event(text)),
                    _ => output.push(format!("{text}\r\n")),
                }
            }
            Ok(Step::NeedInput)
        }
        fn secured(&mut self, _: &mut Output) {}
    }

    impl Prompter for Stand {
        type Dialogue = Echo;
        fn start(&mut self, with: &[String], output: &mut Output) -> Echo {
            output.push(format!("hello {}\r\n", with.join(",")));
            Echo
        }
        fn describe(&mut self, event: &String) -> Option<String> {
            (event != "?hidden").then(|| event.clone())
        }
        fn answer(&mut self, _: &mut Echo, _: String, words: Option<&str>, output: &mut Output) {
            output.push(format!("answer {}\r\n", words.unwrap_or("none")));
        }
    }

    fn play(text: &str) -> Result<()> {
        Script::parse("test", text)?.play(&mut Stand)
    }

    #[test]
    fn a_conversation_is_played_cut_at_every_octet() {
        play(
            "!with a b\nS: hello a,b\nC: one\nC: ?two\nC: ?hidden\nC\\ thr\\x65e\\r\\n\nS: one\n\
             !event ?two\n!answer yes\nS: answer yes\nS: answer none\nS~ thr\nC: tls\n!tls\nC: .\n!close\n",
        )
        .unwrap();
    }

    #[test]
    fn what_differs_from_the_script_is_found() {
        for wrong in [
            "S: hello\n",
            "S~ hello\nC: one\nS: two\n",
            "S~ hello\nC: one\n",
            "S~ hello\nC: one\nS: one\n!close\n",
            "S~ hello\nC: .\nS: .\n",
            "S~ hello\nC: ?a\n!event ?b\nS: answer none\n",
            "S~ hello\nC: tls\nC: early\n!tls\nS: early\n",
        ] {
            assert!(play(wrong).is_err(), "{wrong:?}");
        }
        assert!(Script::parse("test", "X: what\n").is_err());
    }
}

//! Mail programs as people run them: processes with a home directory of their own, which must end in time.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::patience::PATIENCE;
use crate::place::Place;

/// For the rest of what a program says that has said something wrong.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A person's home directory, where programs find their settings and leave their mail.
#[derive(Debug)]
pub struct Home {
    place: Place,
}

/// A program that runs; it is killed with this value.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Home {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new() -> Result<Self> {
        Ok(Self { place: Place::new()? })
    }

    /// Writes a file that nobody else may read: some programs insist.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        Ok(self.place.write(name, text, 0o600, None)?.to_string_lossy().into_owned())
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Starts a program in it, with this on its standard input.
    ///
    /// # Errors
    ///
    /// It is not installed.
    pub async fn start(&self, command: &[&str], input: &str) -> Result<Program> {
        let (name, arguments) = command.split_first().context("nothing to run")?;
        let path = std::env::var("PATH").unwrap_or_default();
        // What it complains about is where it says it: in between.
        let mut child = Command::new("/bin/sh")
            .args(["-c", r#"exec "$@" 2>&1"#, "sh", name])
            .args(arguments)
            .current_dir(self.place.path())
            .env_clear()
            // The system's programs before those that a user has put before them.
            .env("PATH", format!("/usr/bin:/bin:/usr/sbin:/sbin:{path}"))
            .env("HOME", self.place.path())
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "vt100")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name}: run `tests/deps.sh test`"))?;
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        // One that does not want it closes early.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Program { name: (*name).to_owned(), child, output, said: String::new() })
    }

    /// Runs a program, which must succeed, and returns what it says.
    ///
    /// # Errors
    ///
    /// It fails; the message has what it says.
    pub async fn run(&self, command: &[&str], input: &str) -> Result<String> {
        self.start(command, input).await?.finished().await
    }
}

impl Program {
    /// Waits for its next line, which must be this.
    ///
    /// # Errors
    ///
    /// It says nothing in time, or something else: the message has all of it if it ends with that.
    pub async fn says(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        timeout(PATIENCE, self.output.read_line(&mut line))
            .await
            .with_context(|| format!("{} is silent; before: {}", self.name, self.said))??;
        self.said += &line;
        if line.trim_end() == expected {
            return Ok(());
        }
        let mut rest = Vec::new();
        let _ = timeout(LAST_WORDS, self.output.read_to_end(&mut rest)).await;
        bail!(
            "{} says not {expected:?}: {}{}",
            self.name,
            self.said,
            String::from_utf8_lossy(&rest)
        )
    }

    /// Waits for its end, which must be a success, and returns all that it has said.
    ///
    /// # Errors
    ///
    /// It fails, or does not end in time.
    pub async fn finished(mut self) -> Result<String> {
        let mut rest = Vec::new();
        let status = timeout(PATIENCE, async {
            self.output.read_to_end(&mut rest).await?;
            self.child.wait().await
        })
        .await
        .with_context(|| format!("{} does not end; it said: {}", self.name, self.said))??;
        self.said += &String::from_utf8_lossy(&rest);
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.said);
        Ok(self.said)
    }
}

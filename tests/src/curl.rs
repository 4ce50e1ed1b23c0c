//! curl, as people and programs use it for HTTP: one request, and all of its answer.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::program::Home;

/// Seconds after which it gives up.
const PATIENCE: &str = "60";

/// An answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The HTTP version that it came by: `1.0`, `1.1` or `2`.
    pub version: String,
    /// The statuses that came before it: 100 and other news of the way, redirects that were followed.
    pub interim: Vec<u16>,
    /// Its headers, as they came.
    pub headers: Vec<(String, String)>,
    /// What followed the body, where something did.
    pub trailers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// The body, for people.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, which is JSON.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }
}

/// Asks for something without credentials.
///
/// # Errors
///
/// As [`ask`].
pub async fn get(home: &Home, url: &str) -> Result<Answer> {
    ask(home, &[url]).await
}

/// Runs curl with these arguments, an address among them.
///
/// # Errors
///
/// There is no curl, or there was no answer: the message has what it says. A refusal is an answer.
pub async fn ask(home: &Home, arguments: &[&str]) -> Result<Answer> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = |name: &str| home.path(&format!("curl.{number}.{name}"));
    let (head, body) = (path("head"), path("body"));
    let (head_name, body_name) = (head.to_string_lossy(), body.to_string_lossy());
    let mut command = vec!["curl", "--silent", "--show-error", "--max-time", PATIENCE];
    // Whatever proxies the environment knows.
    command.extend(["--noproxy", "*", "--dump-header", &head_name, "--output", &body_name]);
    command.extend(arguments);
    home.run(&command, "").await?;
    let text = fs::read(&head).context("curl has left no headers")?;
    // An answer without a body leaves no file.
    let octets = fs::read(&body).unwrap_or_default();
    let _ = (fs::remove_file(&head), fs::remove_file(&body));
    read(&String::from_utf8_lossy(&text), octets)
}

/// Reads what `--dump-header` writes: a block for each status, and one for trailers.
fn read(text: &str, body: Vec<u8>) -> Result<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut is_over = false;
    for line in text.lines() {
        if line.starts_with("HTTP/") {
            answers.push(first(line)?);
            is_over = false;
        } else if line.is_empty() {
            is_over = true;
        } else {
            let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
            let answer = answers.last_mut().context("a header before any status")?;
            let fields = if is_over { &mut answer.trailers } else { &mut answer.headers };
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let last = answers.pop().context("no answer")?;
    ensure!(last.status >= 200 || last.status == 101, "no answer after {}", last.status);
    Ok(Answer { interim: answers.iter().map(|answer| answer.status).collect(), body, ..last })
}

fn first(line: &str) -> Result<Answer> {
    let mut words = line.split_whitespace();
    let version = words.next().and_then(|word| word.strip_prefix("HTTP/"));
    let status = words.next().and_then(|word| word.parse().ok());
    let (Some(version), Some(status)) = (version, status) else {
        anyhow::bail!("status line {line:?}");
    };
    Ok(Answer {
        status,
        version: version.to_owned(),
        interim: Vec::new(),
        headers: Vec::new(),
        trailers: Vec::new(),
        body: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_and_trailers_are_told_from_the_answer() {
        let text =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Backend: old\r\n\r\nX-Sum: 7\r\n";
        let answer = read(text, b"hi".to_vec()).unwrap();
        assert_eq!((answer.status, answer.interim.as_slice()), (200, [100].as_slice()));
        assert_eq!(answer.header("x-backend"), Some("old"));
        assert_eq!(answer.trailers, [("X-Sum".to_owned(), "7".to_owned())]);
        assert!(read("HTTP/1.1 100 Continue\r\n\r\n", Vec::new()).is_err());
    }
}

//! Mail submission as a server speaks it (RFC 6409, RFC 4954), as far as a login and a message go.

use anyhow::{Context, Result, bail};
use shared::sasl::Mechanism;
use tokio::io::BufReader;

use super::{Login, Server, Stream, Tls, Verdict, decoded, response, say};

/// As whom a message asks for its verdict ([`Verdict::Ask`]).
const MESSAGE: &str = "(message)";

pub(super) async fn speak(server: &Server, mut stream: Stream) -> Result<()> {
    let mut logged_in = false;
    let name = server.name;
    loop {
        let Some(line) = server.line(&mut stream).await? else { return Ok(()) };
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match (verb.to_ascii_uppercase().as_str(), logged_in) {
            ("EHLO", _) => {
                let lines = server.manners.capabilities.replace(", ", "\r\n250-");
                format!("250-{name}\r\n250-{lines}\r\n250 HELP\r\n")
            }
            ("XCLIENT", false) => "220 anew\r\n".to_owned(),
            ("STARTTLS", false) => {
                let Some(Tls::StartTls(acceptor)) = &server.manners.tls else {
                    bail!("STARTTLS without a certificate");
                };
                let said = format!("220 go ahead\r\n{}", server.manners.injected);
                say(&mut stream, &said).await?;
                stream = BufReader::new(server.secured(acceptor, stream.into_inner()).await?);
                continue;
            }
            ("AUTH", false) => {
                logged_in = auth(server, &mut stream, rest).await?;
                continue;
            }
            ("AUTH", true) => "503 5.5.1 once is enough\r\n".to_owned(),
            ("QUIT", _) => return say(&mut stream, "221 2.0.0 bye\r\n").await,
            ("DATA", true) => {
                say(&mut stream, "354 go on\r\n").await?;
                while server.line(&mut stream).await?.context("a message without end")? != "." {}
                match server.manners.verdict {
                    Verdict::Ask => {
                        let authcid = MESSAGE.to_owned();
                        let message =
                            Login { authcid, authzid: String::new(), password: String::new() };
                        server.ask(&mut stream, message).await?
                    }
                    _ => format!("250 2.0.0 taken at {name}\r\n"),
                }
            }
            (_, true) => format!("250 2.0.0 done at {name}\r\n"),
            (_, false) => "530 5.7.0 not now\r\n".to_owned(),
        };
        say(&mut stream, &answer).await?;
    }
}

/// AUTH up to its verdict. What answers a challenge is a login of its own, whose password it is.
async fn auth(server: &Server, stream: &mut Stream, rest: &str) -> Result<bool> {
    let (mechanism, initial) = match rest.split_once(' ') {
        Some((mechanism, initial)) => (mechanism, Some(initial.to_owned())),
        None => (rest, None),
    };
    let login = match (mechanism, initial) {
        ("LOGIN", initial) => {
            let authcid = match initial {
                Some(initial) => initial,
                None => asked(server, stream, "334 VXNlcm5hbWU6\r\n").await?,
            };
            let password = asked(server, stream, "334 UGFzc3dvcmQ6\r\n").await?;
            let (authcid, password) = (decoded(&authcid)?, decoded(&password)?);
            Login { authzid: String::new(), authcid, password }
        }
        ("PLAIN", Some(initial)) => response(Mechanism::Plain, &initial)?,
        ("PLAIN", None) => response(Mechanism::Plain, &asked(server, stream, "334 \r\n").await?)?,
        (_, initial) => {
            let response = match initial {
                Some(initial) => initial,
                None => asked(server, stream, "334 \r\n").await?,
            };
            Login { authzid: String::new(), authcid: String::new(), password: decoded(&response)? }
        }
    };
    let mut answer = server.pronounce(stream, "", login).await?;
    while answer.starts_with("334 ") {
        let Some(password) = server.line(stream).await? else { return Ok(false) };
        if server.manners.verdict != Verdict::Ask {
            say(stream, "535 5.7.8 no more\r\n").await?;
            return Ok(false);
        }
        let login = Login { authzid: String::new(), authcid: String::new(), password };
        answer = server.pronounce(stream, "", login).await?;
    }
    Ok(answer.starts_with("235"))
}

async fn asked(server: &Server, stream: &mut Stream, challenge: &str) -> Result<String> {
    say(stream, challenge).await?;
    server.line(stream).await?.context("no response")
}

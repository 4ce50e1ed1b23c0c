//! POP3 as a server speaks it (RFC 1939, RFC 5034), as far as a login goes.

use anyhow::{Context, Result};
use shared::sasl::Mechanism;
use tokio::io::BufReader;

use super::{Login, Server, Stream, Tls, decoded, response, say};

pub(super) async fn speak(server: &Server, mut stream: Stream) -> Result<()> {
    let mut logged_in = false;
    let mut name = String::new();
    loop {
        let Some(line) = server.line(&mut stream).await? else { return Ok(()) };
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match (verb.to_ascii_uppercase().as_str(), logged_in) {
            ("CAPA", _) if server.manners.capabilities.is_empty() => {
                say(&mut stream, "-ERR what\r\n").await?;
            }
            ("CAPA", _) => {
                let lines = server.manners.capabilities.replace(", ", "\r\n");
                say(&mut stream, &format!("+OK list\r\n{lines}\r\n.\r\n")).await?;
            }
            ("XCLIENT", false) => say(&mut stream, "+OK Updated\r\n").await?,
            ("STLS", false) => {
                let Some(Tls::StartTls(acceptor)) = &server.manners.tls else {
                    say(&mut stream, "-ERR no TLS here\r\n").await?;
                    continue;
                };
                say(&mut stream, &format!("+OK begin\r\n{}", server.manners.injected)).await?;
                stream = BufReader::new(server.secured(acceptor, stream.into_inner()).await?);
            }
            ("USER", false) => {
                rest.clone_into(&mut name);
                say(&mut stream, "+OK\r\n").await?;
            }
            ("PASS", false) => {
                let (authcid, password) = (std::mem::take(&mut name), rest.to_owned());
                let login = Login { authzid: String::new(), authcid, password };
                logged_in = server.answer(&mut stream, "", login).await?;
            }
            ("AUTH", false) => {
                let login = auth(server, &mut stream, rest).await?;
                logged_in = server.answer(&mut stream, "", login).await?;
            }
            ("QUIT", _) => return say(&mut stream, "+OK bye\r\n").await,
            (_, true) => say(&mut stream, &format!("+OK done at {}\r\n", server.name)).await?,
            (_, false) => say(&mut stream, "-ERR not now\r\n").await?,
        }
    }
}

/// AUTH's arguments: a mechanism, and what it needs.
async fn auth(server: &Server, stream: &mut Stream, rest: &str) -> Result<Login> {
    let (mechanism, initial) = match rest.split_once(' ') {
        Some((mechanism, initial)) => (mechanism, initial.to_owned()),
        None => (rest, asked(server, stream, "").await?),
    };
    let mechanism = Mechanism::parse(mechanism.as_bytes()).context("a mechanism")?;
    match mechanism {
        Mechanism::Login => {
            let password = decoded(&asked(server, stream, "UGFzc3dvcmQ6").await?)?;
            Ok(Login { authzid: String::new(), authcid: decoded(&initial)?, password })
        }
        other => response(other, &initial),
    }
}

async fn asked(server: &Server, stream: &mut Stream, challenge: &str) -> Result<String> {
    say(stream, &format!("+ {challenge}\r\n")).await?;
    Ok(server.line(stream).await?.unwrap_or_default())
}

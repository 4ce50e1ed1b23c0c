//! IMAP as a server speaks it (RFC 3501), as far as a login goes.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shared::sasl::Mechanism;
use tokio::io::{AsyncReadExt, BufReader};

use super::{Login, Server, Stream, Tls, decoded, response, say};

pub(super) async fn speak(server: &Server, mut stream: Stream) -> Result<()> {
    let mut logged_in = false;
    loop {
        let Some(line) = server.line(&mut stream).await? else { return Ok(()) };
        let mut words = line.splitn(3, ' ');
        let tag = words.next().unwrap_or_default().to_owned();
        let verb = words.next().unwrap_or_default().to_ascii_uppercase();
        let rest = words.next().unwrap_or_default().to_owned();
        let capabilities = server.manners.capabilities;
        match (verb.as_str(), logged_in) {
            ("CAPABILITY", _) => {
                let said = format!("* CAPABILITY {capabilities}\r\n{tag} OK done\r\n");
                say(&mut stream, &said).await?;
            }
            ("ID", _) => say(&mut stream, &format!("* ID NIL\r\n{tag} OK done\r\n")).await?,
            ("STARTTLS", false) => {
                let Some(Tls::StartTls(acceptor)) = &server.manners.tls else {
                    bail!("STARTTLS without a certificate");
                };
                let said = format!("{tag} OK begin\r\n{}", server.manners.injected);
                say(&mut stream, &said).await?;
                stream = BufReader::new(server.secured(acceptor, stream.into_inner()).await?);
            }
            ("AUTHENTICATE", false) => {
                let (mechanism, initial) = match rest.split_once(' ') {
                    Some((mechanism, initial)) => (mechanism, Some(initial.to_owned())),
                    None => (&*rest, None),
                };
                let said = match initial {
                    Some(said) => said,
                    None => {
                        say(&mut stream, "+ \r\n").await?;
                        server.line(&mut stream).await?.unwrap_or_default()
                    }
                };
                let login = match mechanism {
                    "PLAIN" => response(Mechanism::Plain, &said)?,
                    mechanism => challenged(server, &mut stream, mechanism, said).await?,
                };
                logged_in = server.answer(&mut stream, &tag, login).await?;
            }
            ("LOGIN", false) => {
                let login = login(server, &mut stream, &rest).await?;
                logged_in = server.answer(&mut stream, &tag, login).await?;
            }
            ("LOGOUT", _) => {
                return say(&mut stream, &format!("* BYE\r\n{tag} OK done\r\n")).await;
            }
            (_, true) => {
                say(&mut stream, &format!("{tag} OK done at {}\r\n", server.name)).await?;
            }
            (_, false) => say(&mut stream, &format!("{tag} BAD not now\r\n")).await?,
        }
    }
}

/// LOGIN's arguments: quoted strings, or literals that come in lines of their own.
async fn login(server: &Server, stream: &mut Stream, rest: &str) -> Result<Login> {
    let mut arguments = Vec::new();
    let mut rest = rest.to_owned();
    while arguments.len() < 2 {
        rest = rest.trim_start().to_owned();
        if let Some(quoted) = rest.strip_prefix('"') {
            let (argument, more) = quoted.split_once('"').context("a quote without end")?;
            arguments.push(argument.to_owned());
            rest = more.to_owned();
        } else if let Some(size) = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')) {
            if !size.ends_with('+') {
                say(stream, "+ go\r\n").await?;
            }
            let mut octets = vec![0; size.trim_end_matches('+').parse()?];
            stream.read_exact(&mut octets).await?;
            arguments.push(String::from_utf8_lossy(&octets).into_owned());
            rest = server.line(stream).await?.unwrap_or_default();
        } else {
            bail!("no argument: {rest:?}");
        }
    }
    let password = arguments.pop().unwrap_or_default();
    let authcid = arguments.pop().unwrap_or_default();
    Ok(Login { authzid: String::new(), authcid, password })
}

/// Any other mechanism: the challenges of [`super::Manners::challenges`], in base64, and the client's
/// answers to them; the password is all that it has said, decoded, with `|` between.
async fn challenged(
    server: &Server,
    stream: &mut Stream,
    mechanism: &str,
    first: String,
) -> Result<Login> {
    let mut said = vec![decoded(&first)?];
    for challenge in server.manners.challenges {
        say(stream, &format!("+ {}\r\n", STANDARD.encode(challenge))).await?;
        said.push(decoded(&server.line(stream).await?.context("no answer")?)?);
    }
    let authcid = mechanism.to_owned();
    Ok(Login { authzid: String::new(), authcid, password: said.join("|") })
}

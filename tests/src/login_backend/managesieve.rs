//! ManageSieve as a server speaks it (RFC 5804), as far as a login goes.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shared::sasl::Mechanism;
use tokio::io::{AsyncReadExt, BufReader};

use super::{Login, Server, Stream, Tls, say};

/// What it lists, unless a test has it list something else.
pub(super) const CAPABILITIES: &str = "\"IMPLEMENTATION\" \"fake\"\r\n\"SASL\" \"PLAIN XOAUTH2\"\r\n\
     \"SIEVE\" \"fileinto vacation\"\r\n\"VERSION\" \"1.0\"";

pub(super) async fn speak(server: &Server, mut stream: Stream) -> Result<()> {
    let mut logged_in = false;
    loop {
        let Some(line) = line(server, &mut stream).await? else { return Ok(()) };
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let list = format!("{}\r\nOK \"listed\"\r\n", server.manners.capabilities);
        match (verb.to_ascii_uppercase().as_str(), logged_in) {
            ("CAPABILITY", _) => say(&mut stream, &list).await?,
            // Older than the RFC.
            ("NOOP", _) if !list.contains("VERSION") => {
                say(&mut stream, "NO \"what?\"\r\n").await?
            }
            ("NOOP", _) => say(&mut stream, &format!("OK (TAG {rest}) \"done\"\r\n")).await?,
            ("XCLIENT", false) if list.contains("\"XCLIENT\" \"in vain\"") => {
                say(&mut stream, "NO \"You are not from trusted IP\"\r\n").await?;
            }
            ("XCLIENT", false) => say(&mut stream, "OK \"updated\"\r\n").await?,
            ("STARTTLS", false) => {
                let Some(Tls::StartTls(acceptor)) = &server.manners.tls else {
                    bail!("STARTTLS without a certificate");
                };
                let said = format!("OK \"begin\"\r\n{}", server.manners.injected);
                say(&mut stream, &said).await?;
                stream = BufReader::new(server.secured(acceptor, stream.into_inner()).await?);
                say(&mut stream, &list).await?;
            }
            ("AUTHENTICATE", false) => {
                let strings: Vec<&str> =
                    rest.split(' ').map(|word| word.trim_matches('"')).collect();
                let login = match strings[..] {
                    ["PLAIN", response] => super::response(Mechanism::Plain, response)?,
                    [mechanism, response] => login(mechanism, response)?,
                    _ => bail!("no response: {rest:?}"),
                };
                logged_in = server.answer(&mut stream, "", login).await?;
            }
            // The answer to a challenge.
            (response, false) if response.starts_with('"') => {
                let login = login("response", line.trim_matches('"'))?;
                logged_in = server.answer(&mut stream, "", login).await?;
            }
            ("LOGOUT", _) => return say(&mut stream, "OK \"bye\"\r\n").await,
            (_, true) => say(&mut stream, &format!("OK \"done at {}\"\r\n", server.name)).await?,
            (_, false) => say(&mut stream, "NO \"not now\"\r\n").await?,
        }
    }
}

/// What was said to it other than by PLAIN.
fn login(what: &str, base64: &str) -> Result<Login> {
    let text = if base64 == "*" { b"*".to_vec() } else { STANDARD.decode(base64)? };
    let password = String::from_utf8_lossy(&text).into_owned();
    Ok(Login { authzid: String::new(), authcid: what.to_owned(), password })
}

/// The next line, in which a literal stands as if it had been quoted.
async fn line(server: &Server, stream: &mut Stream) -> Result<Option<String>> {
    let Some(line) = server.line(stream).await? else { return Ok(None) };
    let Some((before, size)) = line.strip_suffix("+}").and_then(|line| line.rsplit_once('{'))
    else {
        return Ok(Some(line));
    };
    let mut octets = vec![0; size.parse()?];
    stream.read_exact(&mut octets).await?;
    let behind = server.line(stream).await?.context("a literal and nothing behind it")?;
    Ok(Some(format!("{before}\"{}\"{behind}", String::from_utf8_lossy(&octets))))
}

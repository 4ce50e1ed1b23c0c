//! After the verdict no password is left in the memory of the service (LOG-14): looked for in all of it,
//! from outside, in every form in which it came and went.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tests::imap::Imap;
use tests::login_backend::{LoginBackend, Manners, Tls, Verdict};
use tests::node::{IMAP_HOST, Node, Options};
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;

/// Octets of a password that are looked for: any piece of this size would be worth a guess.
const PIECE: usize = 16;
/// Octets read from a process at once.
const CHUNK: usize = 1 << 20;

/// A password that no program has in it by chance, and its PLAIN response.
fn password(octets: usize) -> (String, String) {
    let password: String = std::iter::repeat_with(fastrand::alphanumeric).take(octets).collect();
    let response = STANDARD.encode(format!("\0ann@example.org\0{password}"));
    (password, response)
}

/// Everything that a process can read of itself.
fn memory_of(pid: i32, mut look: impl FnMut(&[u8])) -> Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("reading another's memory")?;
    let mut chunk = vec![0; CHUNK + PIECE];
    for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
        let (from, to) =
            line.split_once(' ').and_then(|(r, _)| r.split_once('-')).context("maps")?;
        let (mut at, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        while at < to {
            let size = chunk.len().min(usize::try_from(to - at)?);
            // Pages may be gone since the map was read.
            let Ok(read) = memory.read_at(&mut chunk[..size], at) else { break };
            look(&chunk[..read]);
            // Pieces across two chunks are seen by the overlap.
            at += CHUNK as u64;
        }
    }
    Ok(())
}

/// Where pieces of `secrets` are left. The beginning of a response holds no more than the name.
fn left_in(pid: i32, secrets: &[String]) -> Result<Vec<String>> {
    let pieces: HashSet<&[u8]> =
        secrets.iter().flat_map(|secret| secret.as_bytes()[24..].chunks_exact(PIECE)).collect();
    // Few places begin like one of them.
    let mut begins = vec![false; 1 << 16];
    for piece in &pieces {
        begins[usize::from(u16::from_be_bytes([piece[0], piece[1]]))] = true;
    }
    let mut left = Vec::new();
    memory_of(pid, |memory| {
        for (at, window) in memory.windows(PIECE).enumerate() {
            let begin = u16::from_be_bytes([window[0], window[1]]);
            if begins[usize::from(begin)] && pieces.contains(window) {
                let around = &memory[at.saturating_sub(32)..(at + 48).min(memory.len())];
                left.push(String::from_utf8_lossy(around).into_owned());
            }
        }
    })?;
    Ok(left)
}

#[tokio::test]
async fn no_password_is_left_in_memory_after_the_verdict() -> Result<()> {
    let (ca, table) = (TestCa::new()?, Table::create(Engine::Sqlite)?);
    let manners = Manners {
        capabilities: "IMAP4rev1 STARTTLS SASL-IR ID AUTH=PLAIN",
        verdict: Verdict::Say("TAG OK [CAPABILITY IMAP4rev1] in\r\n"),
        tls: Some(Tls::StartTls(ca.issue("localhost")?.acceptor()?)),
        ..Manners::default()
    };
    let backend = LoginBackend::start("old", manners).await?;
    let no = Manners { verdict: Verdict::Say("TAG NO no\r\n"), ..Manners::default() };
    let strict = LoginBackend::start("strict", no).await?;
    table.sql(
        "INSERT INTO domains (domain) VALUES ('example.org');
         INSERT INTO accounts (account, owner) VALUES
         ('ann@example.org', 'old'), ('bob@example.org', 'strict');",
    )?;
    let options = Options {
        name: "memory".into(),
        url: table.url(),
        backends: format!(
            "[backends.old.imap]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"starttls\"\n\
             server_name = \"localhost\"\nca_file = {:?}\n\
             [backends.strict.imap]\nhost = \"127.0.0.1\"\nport = {}\n",
            backend.address.port(),
            ca.file(),
            strict.address.port()
        ),
        ..Options::default()
    };
    let node = Node::start(&options, &ca).await?;
    let pid = node.proxy.as_ref().context("a login proxy")?.pid();

    let mut secrets = Vec::new();
    let mut sessions = Vec::new();
    for (octets, form) in [
        (64, "LOGIN ann@example.org {password}"),
        (64, "LOGIN \"ann@example.org\" \"{password}\""),
        (64, "LOGIN {15+}\r\nann@example.org {64+}\r\n{password}"),
        (64, "AUTHENTICATE PLAIN {response}"),
        (64, "AUTHENTICATE PLAIN\r\n{response}"),
        (3000, "LOGIN ann@example.org {password}"),
        (9000, "AUTHENTICATE PLAIN\r\n{response}"),
        // Cut short, refused, not understood.
        (64, "LOGIN bob@example.org {password}"),
        (64, "LOGIN nobody@example.org {password}"),
        (64, "LOGIN ann@example.org \"{password}"),
        (64, "AUTHENTICATE PLAIN {password}-{response}"),
    ] {
        for tls in [true, false] {
            let (password, response) = password(octets);
            let said = form.replace("{password}", &password).replace("{response}", &response);
            let mut client = if tls {
                Imap::connect_tls(node.imaps(), &ca.connector()?, IMAP_HOST).await?
            } else {
                Imap::connect(node.imap()).await?
            };
            // In two pieces, as the network may.
            let command = format!("a {said}\r\n");
            let (first, rest) = command.split_at(command.len() / 2);
            client.conversation.send(first.as_bytes()).await?;
            tokio::task::yield_now().await;
            client.conversation.send(rest.as_bytes()).await?;
            let mut answer = client.conversation.line().await?;
            while answer.starts_with('+') {
                answer = client.conversation.line().await?;
            }
            ensure!(answer.starts_with("a "), "{form}: {answer}");
            secrets.extend([password, response]);
            sessions.push(client);
        }
    }
    let left = left_in(pid, &secrets)?;
    ensure!(left.is_empty(), "{} pieces are left: {:#?}", left.len(), left.first_chunk::<1>());
    // The search itself finds what is there.
    let here = i32::try_from(std::process::id())?;
    ensure!(!left_in(here, &secrets)?.is_empty(), "the search finds nothing anywhere");
    Ok(())
}

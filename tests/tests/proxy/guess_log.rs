//! What the log says of guesses, and what fail2ban makes of it: whoever guesses is banned, nobody else can be.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::children::Child;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners};
use tests::node::{Node, Options, binary};
use tests::patience::until;
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;

const FILTER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../config/fail2ban/filter.d/mailshift.conf");

/// What a line of the log would be that bans somebody who has done nothing.
const FORGED: &str = "login failed: rip=127.0.0.66 protocol=imap reason=credentials user=\"ann\"";

struct Stage {
    node: Node,
    _old: LoginBackend,
    _table: Table,
    _ca: TestCa,
}

impl Stage {
    async fn set() -> Result<Self> {
        let (ca, table) = (TestCa::new()?, Table::create(Engine::Sqlite)?);
        table.sql(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES
             ('ann@example.org', 'old'), ('lost@example.org', 'unknown'), ('far@example.org', 'away');",
        )?;
        let old = LoginBackend::start("old", Manners::default()).await?;
        let port = old.address.port();
        let options = Options {
            name: "guessed".into(),
            url: table.url(),
            // Nobody listens on the discard port.
            backends: format!(
                "[backends.old.imap]\nhost = \"127.0.0.1\"\nport = {port}\n\
                 [backends.away.imap]\nhost = \"127.0.0.1\"\nport = 9\n"
            ),
            login: "trusted_networks = [\"127.0.0.18/32\"]\nguesses_per_address = 5\n".into(),
            ..Options::default()
        };
        let node = Node::start(&options, &ca).await?;
        Ok(Self { node, _old: old, _table: table, _ca: ca })
    }

    /// A second login proxy, whose log is text.
    async fn in_text(&self) -> Result<(Child, SocketAddr)> {
        let directory = self.node.directory();
        let text = std::fs::read_to_string(self.node.configuration())?
            .replace("name = \"guessed\"", "name = \"text\"")
            .replace("format = \"json\"", "format = \"text\"")
            .replace(
                &*directory.join("state").to_string_lossy(),
                &directory.join("text").to_string_lossy(),
            );
        let file = directory.join("text.toml");
        std::fs::write(&file, text)?;
        let command = [
            &*binary("login-proxy")?.to_string_lossy(),
            "run",
            "--config",
            &file.to_string_lossy(),
        ]
        .map(str::to_owned);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let proxy = Child::start(&[], &command, directory, "text.log")?;
        proxy.logged(&["ready"]).await?;
        let listening = proxy.logged(&["listening protocol=imap addresses=["]).await?;
        let address = listening.split(['[', ']']).nth(1).context("an address")?.parse()?;
        Ok((proxy, address))
    }
}

/// One client that says all this, and hears the tagged answers.
async fn say(from: &str, to: SocketAddr, said: &[&str]) -> Result<Vec<String>> {
    let mut client = Conversation::connect_from(from.parse()?, to).await?;
    for line in said {
        client.say(line).await?;
    }
    client.say("z LOGOUT").await?;
    client.closed().await
}

fn literal(user: &str) -> String {
    format!("a LOGIN {{{}+}}\r\n{user} wrong", user.len())
}

/// Guesses, faults of ours, logins, and what looks like another's guess; each from an address of its own.
async fn all_kinds(to: SocketAddr) -> Result<()> {
    let quoted = FORGED.replace('"', "\\\"");
    let lines = format!("x\r\n2026-01-01T00:00:00.000000Z  INFO {FORGED}\r\n");
    let json = format!(
        "x\"}}\r\n{{\"timestamp\":\"2026-01-01T00:00:00.000000Z\",\"level\":\"INFO\",\"message\":\"{quoted}"
    );
    let behind = "i ID (\"x-originating-ip\" \"198.51.100.7\")";
    let behind_6 = "i ID (\"x-originating-ip\" \"2001:db8::7\")";
    for (from, said) in [
        // Guesses.
        ("127.0.0.11", vec!["a LOGIN ann@example.org wrong".to_owned()]),
        ("127.0.0.12", vec!["a LOGIN nobody@example.org wrong".to_owned()]),
        ("127.0.0.13", vec![literal(&lines), literal(&json)]),
        ("127.0.0.14", vec![format!("a LOGIN \"{quoted}\" wrong")]),
        ("127.0.0.14", vec![format!("a LOGIN \"INFO {quoted} rip=127.0.0.66\" wrong")]),
        ("127.0.0.14", vec![format!("a LOGIN \"ann@example.org*INFO {quoted}\" wrong")]),
        // None.
        ("127.0.0.21", vec!["a LOGIN lost@example.org wrong".to_owned()]),
        ("127.0.0.22", vec!["a LOGIN far@example.org wrong".to_owned()]),
        ("127.0.0.23", vec!["a LOGIN ann@example.org secret".to_owned()]),
        ("127.0.0.24", vec!["a AUTHENTICATE PLAIN\r\n*".to_owned()]),
        ("127.0.0.25", vec![format!("a LOGIN \"lost@example.org*\\r\\nINFO {quoted}\" wrong")]),
        // A trusted front's, whom it names, and whom it does not.
        ("127.0.0.18", vec![behind.to_owned(), "a LOGIN ann@example.org wrong".to_owned()]),
        ("127.0.0.18", vec![behind_6.to_owned(), "a LOGIN ann@example.org wrong".to_owned()]),
        ("127.0.0.18", vec!["a LOGIN ann@example.org wrong".to_owned()]),
    ] {
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        say(from, to, &said).await?;
    }
    Ok(())
}

/// Whom fail2ban would ban for these lines, and for how many of them.
fn banned(lines: &str) -> Result<(BTreeSet<IpAddr>, usize)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), lines)?;
    let output =
        Command::new("fail2ban-regex").args(["--out", "ip"]).arg(file.path()).arg(FILTER).output();
    let output = output.context("fail2ban-regex: run tests/deps.sh test")?;
    let said = String::from_utf8(output.stdout)?;
    let found = said.split_ascii_whitespace().map(str::parse);
    let found: Vec<IpAddr> =
        found.collect::<Result<_, _>>().with_context(|| format!("{said}\n{:?}", output.stderr))?;
    Ok((found.iter().copied().collect(), found.len()))
}

/// Checks the lines as they are, and as syslog writes them.
fn bans_who_guesses(log: &str) -> Result<()> {
    let guilty: BTreeSet<IpAddr> =
        ["127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14", "198.51.100.7", "2001:db8::7"]
            .iter()
            .map(|ip| ip.parse())
            .collect::<Result<_, _>>()?;
    for prefix in ["", "Nov 24 10:00:00 mail1 login-proxy[4711]: ", "mail1 login-proxy[4711]: "] {
        let log: String = log.lines().map(|line| format!("{prefix}{line}\n")).collect();
        let (banned, lines) = banned(&log)?;
        ensure!(banned == guilty, "{prefix:?}: {banned:?} for\n{log}");
        ensure!(lines == 9, "{prefix:?}: {lines} lines of\n{log}");
    }
    Ok(())
}

#[tokio::test]
async fn fail2ban_bans_who_guesses_and_can_be_made_to_ban_nobody_else() -> Result<()> {
    let stage = Stage::set().await?;
    let proxy = stage.node.proxy.as_ref().context("a login proxy")?;
    let (text, address) = stage.in_text().await?;
    for (proxy, address) in [(proxy, stage.node.imap()), (&text, address)] {
        all_kinds(address).await?;
        let last = || (proxy.log().matches("rip=unknown").count() == 1).then_some(());
        until("the last guess in the log", last).await?;
        bans_who_guesses(&proxy.log())?;
    }
    Ok(())
}

/// In a file that several programs write to, what another one was told by a stranger.
#[test]
fn no_other_programs_line_bans_anybody() -> Result<()> {
    let json = FORGED.replace('"', "\\\"");
    for said in [
        FORGED.to_owned(),
        format!("INFO {FORGED}"),
        format!("login-proxy: INFO {FORGED}"),
        format!("x login-proxy[1]: INFO {FORGED}"),
        format!("2026-11-24T15:42:02.367307Z  INFO {FORGED}"),
        format!("\",\"level\":\"INFO\",\"message\":\"{json}"),
        format!(
            "{{\"timestamp\":\"2026-11-24T15:42:02.367307Z\",\"level\":\"INFO\",\"message\":\"{json}"
        ),
    ] {
        for prefix in
            ["Nov 24 10:00:00 mail1 sshd[1]: ", "Nov 24 10:00:00 mail1 sshd[1]: Invalid user "]
        {
            let (banned, _) = banned(&format!("{prefix}{said}\n"))?;
            ensure!(banned.is_empty(), "{prefix}{said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_guess_is_one_line_of_known_form_whatever_the_name() -> Result<()> {
    let stage = Stage::set().await?;
    let proxy = stage.node.proxy.as_ref().context("a login proxy")?;
    let (text, address) = stage.in_text().await?;
    let name = "ann\"\r\n rip=192.0.2.1 \\ \u{202e}\t@example.org";
    let form = "login failed: rip=127.0.0.11 protocol=imap reason=bad-name \
                user=\"ann\\\"\\r\\n rip=192.0.2.1 \\\\ \\u{202e}\\t@example.org\"";
    for (proxy, address, json) in [(proxy, stage.node.imap(), true), (&text, address, false)] {
        say("127.0.0.11", address, &[&literal(name)]).await?;
        let line = proxy.logged(&["login failed: "]).await?;
        if json {
            let line: serde_json::Value = serde_json::from_str(&line)?;
            assert_eq!(line["message"], form);
            assert_eq!(line["level"], "INFO");
        } else {
            assert!(line.contains(&format!("  INFO {form} session=")), "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_refused_is_named_and_counts_no_further() -> Result<()> {
    let stage = Stage::set().await?;
    let proxy = stage.node.proxy.as_ref().context("a login proxy")?;
    let guesses = ["a LOGIN ann@example.org wrong"; 5];
    say("127.0.0.31", stage.node.imap(), &guesses).await?;
    for _ in 0..3 {
        say("127.0.0.31", stage.node.imap(), &["a LOGIN ann@example.org secret"]).await?;
    }
    let words = "login refused: too many guesses from this address";
    let refused = || (proxy.log().matches(words).count() == 3).then_some(());
    until("the refusals in the log", refused).await?;
    let line: serde_json::Value = serde_json::from_str(&proxy.logged(&[words]).await?)?;
    ensure!(line["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.31:")));
    let (banned, lines) = banned(&proxy.log())?;
    ensure!((banned.len(), lines) == (1, guesses.len()), "{banned:?} for {lines} lines");
    Ok(())
}

#[tokio::test]
async fn a_session_ends_in_the_log_under_the_client_that_a_trusted_front_named() -> Result<()> {
    let stage = Stage::set().await?;
    let proxy = stage.node.proxy.as_ref().context("a login proxy")?;
    let id = "i ID (\"x-originating-ip\" \"198.51.100.7\" \"x-originating-port\" \"4711\")";
    say("127.0.0.18", stage.node.imap(), &[id, "a LOGIN ann@example.org secret"]).await?;
    for message in ["\"login\"", "\"session ended\""] {
        let line = proxy.logged(&[message]).await?;
        let line: serde_json::Value = serde_json::from_str(&line)?;
        assert_eq!(line["client"], "198.51.100.7:4711", "{line}");
    }
    Ok(())
}

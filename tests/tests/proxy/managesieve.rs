//! ManageSieve between real sockets (LOG-4 to LOG-12): who goes where, in which words a login is refused,
//! what comes before its turn. Backends' forms and faults are in `managesieve/backends.rs`.

mod backends;
mod tls;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shared::backend::{Backend, LoginProtocol};
use shared::ownership::map::AccountRow;
use std::time::Duration;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, PASSWORD, Verdict};
use tests::login_node::{LoginNode, Settings};

const WRONG: &str = "NO \"Authentication failed.\"";
const LATER: &str = "NO (TRYLATER) \"Account is temporarily unavailable. Please try again later.\"";
const BROKEN: &str = "NO \"Logins do not work at the moment. Please tell your administrator.\"";
const SYNC: &str = "NOOP \"in step\"";
const SHORT: Duration = Duration::from_millis(300);

fn good() -> Manners {
    Manners::of(LoginProtocol::ManageSieve)
}

fn asking() -> Manners {
    Manners { verdict: Verdict::Ask, ..good() }
}

fn saying(octets: &'static str) -> Manners {
    Manners { verdict: Verdict::Say(octets), ..good() }
}

fn settings() -> Settings {
    Settings { protocol: LoginProtocol::ManageSieve, ..Settings::default() }
}

/// `AUTHENTICATE` with a PLAIN response.
fn plain(local: &str, password: &str) -> String {
    plain_as("", local, password)
}

fn plain_as(authzid: &str, local: &str, password: &str) -> String {
    let response = STANDARD.encode(format!("{authzid}\0{local}@example.org\0{password}"));
    if response.len() > 1024 {
        return format!("AUTHENTICATE \"PLAIN\" {{{}+}}\r\n{response}", response.len());
    }
    format!("AUTHENTICATE \"PLAIN\" \"{response}\"")
}

/// Reads capabilities up to their OK.
async fn listed(client: &mut Conversation) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let line = client.line().await?;
        if line.starts_with("OK") {
            return Ok(lines);
        }
        anyhow::ensure!(line.starts_with('"'), "no capability: {line}");
        lines.push(line);
    }
}

async fn connect(node: &LoginNode) -> Result<Conversation> {
    let mut client = Conversation::connect(node.address).await?;
    listed(&mut client).await?;
    Ok(client)
}

async fn log_in(node: &LoginNode, local: &str) -> Result<Conversation> {
    let mut client = connect(node).await?;
    client.say(&plain(local, PASSWORD)).await?;
    client.expect("OK \"Logged in.\"").await?;
    Ok(client)
}

/// Says something that only the joined backend answers.
async fn is_at(client: &mut Conversation, backend: &str) -> Result<()> {
    client.say("LISTSCRIPTS").await?;
    client.expect(&format!("OK \"done at {backend}\"")).await?;
    Ok(())
}

/// Two backends, `old` and `new`, and a node at which `ann` and `bob` live on `old`.
struct Stage {
    old: LoginBackend,
    new: LoginBackend,
    node: LoginNode,
}

impl Stage {
    async fn set(old: Manners, new: Manners) -> Result<Self> {
        Self::set_with(old, new, settings()).await
    }

    async fn set_with(old: Manners, new: Manners, settings: Settings) -> Result<Self> {
        let old = LoginBackend::start("old", old).await?;
        let new = LoginBackend::start("new", new).await?;
        let node = LoginNode::start_with([old.configured(), new.configured()], settings)?;
        node.set_owner("ann", "old");
        node.set_owner("bob", "old");
        Ok(Self { old, new, node })
    }
}

fn at(backend: Backend) -> Result<LoginNode> {
    let node = LoginNode::start_with([backend], settings())?;
    node.set_owner("ann", "old");
    Ok(node)
}

/// A node with one backend, `old`, where `ann` lives.
async fn alone(manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", manners).await?;
    let node = at(old.configured())?;
    Ok((old, node))
}

#[tokio::test]
async fn a_login_is_joined_to_its_owner_who_answers_from_there() -> Result<()> {
    let Stage { old, new, node } = Stage::set(good(), good()).await?;
    node.set_owner("bob", "new");
    for (local, backend) in [("ann", "old"), ("bob", "new")] {
        let mut client = log_in(&node, local).await?;
        is_at(&mut client, backend).await?;
        client.say("CAPABILITY").await?;
        let list = listed(&mut client).await?;
        assert!(list.contains(&"\"SIEVE\" \"fileinto vacation\"".to_owned()), "{list:?}");
    }
    assert_eq!((old.logins(), new.logins()).0, ["ann@example.org"]);
    assert_eq!(new.logins(), ["bob@example.org"]);
    Ok(())
}

#[tokio::test]
async fn an_owners_no_is_passed_on_and_the_next_attempt_is_routed_afresh() -> Result<()> {
    let Stage { old, new, node } = Stage::set(good(), good()).await?;
    let mut client = connect(&node).await?;
    for _ in 0..2 {
        client.say(&plain("ann", "wrong")).await?;
        client.expect(WRONG).await?;
    }
    let connections = old.until("both attempts are closed", |all| {
        all.len() == 2 && all.iter().all(|connection| connection.closed)
    });
    let connections = connections.await?;
    assert!(connections.iter().all(|connection| connection.lines.len() == 1), "{connections:?}");
    node.set_owner("ann", "new");
    client.say(&plain("ann", PASSWORD)).await?;
    client.expect("OK").await?;
    is_at(&mut client, "new").await?;
    assert_eq!((old.connections().len(), new.connections().len()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn the_mailbox_that_is_acted_for_decides_and_the_names_go_on_unchanged() -> Result<()> {
    let Stage { old, new, node } = Stage::set(good(), good()).await?;
    node.set_owner("bob", "new");
    let mut client = connect(&node).await?;
    client.say(&plain_as("BOB@Example.org", "admin", PASSWORD)).await?;
    client.expect("OK").await?;
    assert!(old.connections().is_empty());
    let login = &new.connections()[0].logins[0];
    assert_eq!((&*login.authzid, &*login.authcid), ("BOB@Example.org", "admin@example.org"));
    Ok(())
}

#[tokio::test]
async fn what_is_not_known_for_now_is_to_be_tried_later_and_never_a_wrong_password() -> Result<()> {
    let Stage { old, new, node } = Stage::set(good(), good()).await?;
    node.set_owner("carl", "no-such-backend");
    node.set("dora", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    let mut client = connect(&node).await?;
    for (name, answer) in [("carl", LATER), ("dora", LATER), ("nobody", WRONG)] {
        client.say(&plain(name, PASSWORD)).await?;
        client.expect(answer).await?;
    }
    node.ownership.lease().end();
    for name in ["ann", "nobody"] {
        client.say(&plain(name, PASSWORD)).await?;
        client.expect(LATER).await?;
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_login_reaches_the_backend_in_order_and_once() -> Result<()> {
    let (old, node) = alone(good()).await?;
    let mut client = connect(&node).await?;
    let login = plain("ann", PASSWORD);
    client
        .send(
            format!("{login}\r\nPUTSCRIPT \"a\" {{8+}}\r\nLOGOUT\r\n\r\nNOOP \"b\"\r\n").as_bytes(),
        )
        .await?;
    client.expect("OK \"Logged in.\"").await?;
    client.expect("OK \"done at old\"").await?;
    client.expect("OK (TAG \"b\")").await?;
    let lines = &old.connections()[0].lines;
    assert_eq!(lines[1..], [SYNC, "PUTSCRIPT \"a\" {8+}", "", "NOOP \"b\""]);
    Ok(())
}

#[tokio::test]
async fn what_comes_while_a_login_is_under_way_waits_for_its_verdict() -> Result<()> {
    let (mut old, node) = alone(asking()).await?;
    let mut client = connect(&node).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    let asked = old.asked().await?;
    // More than is kept: the rest waits in the socket.
    let many = 10_000;
    let pipelined: String = (0..many).map(|number| format!("NOOP \"{number}\"\r\n")).collect();
    assert!(pipelined.len() > shared::wire::MAX_UNREAD);
    client.send(pipelined.as_bytes()).await?;
    assert!(asked.say("OK\r\n"));
    client.expect("OK \"Logged in.\"").await?;
    for number in 0..many {
        client.expect(&format!("OK (TAG \"{number}\")")).await?;
    }
    assert_eq!(old.connections()[0].lines.len(), 2 + many);
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_failed_login_is_ours_to_answer() -> Result<()> {
    let (old, node) = alone(good()).await?;
    let mut client = connect(&node).await?;
    let (wrong, right) = (plain("ann", "wrong"), plain("ann", PASSWORD));
    client
        .send(
            format!("{wrong}\r\nLISTSCRIPTS\r\nNOOP \"a\"\r\n{right}\r\nLISTSCRIPTS\r\n")
                .as_bytes(),
        )
        .await?;
    client.expect(WRONG).await?;
    client.expect("NO \"Not a command before login.\"").await?;
    client.expect("OK (TAG \"a\")").await?;
    client.expect("OK \"Logged in.\"").await?;
    client.expect("OK \"done at old\"").await?;
    let connections = old.connections();
    assert_eq!(connections[0].lines.len(), 1);
    assert_eq!(connections[1].lines[1..], [SYNC, "LISTSCRIPTS"]);
    Ok(())
}

#[tokio::test]
async fn flip_during_authentication_never_joins_the_old_owner() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), good()).await?;
    let mut client = connect(&node).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    client.expect("OK \"Logged in.\"").await?;
    is_at(&mut client, "new").await?;
    node.applied().await?;
    old.until("the former owner's connection is closed", |all| all[0].closed).await?;
    assert!(!asked.say("OK\r\n"), "its yes comes too late for anybody");
    assert_eq!((old.sessions(), new.sessions()), (0, 1));
    Ok(())
}

/// The yes has come, and what follows it is still being looked at: not a session yet.
#[tokio::test]
async fn a_flip_between_the_yes_and_the_noop_never_joins_the_old_owner() -> Result<()> {
    // Lists capabilities without an end, so that the attempt stays there.
    let Stage { old, new, node } = Stage::set(saying("OK\r\n\"SIEVE\" \"a\"\r\n"), good()).await?;
    let mut client = connect(&node).await?;
    // The NOOP's OK is taken for the list's; nothing else comes.
    client.say(&plain("ann", PASSWORD)).await?;
    old.until("the NOOP", |all| all.first().is_some_and(|c| c.lines.len() == 2)).await?;
    node.set_owner("ann", "new");
    client.expect("OK \"Logged in.\"").await?;
    is_at(&mut client, "new").await?;
    old.until("the former owner's connection is closed", |all| all[0].closed).await?;
    assert_eq!(new.sessions(), 1);
    Ok(())
}

#[tokio::test]
async fn a_flip_ends_the_joined_session_with_a_plain_close() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set(good(), good()).await?;
    let mut ann = log_in(&node, "ann").await?;
    let mut bob = log_in(&node, "bob").await?;
    node.set_owner("ann", "new");
    assert!(ann.closed().await?.is_empty());
    node.applied().await?;
    old.until("it is closed there", |all| all[0].closed).await?;
    is_at(&mut bob, "old").await?;
    is_at(&mut log_in(&node, "ann").await?, "new").await?;
    Ok(())
}

#[tokio::test]
async fn a_hold_during_authentication_joins_nobody() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), good()).await?;
    let mut client = connect(&node).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    let asked = old.asked().await?;
    node.hold("ann", "old");
    client.expect(LATER).await?;
    node.applied().await?;
    assert!(!asked.say("OK\r\n") || old.sessions() == 0);
    assert_eq!(new.sessions(), 0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_guesses_or_is_slow_or_comes_when_we_go_is_told_so() -> Result<()> {
    let mut few = settings();
    few.rules.max_failures = 2;
    few.rules.login_timeout = SHORT;
    few.max_connections = 2;
    let Stage { node, .. } = Stage::set_with(good(), good(), few).await?;
    let mut client = connect(&node).await?;
    client.send(format!("{0}\r\n{0}\r\n", plain("nobody", "x")).as_bytes()).await?;
    assert_eq!(client.closed().await?, [WRONG, WRONG, "BYE \"Too many failed logins.\""]);
    for said in [&b""[..], b"AUTH", b"NOOP {3+}\r\n", b"AUTHENTICATE \"PLAIN\"\r\n"] {
        let mut client = connect(&node).await?;
        client.send(said).await?;
        let heard = client.closed().await?;
        let last = heard.last().map(String::as_str);
        assert_eq!(last, Some("BYE \"Disconnected for inactivity during login.\""), "{heard:?}");
    }
    let (_one, _two) = (log_in(&node, "ann").await?, log_in(&node, "bob").await?);
    let mut third = Conversation::connect(node.address).await?;
    let full = "BYE (TRYLATER) \"Too many connections, try again later.\"";
    assert_eq!(third.closed().await?, [full]);
    Ok(())
}

#[tokio::test]
async fn a_stop_says_goodbye_before_login_and_lets_sessions_finish() -> Result<()> {
    let (_old, node) = alone(good()).await?;
    let mut waiting = connect(&node).await?;
    let mut session = log_in(&node, "ann").await?;
    node.lifecycle.stop().cancel();
    let bye = "BYE (TRYLATER) \"Server is restarting, please connect again.\"";
    assert_eq!(waiting.closed().await?, [bye]);
    is_at(&mut session, "old").await
}

#[tokio::test]
async fn what_has_no_measure_and_what_is_nonsense_ends_the_connection() -> Result<()> {
    let (old, node) = alone(good()).await?;
    let long = "x".repeat(30_000);
    for (bomb, bye) in [
        ("PUTSCRIPT \"a\" {30000+}\r\n".to_owned(), "BYE \"Command too large.\""),
        (
            format!("AUTHENTICATE \"PLAIN\"\r\n{{99999999999999999999+}}\r\n{long}"),
            "BYE \"Command too large.\"",
        ),
        (long.clone(), "BYE \"Command too large.\""),
        (format!("NOOP \"{long}"), "BYE \"Command too large.\""),
        (format!("AUTHENTICATE \"PLAIN\"\r\n\"{long}"), "BYE \"Command too large.\""),
        (format!("NOOP {}", "{9000+}\r\n".to_owned() + &long), "BYE \"Command too large.\""),
        ("GET / HTTP/1.1\r\n".repeat(20), "BYE \"Too many wrong commands.\""),
    ] {
        let mut client = connect(&node).await?;
        client.send(bomb.as_bytes()).await?;
        let heard = client.closed().await?;
        assert_eq!(heard.last().map(String::as_str), Some(bye), "{bomb:.40}: {heard:?}");
    }
    assert!(old.connections().is_empty());
    Ok(())
}

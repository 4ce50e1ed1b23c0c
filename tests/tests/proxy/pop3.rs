//! POP3: who goes where, in which words a login is refused, and what a backend is told (LOG-2, FWD-2).

mod faults;
mod flips;
mod forms;

use anyhow::Result;
use shared::backend::LoginProtocol;
use shared::ownership::map::AccountRow;
use shared::sasl::{Mechanism, Mechanisms, encode_base64};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

use crate::{Stage, alone, configured, two};

const WRONG: &str = "-ERR [AUTH] Authentication failed.";
const LATER: &str = "-ERR [SYS/TEMP] Account is temporarily unavailable. Please try again later.";

fn manners() -> Manners {
    Manners::of(LoginProtocol::Pop3)
}

fn asking() -> Manners {
    Manners { verdict: Verdict::Ask, ..manners() }
}

fn saying(octets: &'static str) -> Manners {
    Manners { verdict: Verdict::Say(octets), ..manners() }
}

fn settings() -> Settings {
    Settings { protocol: LoginProtocol::Pop3, ..Settings::default() }
}

async fn set() -> Result<Stage> {
    Stage::set_with(manners(), manners()).await
}

/// USER and PASS, up to the verdict, which is not read yet.
async fn try_in(client: &mut Conversation, name: &str, password: &str) -> Result<()> {
    client.say(&format!("USER {name}")).await?;
    client.expect("+OK").await?;
    client.say(&format!("PASS {password}")).await
}

#[tokio::test]
async fn a_login_is_joined_to_its_owner() -> Result<()> {
    let Stage { old, new, node } = set().await?;
    node.set_owner("bob", "new");
    for (local, at) in [("ann", "old"), ("bob", "new")] {
        let mut client = node.log_in(local).await?;
        client.say("CAPA").await?;
        client.expect("+OK list").await?;
        while client.line().await? != "." {}
        client.say("STAT").await?;
        client.expect(&format!("+OK done at {at}")).await?;
    }
    assert_eq!(old.logins(), ["ann@example.org"]);
    assert_eq!(new.logins(), ["bob@example.org"]);
    Ok(())
}

#[tokio::test]
async fn a_failed_login_is_never_joined_and_its_client_stays_with_us() -> Result<()> {
    let (old, node) = alone(manners()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "wrong").await?;
    client.expect(WRONG).await?;
    client.say("STAT").await?;
    client.expect("-ERR Not a command before login.").await?;
    let connections = old.until("the failed attempt is closed", |all| all[0].closed).await?;
    assert_eq!(connections.len(), 1);
    assert_eq!(connections[0].lines.len(), 2, "CAPA and the login: {:?}", connections[0].lines);
    Ok(())
}

#[tokio::test]
async fn each_attempt_reads_the_owner_of_now_on_a_connection_of_its_own() -> Result<()> {
    let Stage { old, new, node } = set().await?;
    let mut client = node.connect().await?;
    for _ in 0..2 {
        try_in(&mut client, "ann@example.org", "wrong").await?;
        client.expect(WRONG).await?;
    }
    node.set_owner("ann", "new");
    try_in(&mut client, "ann@example.org", "secret").await?;
    client.expect("+OK Logged in.").await?;
    client.say("STAT").await?;
    client.expect("+OK done at new").await?;
    old.until("the failed attempts are closed", |all| all.iter().all(|c| c.closed)).await?;
    assert_eq!((old.connections().len(), new.connections().len()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn spaces_of_a_name_and_a_password_reach_the_backend() -> Result<()> {
    let (mut old, node) = alone(asking()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "  two words  ").await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, "  two words  ");
    asked.say("+OK in\r\n");
    client.expect("+OK Logged in.").await?;
    Ok(())
}

#[tokio::test]
async fn the_mailbox_that_is_acted_for_decides_and_the_names_go_on_unchanged() -> Result<()> {
    let Stage { old, new, node } = set().await?;
    node.set_owner("bob", "new");
    let mut client = node.connect().await?;
    // authzid BOB@Example.org, authcid admin.
    client.say("AUTH PLAIN Qk9CQEV4YW1wbGUub3JnAGFkbWluAHNlY3JldA==").await?;
    client.expect("+OK Logged in.").await?;
    assert!(old.connections().is_empty());
    let login = &new.connections()[0].logins[0];
    assert_eq!((&*login.authzid, &*login.authcid), ("BOB@Example.org", "admin"));
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_has_is_a_wrong_password_and_no_backend_is_asked() -> Result<()> {
    let Stage { old, new, node } = set().await?;
    node.set("list", AccountRow { owner: "old".into(), held: false, login: false, flipped: None });
    for name in ["nobody@example.org", "ann@elsewhere.example", "list@example.org", "two words"] {
        let mut client = node.connect().await?;
        try_in(&mut client, name, "secret").await?;
        assert_eq!(client.line().await?, WRONG, "{name:?}");
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_not_known_for_now_is_temporary_and_never_a_wrong_password() -> Result<()> {
    let Stage { old, new, node } = set().await?;
    node.set_owner("carl", "no-such-backend");
    node.set("dora", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    let mut client = node.connect().await?;
    for name in ["carl", "dora"] {
        try_in(&mut client, &format!("{name}@example.org"), "secret").await?;
        client.expect(LATER).await?;
    }
    node.ownership.lease().end();
    for name in ["ann", "nobody"] {
        try_in(&mut client, &format!("{name}@example.org"), "secret").await?;
        client.expect(LATER).await?;
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_login_reaches_the_backend_in_order_and_once() -> Result<()> {
    let (mut old, node) = alone(asking()).await?;
    let mut client = node.connect().await?;
    client.send(b"USER ann@example.org\r\nPASS secret\r\nSTAT\r\nLIST\r\n").await?;
    let asked = old.asked().await?;
    client.send(b"UIDL\r\n").await?;
    asked.say("+OK in\r\n");
    for expected in ["+OK", "+OK Logged in.", "+OK done", "+OK done", "+OK done"] {
        client.expect(expected).await?;
    }
    let lines = &old.connections()[0].lines;
    assert_eq!(lines[2..], ["STAT", "LIST", "UIDL"]);
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_failed_login_is_ours_to_answer() -> Result<()> {
    let (old, node) = alone(manners()).await?;
    let mut client = node.connect().await?;
    client
        .send(
            b"USER ann@example.org\r\nPASS wrong\r\nSTAT\r\nNOOP\r\n\
              USER ann@example.org\r\nPASS secret\r\nSTAT\r\n",
        )
        .await?;
    for expected in ["+OK", WRONG, "-ERR Not a command", "+OK", "+OK", "+OK Logged in."] {
        client.expect(expected).await?;
    }
    client.expect("+OK done at old").await?;
    let connections = old.connections();
    assert_eq!(connections[0].lines.len(), 2);
    assert_eq!(connections[1].lines[2..], ["STAT"]);
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_behind_its_yes_follows_ours_in_order() -> Result<()> {
    let (_old, node) = alone(saying("+OK in\r\n-ERR [SYS/TEMP] mind\r\n")).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    client.expect("+OK Logged in.").await?;
    client.expect("-ERR [SYS/TEMP] mind").await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_guesses_is_sent_away() -> Result<()> {
    let (old, new) = two(manners(), manners()).await?;
    let mut settings = settings();
    settings.rules.max_failures = 2;
    let node = LoginNode::start_with(configured(&old, &new), settings)?;
    node.set_owner("ann", "old");
    let mut client = node.connect().await?;
    for name in ["ann", "nobody"] {
        try_in(&mut client, &format!("{name}@example.org"), "wrong").await?;
        client.expect(WRONG).await?;
    }
    assert_eq!(client.closed().await?, ["-ERR Too many failed logins."]);
    Ok(())
}

#[tokio::test]
async fn lines_without_end_and_nonsense_without_end_are_refused() -> Result<()> {
    let (_old, node) = alone(manners()).await?;
    let long = "x".repeat(30_000);
    for bomb in [long.clone(), format!("PASS {long}"), format!("AUTH PLAIN\r\n{long}")] {
        let mut client = node.connect().await?;
        client.send(bomb.as_bytes()).await?;
        let heard = client.closed().await?;
        assert_eq!(heard.last().map(String::as_str), Some("-ERR Line too long."));
    }
    let mut client = node.connect().await?;
    client.send("GET / HTTP/1.1\r\n".repeat(20).as_bytes()).await?;
    let heard = client.closed().await?;
    assert_eq!(heard.last().map(String::as_str), Some("-ERR Too many wrong commands."));
    Ok(())
}

#[tokio::test]
async fn every_end_before_login_has_words_of_its_own() -> Result<()> {
    let (old, new) = two(manners(), manners()).await?;
    let node = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        LoginNode::start_with(configured(&old, &new), settings)
    };
    let slow = node(|s| s.rules.login_timeout = std::time::Duration::from_millis(300))?;
    for said in [&b""[..], b"USER ann", b"USER ann\r\n", b"AUTH PLAIN\r\n"] {
        let mut client = slow.connect().await?;
        client.send(said).await?;
        let heard = client.closed().await?;
        let last = heard.last().map(String::as_str);
        assert_eq!(last, Some("-ERR Disconnected for inactivity during login."), "{heard:?}");
    }
    let full = node(|s| s.max_connections = 1)?;
    let _first = full.connect().await?;
    let heard = Conversation::connect(full.address).await?.closed().await?;
    assert_eq!(heard, ["-ERR [SYS/TEMP] Too many connections, try again later."]);
    let stopping = node(|_| {})?;
    let mut waiting = stopping.connect().await?;
    stopping.lifecycle.stop().cancel();
    let heard = waiting.closed().await?;
    assert_eq!(heard, ["-ERR [SYS/TEMP] Server is restarting, please connect again."]);
    Ok(())
}

/// A node that offers every mechanism, and its backend's own.
async fn offering(
    capabilities: &'static str,
    verdict: Verdict,
) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", Manners { capabilities, verdict, ..manners() }).await?;
    let mut offer = login_proxy::offer::pop3::modest();
    offer.mechanisms = Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str));
    let node =
        LoginNode::start_with([old.configured()], Settings { offer: Some(offer), ..settings() })?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

/// An XOAUTH2 response with that token, in base64.
fn xoauth2(token: &str) -> String {
    let response = format!("user=ann@example.org\x01auth=Bearer {token}\x01\x01");
    String::from_utf8_lossy(encode_base64(response.as_bytes()).expose()).into_owned()
}

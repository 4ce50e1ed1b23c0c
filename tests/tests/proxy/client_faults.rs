//! Clients that are slow, gone, confused or hostile, and a service that stops.

use std::time::Duration;

use anyhow::Result;
use tests::conversation::Conversation;
use tests::login_backend::{Manners, Verdict};
use tests::login_node::{LoginNode, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{alone, configured, two};

const SHORT: Duration = Duration::from_millis(300);

async fn node_with(change: impl FnOnce(&mut Settings)) -> Result<LoginNode> {
    let (old, new) = two(Manners::default(), Manners::default()).await?;
    let mut settings = Settings::default();
    change(&mut settings);
    let node = LoginNode::start_with(configured(&old, &new), settings)?;
    node.set_owner("ann", "old");
    Ok(node)
}

#[tokio::test]
async fn a_client_that_goes_while_its_login_is_under_way_leaves_nothing_behind() -> Result<()> {
    let (mut old, node) = alone(Manners { verdict: Verdict::Ask, ..Manners::default() }).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    drop(client);
    old.until("the attempt is closed", |all| all[0].closed).await?;
    assert!(!asked.say("TAG OK in\r\n"));
    let listening = || (node.lifecycle.tasks() == 1).then_some(());
    tests::patience::until("the login's task to end", listening).await?;
    assert_eq!(node.ownership.registry().counts(), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_log_in_in_time_is_told_so() -> Result<()> {
    let node = node_with(|settings| settings.rules.login_timeout = SHORT).await?;
    for said in [&b""[..], b"a LOG", b"a LOGIN {3}\r\n", b"a AUTHENTICATE PLAIN\r\n", b"a NOOP\r\n"]
    {
        let mut client = node.connect().await?;
        client.send(said).await?;
        let heard = client.closed().await?;
        let last = heard.last().map(String::as_str);
        assert_eq!(last, Some("* BYE Disconnected for inactivity during login."), "{heard:?}");
    }
    Ok(())
}

#[tokio::test]
async fn time_for_the_login_does_not_start_again_with_each_command() -> Result<()> {
    let node = node_with(|settings| settings.rules.login_timeout = SHORT).await?;
    let mut client = node.connect().await?;
    // It says something all the time, until it is sent away.
    loop {
        client.say("a NOOP").await.ok();
        match client.next_line().await? {
            Some(line) if line.starts_with("a OK") => {}
            other => {
                let bye = "* BYE Disconnected for inactivity during login.";
                assert!(other.as_deref().is_none_or(|line| line == bye), "{other:?}");
                return Ok(());
            }
        }
    }
}

#[tokio::test]
async fn commands_without_end_and_literals_without_measure_are_refused() -> Result<()> {
    let node = node_with(|_| {}).await?;
    let long = |octets: usize| "x".repeat(octets);
    let synchronizing = format!("a LOGIN {{99999999999}}\r\nb NOOP {}\r\n", long(10));
    let mut client = node.connect().await?;
    client.send(synchronizing.as_bytes()).await?;
    client.expect("a BAD [TOOBIG]").await?;
    client.expect("b BAD").await?;
    for bomb in [
        "a LOGIN {5000+}\r\n".to_owned(),
        "a LOGIN {99999999999999999999999+}\r\n".to_owned(),
        long(30_000),
        format!("a LOGIN {} ", long(30_000)),
        format!("a AUTHENTICATE PLAIN {}", long(30_000)),
        format!("a AUTHENTICATE PLAIN\r\n{}", long(30_000)),
        format!("a ID ({}", "{4000+}\r\n".to_owned() + &long(30_000)),
    ] {
        let mut client = node.connect().await?;
        client.send(bomb.as_bytes()).await?;
        let heard = client.closed().await?;
        let last = heard.last().map(String::as_str);
        assert_eq!(last, Some("* BYE Command too large."), "{:.40}: {heard:?}", bomb);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_speaks_another_protocol_is_sent_away() -> Result<()> {
    let node = node_with(|_| {}).await?;
    let mut client = node.connect().await?;
    client.send("GET / HTTP/1.1\r\n".repeat(20).as_bytes()).await?;
    let heard = client.closed().await?;
    assert_eq!(heard.last().map(String::as_str), Some("* BYE Too many wrong commands."));
    Ok(())
}

/// Clients on this machine may log in without TLS; others may not, unless that is configured.
#[tokio::test]
async fn no_password_of_another_host_is_taken_in_the_clear() -> Result<()> {
    let node = node_with(|settings| settings.proxied = true).await?;
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 143\r\n").await?;
    let greeting = client.expect("* OK [CAPABILITY ").await?;
    assert!(greeting.contains("LOGINDISABLED") && !greeting.contains("AUTH="), "{greeting}");
    client.say("a LOGIN ann@example.org secret").await?;
    client.expect("a NO [PRIVACYREQUIRED]").await?;
    let mut local = Conversation::connect(node.address).await?;
    local.send(b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 143\r\n").await?;
    let greeting = local.expect("* OK [CAPABILITY ").await?;
    assert!(greeting.contains("AUTH=PLAIN") && !greeting.contains("LOGINDISABLED"), "{greeting}");
    Ok(())
}

#[tokio::test]
async fn a_stop_says_goodbye_before_login_and_lets_sessions_finish() -> Result<()> {
    let node = node_with(|_| {}).await?;
    let mut waiting = node.connect().await?;
    let mut session = node.log_in("ann").await?;
    node.lifecycle.stop().cancel();
    let heard = waiting.closed().await?;
    assert_eq!(heard, ["* BYE [UNAVAILABLE] Server is restarting, please connect again."]);
    session.say("a NOOP").await?;
    session.expect("a OK done at old").await?;
    node.lifecycle.end().cancel();
    assert!(session.closed().await?.is_empty());
    assert_eq!(node.lifecycle.shut_down(Duration::ZERO).await, 0);
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_process_does_not_wait_for_a_login_under_way() -> Result<()> {
    let (mut old, node) = alone(Manners { verdict: Verdict::Ask, ..Manners::default() }).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let _asked = old.asked().await?;
    assert_eq!(node.lifecycle.shut_down(Duration::ZERO).await, 0, "tasks that did not end");
    assert!(client.closed().await?.is_empty());
    old.until("the attempt is closed", |all| all[0].closed).await?;
    Ok(())
}

#[tokio::test]
async fn a_silent_session_ends_after_its_idle_time() -> Result<()> {
    let node = node_with(|settings| settings.rules.idle_timeout = SHORT).await?;
    let mut session = node.log_in("ann").await?;
    assert!(session.closed().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_client_that_has_said_all_and_listens_is_answered() -> Result<()> {
    let (_old, node) = alone(Manners::default()).await?;
    let mut socket = TcpStream::connect(node.address).await?;
    socket.write_all(b"a LOGIN ann@example.org secret\r\nb NOOP\r\nc LOGOUT\r\n").await?;
    socket.shutdown().await?;
    let mut said = String::new();
    socket.read_to_string(&mut said).await?;
    for answer in ["a OK", "b OK done at old", "c OK done"] {
        assert!(said.contains(answer), "{answer}: {said}");
    }
    Ok(())
}

/// Each refusal that is not about the credentials takes longer than the one before, so within the time for a
/// login there are few of them: whoever comes again and again must not fill the log.
#[tokio::test]
async fn a_client_that_is_put_off_again_and_again_is_answered_a_few_times_only() -> Result<()> {
    let node = node_with(|settings| settings.rules.login_timeout = Duration::from_secs(2)).await?;
    node.set_owner("carl", "no-such-backend");
    let mut client = node.connect().await?;
    client.send("a LOGIN carl@example.org secret\r\n".repeat(200).as_bytes()).await?;
    let said = client.closed().await?;
    let refused = said.iter().filter(|line| line.starts_with("a NO [UNAVAILABLE]")).count();
    assert!((1..20).contains(&refused), "{refused} answers");
    Ok(())
}

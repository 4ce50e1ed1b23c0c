//! Who goes where, in which words a login is refused, and what comes before its turn.

use anyhow::Result;
use shared::ownership::map::AccountRow;
use tests::conversation::Conversation;
use tests::login_backend::{Manners, Verdict};
use tests::login_node::LoginNode;

use super::*;

#[tokio::test]
async fn a_login_is_joined_to_its_owner_and_its_mail_goes_there() -> Result<()> {
    let Stage { old, new, node } = Stage::set(manners(), manners()).await?;
    node.set_owner("bob", "new");
    for (local, at) in [("ann", "old"), ("bob", "new")] {
        let mut client = log_in(&node, local).await?;
        client.say("MAIL FROM:<a@example.org>").await?;
        client.expect(&format!("250 2.0.0 done at {at}")).await?;
        client.say("DATA").await?;
        client.expect("354").await?;
        client.send(b"Subject: a\r\n\r\n..\r\n.\r\n").await?;
        client.expect(&format!("250 2.0.0 taken at {at}")).await?;
        client.say("QUIT").await?;
        client.expect("221").await?;
        assert!(client.closed().await?.is_empty());
    }
    assert_eq!(old.logins(), ["ann@example.org"]);
    assert_eq!(new.logins(), ["bob@example.org"]);
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_message_reaches_a_backend_before_login() -> Result<()> {
    let (old, node) = alone(manners()).await?;
    let mut client = come(&node).await?;
    client.send(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n").await?;
    for _ in 0..3 {
        client.expect(FIRST).await?;
    }
    client.send(b"BDAT 6 LAST\r\nQUIT\r\nVRFY ann\r\n").await?;
    client.expect(FIRST).await?;
    client.expect(FIRST).await?;
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_owners_no_is_passed_on_and_the_next_attempt_is_routed_afresh() -> Result<()> {
    let Stage { old, new, node } = Stage::set(manners(), manners()).await?;
    node.set_owner("bob", "new");
    let mut client = come(&node).await?;
    for _ in 0..2 {
        client.say(&plain("ann", "wrong")).await?;
        client.expect(WRONG).await?;
    }
    client.say(&plain("bob", "secret")).await?;
    client.expect(YES).await?;
    client.say("NOOP").await?;
    client.expect("250 2.0.0 done at new").await?;
    let connections = old.until("both are closed", |all| all.iter().all(|c| c.closed)).await?;
    assert_eq!((connections.len(), old.logins().len(), new.logins().len()), (2, 2, 1));
    assert!(connections.iter().all(|c| c.lines.len() == 2), "EHLO and AUTH alone: {connections:?}");
    Ok(())
}

#[tokio::test]
async fn an_attempt_reads_the_owner_of_now() -> Result<()> {
    let Stage { old, new, node } = Stage::set(manners(), manners()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "wrong")).await?;
    client.expect(WRONG).await?;
    node.set_owner("ann", "new");
    client.say(&plain("ann", "secret")).await?;
    client.expect(YES).await?;
    assert_eq!((old.logins().len(), new.logins().len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_login_reaches_the_backend_in_order_and_once() -> Result<()> {
    let (old, node) = alone(manners()).await?;
    let mut client = come(&node).await?;
    let login = plain("ann", "secret");
    let said = format!("{login}\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nNOOP\r\n");
    client.send(said.as_bytes()).await?;
    client.expect(YES).await?;
    for _ in 0..3 {
        client.expect("250 2.0.0 done at old").await?;
    }
    let lines = &old.connections()[0].lines;
    assert_eq!(lines[2..], ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "NOOP"]);
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_failed_login_is_ours_to_answer() -> Result<()> {
    let (old, node) = alone(manners()).await?;
    let mut client = come(&node).await?;
    let (wrong, right) = (plain("ann", "wrong"), plain("ann", "secret"));
    let said = format!("{wrong}\r\nMAIL FROM:<a@b.example>\r\nNOOP\r\n{right}\r\n{right}\r\n");
    client.send(said.as_bytes()).await?;
    client.expect(WRONG).await?;
    client.expect(FIRST).await?;
    client.expect("250 2.0.0 Ok").await?;
    client.expect(YES).await?;
    // The second AUTH of a session is its backend's to refuse.
    client.expect("503 5.5.1 once is enough").await?;
    let connections = old.connections();
    assert_eq!((connections[0].lines.len(), connections[1].lines.len()), (2, 3));
    Ok(())
}

#[tokio::test]
async fn what_comes_while_a_login_is_under_way_waits_for_its_verdict() -> Result<()> {
    let (mut old, node) = alone(Manners { verdict: Verdict::Ask, ..manners() }).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    let asked = old.asked().await?;
    client.send(b"MAIL FROM:<a@b.example>\r\nNOOP\r\n").await?;
    assert!(asked.say("235 in\r\n421 4.3.2 and out\r\n"));
    client.expect(YES).await?;
    client.expect("421 4.3.2 and out").await?;
    client.expect("250 2.0.0 done at old").await?;
    client.expect("250 2.0.0 done at old").await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_has_is_a_wrong_password_and_no_backend_is_asked() -> Result<()> {
    let Stage { old, new, node } = Stage::set(manners(), manners()).await?;
    node.set("list", AccountRow { owner: "old".into(), held: false, login: false, flipped: None });
    let mut client = come(&node).await?;
    for local in ["nobody", "list", "a\u{7f}n"] {
        client.say(&plain(local, "secret")).await?;
        assert_eq!(client.line().await?, WRONG, "{local}");
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_held_account_an_unknown_owner_and_a_stale_map_are_refused_for_now() -> Result<()> {
    let Stage { old, new, node } = Stage::set(manners(), manners()).await?;
    node.set_owner("carl", "no-such-backend");
    node.set("dora", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    let mut client = come(&node).await?;
    for local in ["carl", "dora"] {
        client.say(&plain(local, "secret")).await?;
        client.expect(LATER).await?;
    }
    node.ownership.lease().end();
    for local in ["ann", "nobody"] {
        client.say(&plain(local, "secret")).await?;
        client.expect(LATER).await?;
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_client_that_guesses_or_dawdles_or_is_one_too_many_is_sent_away_with_421() -> Result<()> {
    let old = LoginBackend::start("old", manners()).await?;
    let start = |change: &dyn Fn(&mut Settings)| -> Result<LoginNode> {
        let mut settings = settings();
        change(&mut settings);
        let node = LoginNode::start_with([old.configured()], settings)?;
        node.set_owner("ann", "old");
        Ok(node)
    };
    let guessing = start(&|settings| settings.rules.max_failures = 2)?;
    let mut client = come(&guessing).await?;
    for _ in 0..2 {
        client.say(&plain("ann", "wrong")).await?;
        client.expect(WRONG).await?;
    }
    assert_eq!(client.closed().await?, ["421 4.7.0 Too many failed logins"]);

    let short = std::time::Duration::from_millis(300);
    let slow = start(&|settings| settings.rules.login_timeout = short)?;
    let mut client = Conversation::connect(slow.address).await?;
    client.expect("220").await?;
    client.send(b"EHL").await?;
    assert_eq!(client.closed().await?, ["421 4.4.2 You did not log in in time"]);

    let full = start(&|settings| settings.max_connections = 1)?;
    let _first = come(&full).await?;
    let mut second = Conversation::connect(full.address).await?;
    let said = second.closed().await?;
    assert_eq!(said, ["421 4.7.0 Too many connections, try again later"]);

    let stopping = start(&|_| {})?;
    let mut client = come(&stopping).await?;
    stopping.lifecycle.stop().cancel();
    let said = client.closed().await?;
    assert_eq!(said, ["421 4.3.2 Service is restarting, please connect again"]);
    Ok(())
}

#[tokio::test]
async fn lines_without_end_are_refused_in_time() -> Result<()> {
    let (_old, node) = alone(manners()).await?;
    for (begin, words) in [
        ("NOOP ", "500 5.5.2 Line too long"),
        ("AUTH PLAIN ", "500 5.5.6 Authentication exchange line is too long"),
        ("AUTH PLAIN\r\n", "500 5.5.6 Authentication exchange line is too long"),
    ] {
        let mut client = come(&node).await?;
        client.send(format!("{begin}{}", "A".repeat(30_000)).as_bytes()).await?;
        let heard = client.closed().await?;
        assert_eq!(heard.last().map(String::as_str), Some(words));
    }
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_in_the_clear_behind_starttls_ends_the_connection() -> Result<()> {
    let ca = tests::test_ca::TestCa::new()?;
    let old = LoginBackend::start("old", manners()).await?;
    let tls = Some(std::sync::Arc::clone(ca.issue("localhost")?.acceptor()?.config()));
    let node = LoginNode::start_with([old.configured()], Settings { tls, ..settings() })?;
    node.set_owner("ann", "old");
    let mut client = come(&node).await?;
    client.send(format!("STARTTLS\r\n{}\r\n", plain("ann", "secret")).as_bytes()).await?;
    client.expect("220 2.0.0 Go ahead").await?;
    assert!(client.closed().await?.is_empty());
    assert!(old.connections().is_empty());
    Ok(())
}

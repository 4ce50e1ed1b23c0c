//! Who guesses passwords is answered later and later, and then not at all; nobody else is.

use std::time::Duration;

use anyhow::Result;
use shared::backend::LoginProtocol;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

use crate::speaking;

/// A delay that no test lives to see the end of.
const ENDLESS: Duration = Duration::from_hours(1);
const MANY: u32 = 10;

/// A node with these rules, whose clients say by a PROXY header who they are. `ann` and `bob` live at `old`.
async fn node(
    manners: Manners,
    change: impl FnOnce(&mut Settings),
) -> Result<(LoginBackend, LoginNode)> {
    let mut settings = Settings { proxied: true, ..speaking(&manners) };
    settings.rules.allow_plaintext = true;
    settings.rules.guesses_per_address = MANY;
    settings.rules.max_failures = 1000;
    change(&mut settings);
    let old = LoginBackend::start("old", manners).await?;
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    node.set_owner("bob", "old");
    Ok((old, node))
}

/// A client at that address, whose greeting has been read.
async fn client_at(node: &LoginNode, address: &str) -> Result<Conversation> {
    let mut client = Conversation::connect(node.address).await?;
    let family = if address.contains(':') { "TCP6 ADDRESS ::1" } else { "TCP4 ADDRESS 127.0.0.1" };
    let header = format!("PROXY {family} 4711 143\r\n").replace("ADDRESS", address);
    client.send(header.as_bytes()).await?;
    client.line().await?;
    Ok(client)
}

async fn guess(client: &mut Conversation, user: &str) -> Result<String> {
    client.say(&format!("a LOGIN {user}@example.org wrong")).await?;
    client.line().await
}

/// Lets an address guess as often as it may.
async fn guess_all(node: &LoginNode, address: &str, user: &str) -> Result<()> {
    let mut client = client_at(node, address).await?;
    for _ in 0..MANY {
        let answer = guess(&mut client, user).await?;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_guesses_too_often_is_refused_before_its_credentials_are_tried()
-> Result<()> {
    let (old, node) = node(Manners::default(), |_| {}).await?;
    guess_all(&node, "192.0.2.1", "ann").await?;
    let asked = old.logins().len();
    let mut client = client_at(&node, "192.0.2.1").await?;
    client.say("a LOGIN ann@example.org secret").await?;
    client.expect("a NO [UNAVAILABLE] Too many failed logins from your address.").await?;
    assert_eq!(client.closed().await?, ["* BYE Too many failed logins."]);
    assert_eq!(old.logins().len(), asked, "nothing was tried");
    // The account is not locked, nor is anybody else.
    let mut elsewhere = client_at(&node, "192.0.2.2").await?;
    elsewhere.say("a LOGIN ann@example.org secret").await?;
    elsewhere.expect("a OK").await?;
    Ok(())
}

#[tokio::test]
async fn every_protocol_has_temporary_words_for_who_guesses_too_often() -> Result<()> {
    for (protocol, login, wrong, no, bye) in [
        (
            LoginProtocol::Pop3,
            "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwB4",
            "-ERR [AUTH]",
            "-ERR [SYS/TEMP] Too many failed logins",
            "-ERR Too many failed logins.",
        ),
        (
            LoginProtocol::Submission,
            "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwB4",
            "535 5.7.8",
            "454 4.7.0 Too many failed logins",
            "421 4.7.0 Too many failed logins",
        ),
        (
            LoginProtocol::ManageSieve,
            "AUTHENTICATE \"PLAIN\" \"AGFubkBleGFtcGxlLm9yZwB4\"",
            "NO \"",
            "NO (TRYLATER) \"Too many failed logins",
            "BYE \"Too many failed logins",
        ),
    ] {
        let (_old, node) = node(Manners::of(protocol), |_| {}).await?;
        let mut client = Conversation::connect(node.address).await?;
        client.send(b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 143\r\n").await?;
        client.say(if protocol == LoginProtocol::Submission { "EHLO me" } else { "CAPA" }).await?;
        for _ in 0..MANY {
            client.say(login).await?;
        }
        client.say(login).await?;
        let heard = client.closed().await?;
        let count = heard.iter().filter(|line| line.starts_with(wrong)).count();
        assert!(count >= MANY as usize, "{heard:?}");
        let [.., last_but_one, last] = heard.as_slice() else { panic!("{heard:?}") };
        assert!(last_but_one.starts_with(no) && last.starts_with(bye), "{heard:?}");
    }
    Ok(())
}

#[tokio::test]
async fn names_that_nobody_has_count_and_faults_of_ours_do_not() -> Result<()> {
    let (_old, node) = node(Manners::default(), |_| {}).await?;
    guess_all(&node, "192.0.2.1", "nobody").await?;
    let mut client = client_at(&node, "192.0.2.1").await?;
    let answer = guess(&mut client, "ann").await?;
    assert!(answer.starts_with("a NO [UNAVAILABLE] Too many"), "{answer}");
    node.hold("held", "old");
    node.set_owner("lost", "no-such-backend");
    for user in ["held", "lost"] {
        for _ in 0..=MANY {
            let mut client = client_at(&node, "192.0.2.3").await?;
            let answer = guess(&mut client, user).await?;
            assert!(answer.starts_with("a NO [UNAVAILABLE] Account is"), "{user}: {answer}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_backends_fault_and_a_client_that_gives_up_are_no_guesses() -> Result<()> {
    let no =
        Manners { verdict: Verdict::Say("TAG NO [UNAVAILABLE] later\r\n"), ..Manners::default() };
    let (_old, node) = node(no, |_| {}).await?;
    for _ in 0..=MANY {
        let mut client = client_at(&node, "192.0.2.1").await?;
        let answer = guess(&mut client, "ann").await?;
        assert!(answer.starts_with("a NO [UNAVAILABLE] Account is"), "{answer}");
        client.say("b AUTHENTICATE PLAIN").await?;
        client.expect("+").await?;
        client.say("*").await?;
        client.expect("b BAD").await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_accounts_login_makes_good_what_it_mistyped_from_there() -> Result<()> {
    let (_old, node) = node(Manners::default(), |_| {}).await?;
    for _ in 0..3 {
        let mut client = client_at(&node, "2001:db8::1").await?;
        for _ in 0..MANY - 1 {
            guess(&mut client, "ann").await?;
        }
        client.say("b LOGIN ann@example.org secret").await?;
        client.expect("b OK").await?;
    }
    Ok(())
}

/// The front's clients share its address, and some of them guess.
#[tokio::test]
async fn a_trusted_fronts_client_counts_by_its_own_address_and_the_front_never() -> Result<()> {
    let trust = |settings: &mut Settings| {
        settings.proxied = false;
        settings.rules.trusted_networks = vec!["127.0.0.0/8".parse().unwrap()];
    };
    let (_old, node) = node(Manners::default(), trust).await?;
    let from = async |named: Option<&str>| -> Result<Conversation> {
        let mut client = node.connect().await?;
        if let Some(named) = named {
            client.say(&format!("i ID (\"x-originating-ip\" \"{named}\")")).await?;
            client.expect("* ID NIL").await?;
            client.expect("i OK").await?;
        }
        Ok(client)
    };
    for _ in 0..=MANY {
        let answer = guess(&mut from(None).await?, "ann").await?;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
    }
    for _ in 0..MANY {
        guess(&mut from(Some("198.51.100.7")).await?, "ann").await?;
    }
    let answer = guess(&mut from(Some("198.51.100.7")).await?, "ann").await?;
    assert!(answer.starts_with("a NO [UNAVAILABLE] Too many"), "{answer}");
    for named in [Some("198.51.100.8"), None] {
        let mut client = from(named).await?;
        client.say("a LOGIN ann@example.org secret").await?;
        client.expect("a OK").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_names_no_client_is_not_refused_for_those_behind_it() -> Result<()> {
    let (_old, node) = node(Manners::default(), |_| {}).await?;
    for _ in 0..=MANY {
        let mut client = Conversation::connect(node.address).await?;
        client.send(b"PROXY UNKNOWN\r\n").await?;
        client.line().await?;
        let answer = guess(&mut client, "ann").await?;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn the_delay_of_one_answer_keeps_nobody_else_waiting() -> Result<()> {
    let (_old, node) = node(Manners::default(), |settings| {
        settings.rules.failure_delay = ENDLESS;
    })
    .await?;
    let mut waiting = Vec::new();
    for _ in 0..MANY {
        let mut client = client_at(&node, "192.0.2.1").await?;
        client.say("a LOGIN ann@example.org wrong").await?;
        waiting.push(client);
    }
    let mut other = client_at(&node, "192.0.2.1").await?;
    other.say("a LOGIN ann@example.org secret").await?;
    other.expect("a OK").await?;
    Ok(())
}

#[tokio::test]
async fn a_stop_does_not_wait_for_an_answer_that_is_delayed() -> Result<()> {
    for user in ["ann", "lost"] {
        let (old, node) = delayed().await?;
        let mut client = client_at(&node, "192.0.2.1").await?;
        put_off(&mut client, user, &old).await?;
        node.lifecycle.stop().cancel();
        let heard = client.closed().await?;
        let bye = "* BYE [UNAVAILABLE] Server is restarting, please connect again.";
        assert_eq!(heard.last().map(String::as_str), Some(bye), "{heard:?}");
        assert_eq!(node.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_delayed_ends_with_its_client() -> Result<()> {
    for user in ["ann", "lost"] {
        let (old, node) = delayed().await?;
        let mut client = client_at(&node, "192.0.2.1").await?;
        put_off(&mut client, user, &old).await?;
        drop(client);
        let gone = || (node.lifecycle.tasks() == 1).then_some(());
        tests::patience::until("the login's task to end", gone).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_delay_is_no_longer_than_the_time_for_a_login() -> Result<()> {
    let (_old, node) = node(Manners::default(), |settings| {
        settings.rules.failure_delay = ENDLESS;
        settings.rules.login_timeout = Duration::from_millis(500);
    })
    .await?;
    let mut client = client_at(&node, "192.0.2.1").await?;
    client.say("a LOGIN ann@example.org wrong").await?;
    client.expect("a NO [AUTHENTICATIONFAILED]").await?;
    assert_eq!(client.closed().await?, ["* BYE Disconnected for inactivity during login."]);
    Ok(())
}

async fn delayed() -> Result<(LoginBackend, LoginNode)> {
    let (old, node) = node(Manners::default(), |settings| {
        settings.rules.failure_delay = ENDLESS;
        settings.rules.login_timeout = ENDLESS;
    })
    .await?;
    node.set_owner("lost", "no-such-backend");
    Ok((old, node))
}

/// Brings a client to where its answer is delayed: by the credentials, or by how often it came.
async fn put_off(client: &mut Conversation, user: &str, old: &LoginBackend) -> Result<()> {
    if user == "ann" {
        client.say("a LOGIN ann@example.org wrong").await?;
        old.until("the backend has said no", |all| all.len() == 1 && all[0].closed).await?;
        return Ok(());
    }
    // Each refusal takes longer than the one before, up to two seconds.
    for _ in 0..4 {
        client.say("a LOGIN lost@example.org wrong").await?;
        client.expect("a NO [UNAVAILABLE]").await?;
    }
    client.send("a LOGIN lost@example.org wrong\r\n".repeat(100).as_bytes()).await?;
    Ok(())
}

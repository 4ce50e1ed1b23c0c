//! Who goes where, and in which words a login is refused (LOG-8, LOG-10, LOG-11).

use anyhow::Result;
use shared::ownership::map::AccountRow;
use tests::login_backend::Manners;
use tests::login_node::{LoginNode, Settings};

use crate::{Stage, alone, configured, two};

const WRONG: &str = "NO [AUTHENTICATIONFAILED] Authentication failed.";
const LATER: &str = "NO [UNAVAILABLE] Account is temporarily unavailable. Please try again later.";

#[tokio::test]
async fn a_login_is_joined_to_its_owner_and_hears_its_capabilities() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set_owner("bob", "new");
    for (local, at) in [("ann", "old"), ("bob", "new")] {
        let mut client = node.connect().await?;
        client.say(&format!("a LOGIN {local}@example.org secret")).await?;
        client
            .expect("a OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN IDLE] Logged in")
            .await?;
        client.say("b SELECT INBOX").await?;
        client.expect(&format!("b OK done at {at}")).await?;
    }
    assert_eq!(old.logins(), ["ann@example.org"]);
    assert_eq!(new.logins(), ["bob@example.org"]);
    Ok(())
}

#[tokio::test]
async fn capabilities_are_untagged_for_a_client_that_has_asked_before() -> Result<()> {
    let (_old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a CAPABILITY").await?;
    client.expect("* CAPABILITY IMAP4rev1").await?;
    client.expect("a OK").await?;
    client.say("b LOGIN ann@example.org secret").await?;
    client.expect("* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN IDLE").await?;
    client.expect("b OK Logged in").await?;
    Ok(())
}

#[tokio::test]
async fn a_failed_login_is_never_joined_and_its_client_stays_with_us() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org wrong").await?;
    client.expect(&format!("a {WRONG}")).await?;
    client.say("b SELECT INBOX").await?;
    client.expect("b BAD Not a command before login.").await?;
    let connections = old.until("the failed attempt is closed", |all| all[0].closed).await?;
    assert_eq!(connections.len(), 1);
    assert_eq!(connections[0].lines.len(), 1, "nothing but the login: {:?}", connections[0].lines);
    Ok(())
}

#[tokio::test]
async fn the_next_attempt_goes_where_its_own_account_lives() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set_owner("bob", "new");
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org wrong").await?;
    client.expect(&format!("a {WRONG}")).await?;
    client.say("b LOGIN bob@example.org secret").await?;
    client.expect("b OK").await?;
    client.say("c NOOP").await?;
    client.expect("c OK done at new").await?;
    old.until("the first attempt is closed", |all| all.iter().all(|c| c.closed)).await?;
    assert_eq!((old.logins().len(), new.logins().len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn each_attempt_reads_the_owner_of_now_on_a_connection_of_its_own() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org wrong").await?;
    client.expect("a NO").await?;
    client.say("b LOGIN ann@example.org wrong").await?;
    client.expect("b NO").await?;
    node.set_owner("ann", "new");
    client.say("c LOGIN ann@example.org secret").await?;
    client.expect("c OK").await?;
    assert_eq!((old.connections().len(), new.connections().len()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn the_mailbox_that_is_acted_for_decides_and_the_names_go_on_unchanged() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set_owner("bob", "new");
    let mut client = node.connect().await?;
    // authzid BOB@Example.org, authcid admin.
    client.say("a AUTHENTICATE PLAIN Qk9CQEV4YW1wbGUub3JnAGFkbWluAHNlY3JldA==").await?;
    client.expect("a OK").await?;
    assert!(old.connections().is_empty());
    let login = &new.connections()[0].logins[0];
    assert_eq!((&*login.authzid, &*login.authcid), ("BOB@Example.org", "admin"));
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_has_is_a_wrong_password_and_no_backend_is_asked() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set("list", AccountRow { owner: "old".into(), held: false, login: false, flipped: None });
    for name in [
        "nobody@example.org",
        "ann@elsewhere.example",
        "list@example.org",
        "bare",
        "\"an\u{7f}n@example.org\"",
        "ann@exa..mple",
        &"a".repeat(600),
    ] {
        let mut client = node.connect().await?;
        client.say(&format!("a LOGIN {name} secret")).await?;
        let said = client.line().await?;
        assert_eq!(said, format!("a {WRONG}"), "{name:?}");
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_not_known_for_now_is_unavailable_and_never_a_wrong_password() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set_owner("carl", "no-such-backend");
    node.set("dora", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    let mut client = node.connect().await?;
    for name in ["carl", "dora"] {
        client.say(&format!("a LOGIN {name}@example.org secret")).await?;
        client.expect(&format!("a {LATER}")).await?;
    }
    node.ownership.lease().end();
    for name in ["ann", "nobody"] {
        client.say(&format!("a LOGIN {name}@example.org secret")).await?;
        client.expect(&format!("a {LATER}")).await?;
    }
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_account_without_a_row_lives_at_its_domains_default() -> Result<()> {
    let Stage { old, new, node } = Stage::set().await?;
    node.set_domain(Some("new"));
    let mut client = node.log_in("somebody").await?;
    client.say("a NOOP").await?;
    client.expect("a OK done at new").await?;
    assert!(old.connections().is_empty());
    assert_eq!(new.sessions(), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_guesses_is_sent_away_and_one_that_is_put_off_is_not() -> Result<()> {
    let (old, new) = two(Manners::default(), Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.max_failures = 3;
    let node = LoginNode::start_with(configured(&old, &new), settings)?;
    node.set_owner("ann", "old");
    node.set_owner("carl", "no-such-backend");
    let mut client = node.connect().await?;
    for _ in 0..4 {
        client.say("a LOGIN carl@example.org secret").await?;
        client.expect(&format!("a {LATER}")).await?;
    }
    for name in ["ann", "nobody", "ann"] {
        client.say(&format!("a LOGIN {name}@example.org wrong")).await?;
        client.expect(&format!("a {WRONG}")).await?;
    }
    assert_eq!(client.closed().await?, ["* BYE Too many failed logins."]);
    Ok(())
}

#[tokio::test]
async fn a_connection_over_the_limit_is_told_so() -> Result<()> {
    let (old, new) = two(Manners::default(), Manners::default()).await?;
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let node = LoginNode::start_with(configured(&old, &new), settings)?;
    node.set_owner("ann", "old");
    let first = node.log_in("ann").await?;
    let mut second = tests::conversation::Conversation::connect(node.address).await?;
    let said = second.closed().await?;
    assert_eq!(said, ["* BYE [UNAVAILABLE] Too many connections, try again later."]);
    // A joined session keeps its place until both legs are closed.
    drop(first);
    old.until("the session ends", |all| all.iter().all(|c| c.closed)).await?;
    let listening = || (node.lifecycle.tasks() == 1).then_some(());
    tests::patience::until("the session's task to end", listening).await?;
    node.log_in("ann").await?;
    Ok(())
}

//! A webmail or proxy in front of us says who its client is (FWD-4).

use anyhow::Result;
use shared::backend::Identity;
use tests::login_backend::{LoginBackend, Manners};
use tests::login_node::{LoginNode, Settings};

const ID: &str = "i ID (\"x-originating-ip\" \"198.51.100.7\" \"x-originating-port\" \"4711\" \
                  \"x-proxy-ttl\" \"TTL\" \"name\" \"webmail\")";

/// What the backend is told of a client that says so; the client's answer to its login.
async fn told(trusted: &[&str], ttl: &str) -> Result<(String, String)> {
    let old = LoginBackend::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.trusted_networks =
        trusted.iter().map(|network| network.parse()).collect::<Result<_, _>>()?;
    let backend = old.configured_as(|endpoint| endpoint.identity = Identity::DovecotId);
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = node.connect().await?;
    client.say(&ID.replace("TTL", ttl)).await?;
    client.expect("* ID NIL").await?;
    client.expect("i OK").await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let answer = client.line().await?;
    let lines = old.connections().first().map(|c| c.lines.clone()).unwrap_or_default();
    Ok((lines.into_iter().find(|line| line.contains(" ID ")).unwrap_or_default(), answer))
}

#[tokio::test]
async fn a_trusted_proxys_client_is_passed_on_with_one_hop_less() -> Result<()> {
    let (id, answer) = told(&["127.0.0.0/8"], "4").await?;
    assert!(answer.starts_with("a OK"), "{answer}");
    for words in [
        "\"x-originating-ip\" \"198.51.100.7\"",
        "\"x-originating-port\" \"4711\"",
        "\"x-proxy-ttl\" \"3\"",
        "\"name\" \"webmail\"",
    ] {
        assert!(id.contains(words), "{words}: {id}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_else_is_believed() -> Result<()> {
    let (id, answer) = told(&["192.0.2.0/24"], "4").await?;
    assert!(answer.starts_with("a OK"), "{answer}");
    assert!(id.contains("\"x-originating-ip\" \"127.0.0.1\""), "{id}");
    assert!(id.contains("\"x-proxy-ttl\" \"5\""), "{id}");
    Ok(())
}

#[tokio::test]
async fn a_login_that_goes_round_in_circles_ends() -> Result<()> {
    let (id, answer) = told(&["127.0.0.0/8"], "1").await?;
    assert!(answer.starts_with("a NO [UNAVAILABLE]"), "{answer}");
    assert_eq!(id, "", "no backend is asked");
    Ok(())
}

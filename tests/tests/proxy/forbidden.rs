//! UNAUTHENTICATE would let another user in on a connection that was routed for this one (LOG-12).

use anyhow::Result;
use tests::login_backend::{LoginBackend, Manners};
use tests::login_node::LoginNode;

use super::alone;

async fn session_at(capabilities: &'static str) -> Result<(LoginBackend, LoginNode)> {
    alone(Manners { capabilities, ..Manners::default() }).await
}

const DANGEROUS: &str = "IMAP4rev1 SASL-IR ID AUTH=PLAIN UNAUTHENTICATE COMPRESS=DEFLATE";

#[tokio::test]
async fn unauthenticate_is_not_offered_and_ends_the_session() -> Result<()> {
    for command in ["b UNAUTHENTICATE", "b compress deflate"] {
        let (old, node) = session_at(DANGEROUS).await?;
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        let welcome = client.line().await?;
        assert!(welcome.starts_with("a OK [CAPABILITY IMAP4rev1 "), "{welcome}");
        assert!(!welcome.contains("UNAUTH") && !welcome.contains("COMPRESS"), "{welcome}");
        client.say("c NOOP").await?;
        client.expect("c OK").await?;
        client.say(command).await?;
        assert!(client.closed().await?.is_empty());
        let seen = old.until("it is closed", |all| all[0].closed).await?;
        assert!(!seen[0].lines.iter().any(|line| line.starts_with("b ")), "{:?}", seen[0].lines);
    }
    Ok(())
}

#[tokio::test]
async fn unauthenticate_pipelined_behind_the_login_does_not_pass_either() -> Result<()> {
    let (old, node) = session_at(DANGEROUS).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret\r\nb UNAUTHENTICATE\r\nc LOGIN bob x").await?;
    client.closed().await?;
    let seen = old.until("it is closed", |all| all[0].closed).await?;
    assert!(!seen[0].lines.iter().any(|line| line.contains("UNAUTH")), "{:?}", seen[0].lines);
    Ok(())
}

#[tokio::test]
async fn at_a_backend_without_it_nothing_is_looked_for() -> Result<()> {
    let (_old, node) = session_at("IMAP4rev1 SASL-IR AUTH=PLAIN COMPRESS=DEFLATE").await?;
    let mut client = node.log_in("ann").await?;
    client.say("b COMPRESS DEFLATE").await?;
    client.expect("b OK").await?;
    client.say("c UNAUTHENTICATE").await?;
    client.expect("c OK").await?;
    Ok(())
}

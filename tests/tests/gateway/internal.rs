//! The listener for the mail systems themselves (MX-16), and what they send in circles (MX-11).

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use shared::backend::BackendName;
use shared::config::MxKind;
use tests::gateway_node::{GatewayNode, Settings};
use tests::sink::{Manners, Sink};
use tests::smtp::{self, Reply, Smtp};

use super::*;

const FOREIGN: &str = "carl@elsewhere.example";

/// What the internal listener of a node with `old` and `new` works with.
fn settings(outbound: Option<&str>) -> Settings {
    let mut settings = Settings { kind: MxKind::Internal, ..Settings::default() };
    let outbound = outbound.map(|name| BackendName::parse(name).expect("a backend's name"));
    settings.rules.internal.outbound = outbound;
    settings
}

async fn stage(settings: Settings) -> Result<Stage> {
    let (old, new) = (Manners::default(), Manners::default());
    let (old, new) = (Sink::start("old", old).await?, Sink::start("new", new).await?);
    let node = GatewayNode::start_with([old.configured(), new.configured()], settings)?;
    populate(&node);
    Ok(Stage { old, new, node })
}

/// Sends on what a server has got, as it is.
async fn send_back(node: &GatewayNode, server: &Sink) -> Result<Reply> {
    let text = server.messages().last().expect("a message").text();
    smtp::send(node.address, SENDER, &[ANN], &text).await
}

#[tokio::test]
async fn accounts_of_ours_are_delivered_by_owner_on_the_internal_listener() -> Result<()> {
    let stage = stage(settings(None)).await?;
    assert_eq!(stage.send(&[ANN, NED]).await?.code, 250);
    assert_eq!(
        (stage.old.recipients(), stage.new.recipients()),
        (vec![ANN.into()], vec![NED.into()])
    );
    stage.node.set_owner("ann", "new");
    assert_eq!(stage.send(&[ANN]).await?.code, 250);
    assert_eq!(stage.new.recipients(), [NED, ANN]);
    stage.node.hold("ann", "new");
    let reply = stage.send(&[ANN]).await?;
    assert_eq!(reply.code, 451, "it waits where it came from: {reply}");
    Ok(())
}

#[tokio::test]
async fn mail_for_others_goes_by_the_outbound_backend_or_nowhere() -> Result<()> {
    let closed = stage(settings(None)).await?;
    let reply = closed.send(&[FOREIGN]).await?;
    assert!(reply.to_string().starts_with("550 5.7.1 "), "{reply}");
    assert!(closed.old.connections().is_empty() && closed.new.connections().is_empty());

    let open = stage(settings(Some("new"))).await?;
    assert_eq!(open.send(&[FOREIGN, ANN, NED]).await?.code, 250);
    assert_eq!(open.new.recipients(), [FOREIGN, NED], "one transaction for both");
    assert_eq!(open.old.recipients(), [ANN]);
    // An account of ours never takes that way.
    open.node.set_domain(None);
    let reply = open.send(&["nobody@example.org"]).await?;
    assert!(reply.to_string().starts_with("550 5.1.1 "), "{reply}");
    // Nor does anybody's mail while it is not known whose it is.
    open.node.end_lease();
    assert_eq!(open.send(&[FOREIGN]).await?.code, 451);
    Ok(())
}

#[tokio::test]
async fn the_public_listener_has_no_outbound() -> Result<()> {
    let public = stage(Settings { kind: MxKind::Smtp, ..settings(Some("new")) }).await?;
    let reply = public.send(&[FOREIGN]).await?;
    assert!(reply.to_string().starts_with("550 5.7.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn strangers_are_sent_away_from_the_internal_listener() -> Result<()> {
    let mut only_one = settings(Some("new"));
    only_one.rules.internal.trusted_networks = vec!["127.0.0.2/32".parse()?];
    let stage = stage(only_one).await?;
    let mut stranger = stage.node.connect().await?;
    assert!(stranger.greeting.to_string().starts_with("554 5.7.1 "), "{}", stranger.greeting);
    assert!(stranger.conversation.closed().await?.is_empty());
    let friend = IpAddr::from(Ipv4Addr::new(127, 0, 0, 2));
    let mut friend = Smtp::connect_from(friend, stage.node.address).await?;
    assert_eq!(friend.send(SENDER, &[ANN], &smtp::message("hello")).await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn a_server_that_sends_everything_back_is_stopped() -> Result<()> {
    let stage = stage(settings(None)).await?;
    assert_eq!(stage.send(&[ANN]).await?.code, 250);
    assert_eq!(send_back(&stage.node, &stage.old).await?.code, 250);
    let reply = send_back(&stage.node, &stage.old).await?;
    assert!(reply.to_string().starts_with("451 4.4.6 "), "it may be over soon: {reply}");
    // Once the flip has come through, the same message is delivered to the other one.
    assert_eq!(stage.old.messages().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_message_that_comes_by_the_public_listener_again_and_again_is_refused() -> Result<()> {
    let stage = stage(Settings::default()).await?;
    assert_eq!(stage.send(&[ANN]).await?.code, 250);
    assert_eq!(send_back(&stage.node, &stage.old).await?.code, 250, "forwarded, for instance");
    let reply = send_back(&stage.node, &stage.old).await?;
    assert!(reply.to_string().starts_with("554 5.4.6 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn nobody_else_can_make_a_message_look_like_a_loop() -> Result<()> {
    let stage = stage(Settings::default()).await?;
    let forged = format!(
        "Mailshift-Hop: 7; by=mx.example.org; t={}\r\n{}",
        "0".repeat(32),
        smtp::message("forged")
    );
    assert_eq!(smtp::send(stage.node.address, SENDER, &[ANN], &forged).await?.code, 250);
    let delivered = stage.old.messages()[0].text();
    assert!(delivered.contains("\r\nMailshift-Hop: 1; by=mx.example.org; t="), "{delivered}");
    // The same in the text, where a report may quote it, is no trace at all.
    let quoted = smtp::message("quoted") + &delivered;
    assert_eq!(smtp::send(stage.node.address, SENDER, &[ANN], &quoted).await?.code, 250);
    let delivered = stage.old.messages()[1].text();
    assert!(delivered.contains("\r\nMailshift-Hop: 1; by=mx.example.org; t="), "{delivered}");
    Ok(())
}

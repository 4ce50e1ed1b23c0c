//! How many connections there are, which are kept, and which wait for a client.

use std::time::Duration;

use shared::backend::Identity;
use tests::gateway_node::Settings;

use super::*;

const XCLIENT: &str = "XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT REVERSE_NAME";

async fn one_message(node: &GatewayNode) -> Result<Reply> {
    smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await
}

/// An owner that is told clients by XCLIENT, for whom two connections are to wait.
async fn warm(manners: Manners) -> Result<(Sink, GatewayNode)> {
    let mut manners = manners;
    manners.keywords.push(XCLIENT);
    let old = Sink::start("old", manners).await?;
    let backend = old.configured_with(|mail| {
        mail.endpoint.identity = Identity::Xclient;
        mail.warm = 2;
    });
    let node = GatewayNode::start([backend])?;
    populate(&node);
    Ok((old, node))
}

/// Connections on which nothing was said but EHLO.
fn waiting(old: &Sink) -> Vec<usize> {
    let connections = old.connections().into_iter().enumerate();
    let unused = connections.filter(|(_, c)| !c.closed && c.lines == ["EHLO mx.example.org"]);
    unused.map(|(number, _)| number).collect()
}

#[tokio::test]
async fn where_a_connection_is_one_clients_others_wait_for_the_next_clients() -> Result<()> {
    let (old, node) = warm(Manners::default()).await?;
    assert_eq!(old.connections().len(), 0, "nothing is done ahead without traffic");
    assert_eq!(one_message(&node).await?.code, 250);
    old.until("two wait", |old| waiting(old).len() == 2).await?;
    let waited = waiting(&old);
    assert_eq!(one_message(&node).await?.code, 250);
    let second = old.messages()[1].connection;
    assert!(waited.contains(&second), "{second} is none of {waited:?}");
    let lines = &old.connections()[second].lines;
    assert!(lines[1].starts_with("XCLIENT ") && lines[2].starts_with("EHLO client."), "{lines:?}");
    // The one that was used is replaced.
    old.until("two wait again", |old| waiting(old).len() == 2).await?;
    assert_eq!(old.connections().len(), 4);
    Ok(())
}

#[tokio::test]
async fn one_that_has_waited_too_long_for_its_owner_is_replaced_by_a_new_one() -> Result<()> {
    let (mut old, node) = warm(Manners::default().but("XCLIENT", Answer::Ask)).await?;
    for answers in [&["220 ready"][..], &["421 4.4.2 Timeout", "220 ready"]] {
        let address = node.address;
        let sent =
            tokio::spawn(
                async move { smtp::send(address, SENDER, &[ANN], &smtp::message("x")).await },
            );
        for answer in answers {
            assert!(old.asked().await?.say(answer));
        }
        assert_eq!(sent.await??.code, 250);
        old.until("two wait", |old| waiting(old).len() >= 2).await?;
    }
    assert_eq!(old.messages().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_client_waits_for_a_connection_where_all_are_in_use() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let node = GatewayNode::start([old.configured_with(|mail| mail.max_connections = 1)])?;
    populate(&node);
    let mut first = envelope(&node, &[ANN]).await?;
    let mut second = envelope(&node, &[]).await?;
    second.conversation.send(format!("RCPT TO:<{BEN}>\r\n").as_bytes()).await?;
    assert_eq!(message(&mut first).await?.code, 250);
    assert_eq!(second.reply().await?.code, 250);
    assert_eq!(message(&mut second).await?.code, 250);
    assert_eq!((old.connections().len(), old.messages().len()), (1, 2));
    Ok(())
}

/// Else as many clients as there are connections could keep everybody's mail from an owner.
#[tokio::test]
async fn a_client_that_says_nothing_more_gives_its_connection_to_one_who_waits() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let node = GatewayNode::start([old.configured_with(|mail| mail.max_connections = 1)])?;
    populate(&node);
    let mut silent = envelope(&node, &[ANN]).await?;
    let mut second = envelope(&node, &[BEN]).await?;
    assert_eq!(message(&mut second).await?.code, 250);
    // Its recipient is asked again when its message is there.
    assert_eq!(message(&mut silent).await?.code, 250);
    let taken: Vec<_> = old.messages().iter().map(|message| message.to.clone()).collect();
    assert_eq!(taken, [[BEN], [ANN]]);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_cannot_be_used_again_makes_room_for_another() -> Result<()> {
    let mut manners = Manners::default();
    manners.keywords.push("LIMITS MAILMAX=1");
    let old = Sink::start("old", manners).await?;
    let node = GatewayNode::start([old.configured_with(|mail| mail.max_connections = 1)])?;
    populate(&node);
    for _ in 0..3 {
        assert_eq!(one_message(&node).await?.code, 250);
    }
    assert_eq!(old.connections().len(), 3, "MAILMAX is one message each");
    Ok(())
}

#[tokio::test]
async fn who_waits_in_vain_for_a_connection_comes_again() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let node = GatewayNode::start_with(
        [old.configured_with(|mail| mail.max_connections = 1)],
        Settings { ask_timeout: Duration::from_millis(500), ..Settings::default() },
    )?;
    populate(&node);
    let mut first = envelope(&node, &[ANN]).await?;
    let mut second = envelope(&node, &[]).await?;
    let said = second.command(&format!("RCPT TO:<{BEN}>")).await?.to_string();
    assert!(said.starts_with("451 4.4.1 "), "{said}");
    assert_eq!(message(&mut first).await?.code, 250);
    assert_eq!(old.connections().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_keeps_to_the_owners_limit_of_messages() -> Result<()> {
    let mut manners = Manners::default();
    manners.keywords.push("LIMITS MAILMAX=2");
    let (old, node) = alone(manners).await?;
    for _ in 0..4 {
        assert_eq!(one_message(&node).await?.code, 250);
    }
    let places: Vec<usize> = old.messages().iter().map(|message| message.connection).collect();
    assert_eq!(places, [0, 0, 1, 1]);
    Ok(())
}

//! Owners that are down, in several places, or ourselves (HLT-1, NET-8, NET-9).

use std::sync::Arc;
use std::time::Duration;

use shared::backend::{BackendName, Endpoint, Host};
use shared::config::Bind;
use shared::reach::Reach;
use tests::gateway_node::Settings;
use tests::ports::reserve_one;
use tests::sink::Answer;

use super::*;

/// The answer to ann's RCPT.
async fn answer(node: &GatewayNode) -> Result<String> {
    let mut client = envelope(node, &[]).await?;
    Ok(client.command(&format!("RCPT TO:<{ANN}>")).await?.to_string())
}

fn host_of(sink: &Sink) -> Host {
    Host::new(&sink.address.ip().to_string(), sink.address.port())
}

#[tokio::test]
async fn an_owner_that_is_down_is_not_asked_and_the_sender_comes_again() -> Result<()> {
    let old = Sink::start("old", Manners::default().but("(greeting)", Answer::Close)).await?;
    let node = GatewayNode::start([old.configured()])?;
    node.set_owner("ann", "old");
    for _ in 0..20 {
        let said = answer(&node).await?;
        assert!(said.starts_with("451 4.4.1 "), "{said}");
    }
    // Three to see that it is down; hardly one to see whether it still is.
    let asked = old.connections().len();
    assert!((3..10).contains(&asked), "{asked} connections");
    Ok(())
}

#[tokio::test]
async fn an_owner_is_asked_again_when_it_is_back() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut reach = None;
    let backend = old.configured_as(|endpoint| reach = Some(Arc::clone(&endpoint.reach)));
    let reach = reach.expect("it was configured");
    let node = GatewayNode::start([backend])?;
    node.set_owner("ann", "old");
    while let Ok(trial) = reach.admit(old.address, Duration::MAX) {
        trial.fail(&"refused");
    }
    let said = answer(&node).await?;
    assert!(said.starts_with("451 4.4.1 "), "{said}");
    assert_eq!(old.connections().len(), 0);
    while !answer(&node).await?.starts_with("250 ") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(reach.is_up(old.address));
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_is_down_for_those_who_come_later() -> Result<()> {
    let old = Sink::start("old", Manners::default().but("(greeting)", Answer::Hang)).await?;
    let short = Duration::from_millis(200);
    let mut reach = None;
    let backend = old.configured_as(|endpoint| {
        endpoint.reply_timeout = short;
        reach = Some(Arc::clone(&endpoint.reach));
    });
    let node = GatewayNode::start_with([backend], Settings::default())?;
    node.set_owner("ann", "old");
    for _ in 0..3 {
        let said = answer(&node).await?;
        assert!(said.starts_with("451 4.4.1 "), "{said}");
    }
    assert!(reach.is_some_and(|reach| !reach.is_up(old.address)));
    Ok(())
}

#[tokio::test]
async fn what_an_owner_says_of_its_own_accord_takes_nobody_down() -> Result<()> {
    let busy = Answer::Say("421 4.3.2 too busy");
    let old = Sink::start("old", Manners::default().but("(greeting)", busy)).await?;
    let node = GatewayNode::start([old.configured()])?;
    node.set_owner("ann", "old");
    for _ in 0..5 {
        let said = answer(&node).await?;
        assert!(said.starts_with("451 4.4.1 "), "{said}");
    }
    assert_eq!(old.connections().len(), 5);
    Ok(())
}

#[tokio::test]
async fn mail_goes_to_the_next_host_when_the_preferred_one_is_away() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let away = reserve_one()?;
    let hosts = vec![Host::new("127.0.0.1", away.port()), host_of(&old)];
    let node = GatewayNode::start([old.configured_as(|endpoint| endpoint.hosts = hosts)])?;
    node.set_owner("ann", "old");
    let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert_eq!(reply.code, 250, "{reply}");
    assert_eq!(old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn mail_goes_to_the_next_host_when_the_preferred_one_is_silent() -> Result<()> {
    let silent = Sink::start("silent", Manners::default().but("(greeting)", Answer::Hang)).await?;
    let old = Sink::start("old", Manners::default()).await?;
    let hosts = vec![host_of(&silent), host_of(&old)];
    let node = GatewayNode::start([old.configured_as(|endpoint| {
        endpoint.hosts = hosts;
        endpoint.connect_timeout = Duration::from_secs(1);
    })])?;
    node.set_owner("ann", "old");
    for _ in 0..4 {
        let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert_eq!(reply.code, 250, "{reply}");
    }
    assert_eq!(old.recipients(), [ANN; 4]);
    assert!(!silent.connections().is_empty(), "it was asked first");
    Ok(())
}

#[tokio::test]
async fn mail_to_ourselves_is_refused_for_now_and_never_sent_there() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let name = BackendName::parse("old").map_err(anyhow::Error::msg)?;
    let own = [Bind::Port(old.address.port())].into();
    let reach = Arc::new(Reach::new(&name, "mail", Arc::default(), own));
    let ourselves = |endpoint: &mut Endpoint| endpoint.reach = reach;
    let node = GatewayNode::start([old.configured_as(ourselves)])?;
    node.set_owner("ann", "old");
    let said = answer(&node).await?;
    assert!(said.starts_with("451 4.3.5 "), "{said}");
    assert_eq!(old.connections().len(), 0);
    Ok(())
}

//! Whose a recipient is, and what a sender hears of one that is nobody's.

use anyhow::Result;
use shared::address::{Address, Domain};
use shared::ownership::{Change, DomainRow, RoutingDomains};
use tests::gateway_node::{GatewayNode, Settings};
use tests::sink::{Answer, Manners, Sink};

use super::*;

#[tokio::test]
async fn recipients_of_old_and_new_get_one_message_each_once_at_the_right_place() -> Result<()> {
    let stage = Stage::set().await?;
    let reply = stage.send(&[ANN, NED, BEN]).await?;
    assert!(reply.to_string().starts_with("250 2.0.0 "), "{reply}");
    assert_eq!(stage.old.recipients(), [ANN, BEN]);
    assert_eq!(stage.new.recipients(), [NED]);
    assert_eq!((stage.old.messages().len(), stage.new.messages().len()), (1, 1));
    assert_eq!(stage.old.messages()[0].as_sent(), stage.new.messages()[0].as_sent());
    Ok(())
}

#[tokio::test]
async fn an_address_is_sent_on_as_it_was_received() -> Result<()> {
    let stage = Stage::set().await?;
    stage.node.set_alias("ann.lee@example.org", "ann");
    for to in ["Ann.LEE@Example.ORG", "\"ann\"@example.org", "ann+List.X@example.org"] {
        assert!(stage.send(&[to]).await?.is_positive(), "{to}");
    }
    assert_eq!(
        stage.old.recipients(),
        ["Ann.LEE@example.org", "\"ann\"@example.org", "ann+List.X@example.org"]
    );
    let mail = &stage.old.messages()[0].mail;
    assert!(mail.starts_with(&format!("MAIL FROM:<{SENDER}>")), "{mail}");
    Ok(())
}

#[tokio::test]
async fn an_unknown_recipient_is_refused_by_its_owner_in_our_words() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 <gone@example.org>: not in /etc/passwd on sink.internal");
    let stage =
        Stage::set_with(Manners::default().but("RCPT TO:<gone@", refusal), Manners::default())
            .await?;
    stage.node.set_domain(Some("old"));
    let reply = stage.send(&["gone@example.org"]).await?;
    assert_eq!(reply.to_string(), "550 5.1.1 <gone@example.org>: no such recipient");
    assert_eq!(stage.old.heard("RCPT"), ["RCPT TO:<gone@example.org>"]);
    assert!(stage.old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn one_refused_recipient_does_not_touch_the_others() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 unknown");
    let stage =
        Stage::set_with(Manners::default().but("RCPT TO:<gone@", refusal), Manners::default())
            .await?;
    stage.node.set_owner("gone", "old");
    let mut client = stage.envelope(&[ANN]).await?;
    assert_eq!(client.command("RCPT TO:<gone@example.org>").await?.code, 550);
    good(&mut client, "RCPT TO:<ned@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(
        (stage.old.recipients(), stage.new.recipients()),
        (vec![ANN.into()], vec![NED.into()])
    );
    Ok(())
}

#[tokio::test]
async fn an_account_without_row_and_default_is_no_such_recipient() -> Result<()> {
    let stage = Stage::set().await?;
    let reply = stage.send(&["nobody@example.org"]).await?;
    assert!(reply.to_string().starts_with("550 5.1.1 "), "{reply}");
    assert!(stage.old.connections().is_empty() && stage.new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn nothing_is_relayed_however_it_is_written() -> Result<()> {
    let stage = Stage::set().await?;
    stage.node.set_domain(Some("old"));
    for to in [
        "ann@elsewhere.example",
        "@example.org:ann@elsewhere.example",
        "ann%elsewhere.example@example.org",
        "ann+x%elsewhere.example@example.org",
        "elsewhere.example!ann@example.org",
        "\"ann@elsewhere.example\"@example.org",
        "\"ann%elsewhere.example\"@example.org",
        "ann@[192.0.2.1]",
        "ann@[127.0.0.1]",
    ] {
        let reply = stage.send(&[to]).await?;
        assert!(reply.to_string().starts_with("550 5.7.1 "), "{to}: {reply}");
    }
    assert!(stage.old.connections().is_empty(), "nobody was asked");
    stage.node.set_owner("odd%name", "old");
    stage.node.set_alias("odd!name@example.org", "ned");
    for to in ["odd%name@example.org", "Odd!Name@example.org"] {
        assert!(stage.send(&[to]).await?.is_positive(), "{to} has a row of its own");
    }
    let reply = stage.send(&["ann%x+odd%name@example.org"]).await?;
    assert!(reply.to_string().starts_with("550 5.7.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn what_the_table_cannot_say_is_temporary_and_nobody_is_asked() -> Result<()> {
    let stage = Stage::set().await?;
    stage.node.set_owner("ann", "no-such-backend");
    stage.node.hold("ben", "old");
    for to in [ANN, BEN] {
        let reply = stage.send(&[to]).await?;
        assert!(reply.to_string().starts_with("451 4.3."), "{to}: {reply}");
    }
    stage.node.end_lease();
    for to in [NED, "nobody@example.org", "ann@elsewhere.example"] {
        let reply = stage.send(&[to]).await?;
        assert!(reply.to_string().starts_with("451 4.3.0 "), "{to}: {reply}");
    }
    assert!(stage.old.connections().is_empty() && stage.new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_owner_that_is_down_is_temporary_and_no_other_one_is_asked() -> Result<()> {
    let mut stage = Stage::set().await?;
    stage.new.stop_listening().await;
    let mut client = stage.envelope(&[ANN]).await?;
    for to in [NED, "ned+x@example.org"] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?;
        assert!(reply.to_string().starts_with("451 4.4.1 "), "{reply}");
    }
    assert_eq!(message(&mut client).await?.code, 250, "the others are not held up");
    assert_eq!(stage.old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn an_owner_without_mail_endpoint_is_our_fault() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut backend = old.configured();
    backend.mail = None;
    let node = GatewayNode::start([backend])?;
    node.set_owner("ann", "old");
    let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert!(reply.to_string().starts_with("451 4.3.5 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn postmaster_needs_no_domain() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.postmaster = Some(Address::parse(ANN)?);
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    for to in ["postmaster", "PostMaster"] {
        assert!(smtp::send(node.address, "", &[to], &smtp::message("x")).await?.is_positive());
    }
    assert_eq!(old.recipients(), [ANN, ANN]);
    assert_eq!(old.heard("MAIL")[0].split(' ').nth(1), Some("FROM:<>"));
    Ok(())
}

#[tokio::test]
async fn postmaster_and_abuse_of_a_domain_of_ours_take_mail_without_an_account() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.postmaster = Some(Address::parse(ANN)?);
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    node.set_owner("ben", "old");
    for to in ["postmaster@example.org", "ABUSE@Example.ORG", "\"PostMaster\"@example.org"] {
        let reply = smtp::send(node.address, SENDER, &[to], &smtp::message("x")).await?;
        assert_eq!(reply.code, 250, "{to}: {reply}");
    }
    assert_eq!(old.recipients(), [ANN, ANN, ANN]);
    for (to, expected) in
        [("postmaster@elsewhere.example", "550 5.7.1 "), ("postmasters@example.org", "550 5.1.1 ")]
    {
        let reply = smtp::send(node.address, SENDER, &[to], &smtp::message("x")).await?;
        assert!(reply.to_string().starts_with(expected), "{to}: {reply}");
    }
    // One message, whatever names it is for.
    let mut client =
        envelope(&node, &["postmaster@example.org", "postmaster", "abuse@example.org", ANN])
            .await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(old.recipients().len(), 4);
    // With a row of its own it is an account like others, also one that is being moved.
    node.set_alias("abuse@example.org", "ben");
    node.hold("postmaster", "old");
    let reply =
        smtp::send(node.address, SENDER, &["abuse@example.org"], &smtp::message("x")).await?;
    assert!(reply.is_positive(), "{reply}");
    assert_eq!(old.recipients().last().map(String::as_str), Some("abuse@example.org"));
    let held = smtp::send(node.address, SENDER, &["postmaster@example.org"], "").await?;
    assert!(held.to_string().starts_with("451 4.3.2 "), "{held}");
    Ok(())
}

#[tokio::test]
async fn a_postmaster_who_is_nobody_is_our_fault() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    for to in ["postmaster", "postmaster@example.org", "abuse@example.org"] {
        let reply = smtp::send(node.address, SENDER, &[to], &smtp::message("x")).await?;
        assert!(reply.to_string().starts_with("451 4.3.5 "), "{to}: {reply}");
    }
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_recipient_named_twice_gets_one_message() -> Result<()> {
    for manners in [Manners::default(), Manners::lmtp()] {
        let (old, node) = alone(manners).await?;
        node.set_alias("info@example.org", "ann");
        let mut client =
            envelope(&node, &[ANN, BEN, ANN, "info@example.org", "ANN@Example.org"]).await?;
        assert_eq!(message(&mut client).await?.code, 250);
        assert_eq!(old.recipients(), [ANN, BEN, "info@example.org"]);
    }
    Ok(())
}

#[tokio::test]
async fn recipients_beyond_the_limit_are_for_another_transaction() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.max_recipients = 2;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_domain(Some("old"));
    let mut client = envelope(&node, &["a@example.org", "b@example.org"]).await?;
    let reply = client.command("RCPT TO:<c@example.org>").await?;
    assert!(reply.to_string().starts_with("452 4.5.3 "), "{reply}");
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(old.recipients(), ["a@example.org", "b@example.org"]);
    Ok(())
}

#[tokio::test]
async fn a_hundred_recipients_and_more_are_taken_at_once() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    node.set_domain(Some("old"));
    let to: Vec<String> = (0..150).map(|n| format!("r{n}@example.org")).collect();
    let mut client = node.connect().await?;
    good(&mut client, "EHLO c").await?;
    let rcpts: String = to.iter().map(|to| format!("RCPT TO:<{to}>\r\n")).collect();
    let group = format!("MAIL FROM:<{SENDER}>\r\n{rcpts}DATA\r\n");
    client.conversation.send(group.as_bytes()).await?;
    for _ in 0..=to.len() {
        assert_eq!(client.reply().await?.code, 250);
    }
    assert_eq!(client.reply().await?.code, 354);
    client.conversation.send(b".\r\n").await?;
    assert_eq!(client.reply().await?.code, 250);
    assert_eq!(old.recipients(), to);
    Ok(())
}

#[tokio::test]
async fn names_without_a_row_are_noted_where_they_are_refused_or_confirmed() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 unknown");
    let manners = Manners::default().but("RCPT TO:<gone@", refusal);
    let stage = Stage::set_with(manners, Manners::default()).await?;
    stage.send(&["eve@example.org"]).await?;
    stage.send(&["zoe@elsewhere.example"]).await?;
    stage.node.set_domain(Some("old"));
    // Known, unknown to the owner, confirmed by it.
    for to in [ANN, "gone@example.org", "cat+x@example.org"] {
        stage.send(&[to]).await?;
    }
    let mut noted = stage.node.ownership.unknown().take();
    noted.sort_by(|a, b| a.name.cmp(&b.name));
    let noted: Vec<_> = noted.iter().map(|s| (&*s.name, s.outcome.as_str())).collect();
    assert_eq!(
        noted,
        [
            ("cat@example.org", "default"),
            ("eve@example.org", "refused"),
            ("zoe@elsewhere.example", "refused"),
        ]
    );
    Ok(())
}

/// The stage, at which `moved.example.org` stands for the accounts' domain.
async fn stage_with_routing_domain() -> Result<Stage> {
    let stage = Stage::set().await?;
    let pair = (Domain::parse("moved.example.org")?, Domain::parse("example.org")?);
    stage.node.ownership.map().set_routing_domains(RoutingDomains::new([pair])?);
    Ok(stage)
}

#[tokio::test]
async fn what_comes_by_a_routing_domain_is_sent_on_in_the_real_one() -> Result<()> {
    let stage = stage_with_routing_domain().await?;
    stage.node.set_alias("ed@example.org", "ned");
    for to in ["Ned@MOVED.example.org", "ned+X@moved.example.org", "ed@moved.example.org"] {
        assert!(stage.send(&[to]).await?.is_positive(), "{to}");
    }
    assert!(stage.old.connections().is_empty());
    assert_eq!(stage.new.recipients(), ["Ned@example.org", "ned+X@example.org", "ed@example.org"]);
    Ok(())
}

#[tokio::test]
async fn by_a_routing_domain_everything_is_refused_that_is_refused_without() -> Result<()> {
    let stage = stage_with_routing_domain().await?;
    for (to, expected) in [
        ("gone@moved.example.org", "550 5.1.1 <gone@moved.example.org>: no such recipient"),
        ("ann%x@moved.example.org", "550 5.1.1 <ann%x@moved.example.org>: no such recipient"),
        ("ann@other.example.org", "550 5.7.1 <ann@other.example.org>: relaying denied"),
    ] {
        assert_eq!(stage.send(&[to]).await?.to_string(), expected);
    }
    stage.node.set_domain(Some("new"));
    let reply = stage.send(&["gone@moved.example.org"]).await?;
    assert!(reply.is_positive(), "{reply}");
    let reply = stage.send(&["ann%x@moved.example.org"]).await?;
    assert_eq!(reply.to_string(), "550 5.7.1 <ann%x@moved.example.org>: relaying denied");
    assert_eq!(stage.new.recipients(), ["gone@example.org"]);
    Ok(())
}

#[tokio::test]
async fn a_mailbox_named_by_both_its_domains_gets_one_message() -> Result<()> {
    for group in [["ned@moved.example.org", NED], [NED, "ned@moved.example.org"]] {
        let stage = stage_with_routing_domain().await?;
        let mut client = stage.envelope(&[group[0], group[1], ANN]).await?;
        assert_eq!(message(&mut client).await?.code, 250);
        assert_eq!(stage.new.recipients(), [NED]);
        assert_eq!(stage.old.recipients(), [ANN]);
    }
    Ok(())
}

#[tokio::test]
async fn a_flip_between_rcpt_and_data_reroutes_a_routing_name() -> Result<()> {
    let stage = stage_with_routing_domain().await?;
    let mut client = stage.envelope(&["ann@moved.example.org"]).await?;
    stage.node.set_owner("ann", "new");
    assert_eq!(message(&mut client).await?.code, 250);
    assert!(stage.old.messages().is_empty());
    assert_eq!(stage.new.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_routing_domain_has_a_postmaster() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.postmaster = Some(Address::parse(ANN)?);
    let node = GatewayNode::start_with([old.configured()], settings)?;
    let pair = (Domain::parse("moved.example.org")?, Domain::parse("example.org")?);
    node.ownership.map().set_routing_domains(RoutingDomains::new([pair])?);
    node.set_owner("ann", "old");
    let to = ["Postmaster@moved.example.org", "abuse@moved.example.org"];
    let mut client = envelope(&node, &to).await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_routing_domain_with_rows_of_its_own_is_refused_temporarily() -> Result<()> {
    let stage = stage_with_routing_domain().await?;
    let row = DomainRow { default_owner: Some("old".into()), ..DomainRow::default() };
    stage.node.change(&Change::Domain("moved.example.org".into(), Some(row)));
    let reply = stage.send(&["ned@moved.example.org"]).await?;
    assert!(reply.to_string().starts_with("451 4.3.5 "), "{reply}");
    assert!(stage.send(&[NED]).await?.is_positive());
    assert!(stage.old.connections().is_empty());
    Ok(())
}

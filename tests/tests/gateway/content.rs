//! What is delivered is what was received, behind one header of ours; and nothing can be smuggled in it.

use anyhow::Result;
use sha2::{Digest, Sha256};
use tests::gateway_node::Settings;
use tests::sink::{Answer, Manners, Sink};

use super::*;

/// DATA and these octets as they are; the reply at their end.
async fn send_raw(node: &GatewayNode, octets: &[u8]) -> Result<(Smtp, Reply)> {
    let mut client = envelope(node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    client.conversation.send(octets).await?;
    let reply = client.reply().await?;
    Ok((client, reply))
}

#[tokio::test]
async fn every_octet_arrives_as_it_was_sent() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let every_octet: Vec<u8> = (0..=255).filter(|b| !b"\r\n".contains(b)).collect();
    for content in [
        &b""[..],
        b"\r\n",
        b"..\r\n.a\r\n..\r\n",
        b"Subject: x\r\n\r\ntrailing space \t\r\n\r\n\r\n",
        b"not even a header\0\r\n",
        b"a lone\nLF is no concern of ours\n\r\n",
        &[&every_octet[..], b"\r\n"].concat(),
        &[&b"x".repeat(100_000)[..], b"\r\n"].concat(),
    ] {
        let stuffed: Vec<u8> = content
            .split_inclusive(|&b| b == b'\n')
            .flat_map(|line| [if line.starts_with(b".") { &b"."[..] } else { b"" }, line].concat())
            .collect();
        let (_, reply) = send_raw(&node, &[&stuffed[..], b".\r\n"].concat()).await?;
        assert_eq!(reply.code, 250, "{reply}");
        assert_eq!(old.messages().last().unwrap().as_sent(), content);
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_begins_with_white_space_is_no_part_of_our_header() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    for content in [" folded?\r\n", "\tfolded?\r\n\r\nbody\r\n", " \r\n"] {
        let (_, reply) = send_raw(&node, format!("{content}.\r\n").as_bytes()).await?;
        assert_eq!(reply.code, 250, "{reply}");
        let message = old.messages().pop().unwrap();
        assert_eq!(message.as_sent(), [b"\r\n", content.as_bytes()].concat());
    }
    Ok(())
}

#[tokio::test]
async fn nothing_can_be_smuggled_past_the_gateway() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let smuggled =
        "MAIL FROM:<evil@example.com>\r\nRCPT TO:<ben@example.org>\r\nDATA\r\nevil\r\n.\r\n";
    for vector in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r\n",
        "\r.\r",
        "\r\n.\rtext",
        "\r\n.\r\r\n",
        "\r\r\n.\r\n",
        "a\rb\r\n",
        "\n.x\n",
    ] {
        let text = format!("Subject: x\r\n\r\ntext{vector}{smuggled}QUIT\r\n");
        let (mut client, reply) = send_raw(&node, text.as_bytes()).await?;
        assert_eq!(reply.code, 550, "{vector:?}: {reply}");
        assert!(reply.to_string().starts_with("550 5.6.0 "), "{reply}");
        assert_eq!(client.conversation.closed().await?, Vec::<String>::new(), "{vector:?}");
    }
    assert!(old.messages().is_empty() && old.heard("RCPT TO:<ben@").is_empty());
    for vector in ["\r\n\0.\r\n", "\r\n.\0\r\n"] {
        let text = format!("text{vector}{smuggled}");
        let (_, reply) = send_raw(&node, text.as_bytes()).await?;
        assert_eq!(reply.code, 250, "{reply}");
    }
    assert_eq!(old.recipients(), [ANN, ANN], "it was content");
    Ok(())
}

#[tokio::test]
async fn smuggling_octet_by_octet_is_the_same() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    for (vector, expected) in [("\r\n.\r\r\n", 550), ("\n.\r\n", 550), ("\r\n..\r\n", 250)] {
        let mut client = envelope(&node, &[ANN]).await?;
        good(&mut client, "DATA").await?;
        for octet in format!("a{vector}b\r\n.\r\n").bytes() {
            client.conversation.send(&[octet]).await?;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.reply().await?.code, expected, "{vector:?}");
    }
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_large_message_is_kept_in_a_file_without_a_name() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(manners.clone(), manners).await?;
    let line = format!("{}\r\n", "0123456789".repeat(9));
    let (lines, block) = (49 * 1024 * 1024 / line.len(), line.repeat(1000));
    let mut client = stage.envelope(&[ANN, NED]).await?;
    good(&mut client, "DATA").await?;
    for _ in 0..lines / 1000 {
        client.conversation.send(block.as_bytes()).await?;
    }
    client.conversation.send(b".\r\n").await?;
    let octets = (block.len() * (lines / 1000)) as u64;
    let asked = [stage.old.asked().await?, stage.new.asked().await?];
    assert_eq!(stage.node.temporary_files()?, [octets], "all of it is in one file");
    assert_eq!(stage.node.named_files()?, 0);
    for asked in asked {
        assert!(asked.say("250 2.0.0 Ok"));
    }
    assert_eq!(client.reply().await?.code, 250);
    let digest: [u8; 32] = Sha256::digest(block.repeat(lines / 1000)).into();
    for sink in [&stage.old, &stage.new] {
        assert_eq!(sink.messages()[0].digest, digest);
    }
    stage.node.until_files_gone().await
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_at_its_end_and_the_session_goes_on() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.max_message_size = 10_000;
    settings.rules.memory_per_message = 1000;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    for size in [10_001, 100_000, 1_000_000] {
        let content = [&b"x".repeat(size - 2)[..], b"\r\n.\r\n"].concat();
        let (mut client, reply) = send_raw(&node, &content).await?;
        assert!(reply.to_string().starts_with("552 5.3.4 "), "{size}: {reply}");
        good(&mut client, "MAIL FROM:<>").await?;
        good(&mut client, "RCPT TO:<ann@example.org>").await?;
        let content = [&b"x".repeat(9998)[..], b"\r\n.\r\n"].concat();
        good(&mut client, "DATA").await?;
        client.conversation.send(&content).await?;
        assert_eq!(client.reply().await?.code, 250);
        good(&mut client, "QUIT").await?;
    }
    assert_eq!(old.messages().len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_message_without_end_is_not_read_for_ever() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.max_message_size = 10_000;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    client.conversation.send(&b"x\r\n".repeat(1_000_000)).await.ok();
    let said = client.conversation.closed().await?;
    assert!(said.first().is_none_or(|line| line.starts_with("552 5.3.4 ")), "{said:?}");
    assert!(old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn one_received_header_is_put_before_a_message() -> Result<()> {
    let stage = Stage::set().await?;
    for (to, with_for) in [(&[ANN][..], true), (&[ANN, NED], false)] {
        assert_eq!(stage.send(to).await?.code, 250);
        let message = stage.old.messages().pop().unwrap();
        let text = message.text();
        let ours = &text[..text.len() - message.as_sent().len()];
        assert!(ours.starts_with("Received: from client.example.com ([127.0.0.1])\r\n"), "{ours}");
        assert!(ours.contains("by mx.example.org (Mailshift) with ESMTP id "), "{ours}");
        assert_eq!(ours.contains("for <ann@example.org>"), with_for, "{ours}");
        assert!(ours.contains(" +0000\r\nMailshift-Hop: 1; by=mx.example.org; t="), "{ours}");
        assert_eq!(text.matches("Received:").count(), 1);
    }
    let mut client = stage.node.connect().await?;
    good(&mut client, "HELO x(evil);").await?;
    good(&mut client, "MAIL FROM:<>").await?;
    good(&mut client, "RCPT TO:<ann@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    let text = stage.old.messages().pop().unwrap().text();
    assert!(text.starts_with("Received: from x?evil?? ("), "{text}");
    assert!(text.contains(" with SMTP id "), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_loops_is_refused() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let hops = |count: usize| format!("{}Subject: x\r\n\r\n.\r\n", "Received: x\r\n".repeat(count));
    let (_, reply) = send_raw(&node, hops(101).as_bytes()).await?;
    assert!(reply.to_string().starts_with("554 5.4.6 "), "{reply}");
    let (_, reply) = send_raw(&node, hops(100).as_bytes()).await?;
    assert_eq!(reply.code, 250, "{reply}");
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

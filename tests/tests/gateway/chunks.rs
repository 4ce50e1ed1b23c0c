//! Messages in chunks (RFC 3030): what is delivered is what was counted.

use anyhow::Result;
use tests::gateway_node::Settings;
use tests::sink::{Manners, Sink};

use super::*;

/// Sends `content` in chunks of these sizes, and the rest in the last one, without waiting for answers.
async fn chunks(client: &mut Smtp, content: &[u8], sizes: &[usize]) -> Result<Reply> {
    let (mut sent, mut rest) = (Vec::new(), content);
    for size in sizes {
        let (chunk, behind) = rest.split_at(*size);
        sent.extend_from_slice(format!("BDAT {size}\r\n").as_bytes());
        sent.extend_from_slice(chunk);
        rest = behind;
    }
    sent.extend_from_slice(format!("BDAT {} LAST\r\n", rest.len()).as_bytes());
    sent.extend_from_slice(rest);
    client.conversation.send(&sent).await?;
    for size in sizes {
        let reply = client.reply().await?;
        ensure!(reply.to_string() == format!("250 2.0.0 {size} octets received"), "{reply}");
    }
    client.reply().await
}

#[tokio::test]
async fn every_octet_of_every_chunk_arrives_as_it_was_sent() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    good(&mut client, "EHLO client.example.com").await?;
    let large = b"Subject: x\r\n\r\n.\r\n..\0\xff\r\nBDAT 3 LAST\r\n".repeat(10_000);
    for (content, sizes) in [
        (&b".\r\n"[..], &[1, 0, 1][..]),
        (b"a\r\n.\r\nQUIT\r\n", &[2, 2, 1]),
        (&large, &[1, 70_000, 3]),
    ] {
        good(&mut client, &format!("MAIL FROM:<{SENDER}>")).await?;
        good(&mut client, &format!("RCPT TO:<{ANN}>")).await?;
        let reply = chunks(&mut client, content, sizes).await?;
        assert_eq!(reply.code, 250, "{reply}");
        let message = old.messages().pop().unwrap();
        assert_eq!(message.octets, u64::try_from(message.content.len())?, "it was kept whole");
        assert!(message.as_sent() == content, "{} octets", content.len());
    }
    assert_eq!(old.messages().len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_message_that_grows_too_large_is_refused_and_forgotten_and_the_client_goes_on()
-> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.max_message_size = 200_000;
    settings.rules.memory_per_message = 1000;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    let mut client = envelope(&node, &[ANN]).await?;
    let half = vec![b'x'; 150_000];
    client.conversation.send(b"BDAT 150000\r\n").await?;
    client.conversation.send(&half).await?;
    assert_eq!(client.reply().await?.code, 250);
    assert_eq!(node.temporary_files()?.len(), 1);
    client.conversation.send(b"BDAT 150000 LAST\r\n").await?;
    client.conversation.send(&half).await?;
    assert_eq!(client.reply().await?.to_string(), "552 5.3.4 Message too large");
    node.until_files_gone().await?;
    assert_eq!(client.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_was_sent_is_forgotten_by_rset_and_by_leaving() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.memory_per_message = 1000;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    for leaves in [false, true] {
        let mut client = envelope(&node, &[ANN]).await?;
        client.conversation.send(&[&b"BDAT 5000\r\n"[..], &[b'x'; 5000]].concat()).await?;
        assert_eq!(client.reply().await?.code, 250);
        assert_eq!(node.temporary_files()?.len(), 1);
        if leaves {
            drop(client);
            node.until_files_gone().await?;
        } else {
            good(&mut client, "RSET").await?;
            node.until_files_gone().await?;
            let refused = client.command("BDAT 0 LAST").await?;
            assert_eq!(refused.to_string(), "503 5.5.1 Say MAIL and RCPT first");
        }
    }
    assert!(old.messages().is_empty());
    Ok(())
}

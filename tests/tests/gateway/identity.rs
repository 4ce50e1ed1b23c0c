//! Who an owner thinks the client is (MX-9): XCLIENT, PROXY, or nobody but us.

use anyhow::Result;
use shared::backend::Identity;
use tests::gateway_node::Settings;
use tests::sink::{Manners, Sink};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;

const XCLIENT: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME";

fn xclient_manners(keyword: &'static str) -> Manners {
    let mut manners = Manners::default();
    manners.keywords.push(keyword);
    manners
}

/// A node whose owner is told clients that way.
async fn telling(manners: Manners, identity: Identity) -> Result<(Sink, GatewayNode)> {
    let old = Sink::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = identity);
    let node =
        GatewayNode::start_with([backend], Settings { proxied: true, ..Settings::default() })?;
    node.set_owner("ann", "old");
    node.set_owner("ben", "old");
    Ok((old, node))
}

/// Sends a message for ann as a client at that address.
async fn send_as(node: &GatewayNode, client: &str) -> Result<()> {
    let mut socket = TcpStream::connect(node.address).await?;
    let header = format!("PROXY TCP4 {client} 192.0.2.1 4711 25\r\n");
    socket.write_all(header.as_bytes()).await?;
    let mut client = Smtp::over(socket).await?;
    assert_eq!(client.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn xclient_names_the_client_and_nothing_that_would_give_it_rights() -> Result<()> {
    for protocol in [xclient_manners(XCLIENT), Manners { ..Manners::lmtp() }] {
        let manners = Manners { keywords: vec![XCLIENT, "PIPELINING"], ..protocol };
        let (old, node) = telling(manners, Identity::Xclient).await?;
        send_as(&node, "198.51.100.7").await?;
        assert_eq!(
            old.heard("XCLIENT"),
            ["XCLIENT NAME=[TEMPUNAVAIL] REVERSE_NAME=[TEMPUNAVAIL] HELO=client.example.com \
              PROTO=ESMTP PORT=4711 DESTADDR=192.0.2.1 DESTPORT=25 ADDR=198.51.100.7"]
        );
        let lines = &old.connections()[0].lines;
        let verbs: Vec<&str> = lines.iter().map(|line| &line[1..4]).collect();
        assert_eq!(verbs[..4], ["HLO", "CLI", "HLO", "AIL"]);
        assert_eq!((&lines[0][4..], &lines[2][4..]), (" mx.example.org", " client.example.com"));
    }
    Ok(())
}

#[tokio::test]
async fn a_client_whose_helo_is_no_host_name_gets_ours() -> Result<()> {
    let (old, node) = telling(xclient_manners(XCLIENT), Identity::Xclient).await?;
    let mut socket = TcpStream::connect(node.address).await?;
    socket.write_all(b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 25\r\n").await?;
    let mut client = Smtp::over(socket).await?;
    for line in ["EHLO [198.51.100.7]", "MAIL FROM:<>", "RCPT TO:<ann@example.org>"] {
        good(&mut client, line).await?;
    }
    assert!(!old.heard("XCLIENT")[0].contains("HELO="));
    assert_eq!(old.heard("EHLO"), ["EHLO mx.example.org", "EHLO mx.example.org"]);
    Ok(())
}

#[tokio::test]
async fn xclient_says_only_what_is_offered() -> Result<()> {
    let (old, node) = telling(xclient_manners("XCLIENT NAME ADDR"), Identity::Xclient).await?;
    send_as(&node, "198.51.100.7").await?;
    assert_eq!(old.heard("XCLIENT"), ["XCLIENT NAME=[TEMPUNAVAIL] ADDR=198.51.100.7"]);
    let (old, node) = telling(Manners::default(), Identity::Xclient).await?;
    send_as(&node, "198.51.100.7").await?;
    assert!(old.heard("XCLIENT").is_empty(), "it offers none, and gets the mail all the same");
    Ok(())
}

#[tokio::test]
async fn nobody_but_the_configured_owner_is_told() -> Result<()> {
    let (old, node) = telling(xclient_manners(XCLIENT), Identity::None).await?;
    send_as(&node, "198.51.100.7").await?;
    assert!(old.heard("XCLIENT").is_empty());
    Ok(())
}

#[tokio::test]
async fn a_connection_that_named_one_client_serves_no_other() -> Result<()> {
    for identity in [Identity::Xclient, Identity::Proxy, Identity::ProxyV1] {
        let mut manners = xclient_manners(XCLIENT);
        manners.proxied = identity != Identity::Xclient;
        let (old, node) = telling(manners, identity).await?;
        for client in ["198.51.100.7", "198.51.100.8"] {
            send_as(&node, client).await?;
        }
        assert_eq!((old.connections().len(), old.messages().len()), (2, 2));
    }
    Ok(())
}

#[tokio::test]
async fn proxy_names_the_client_before_anything_else() -> Result<()> {
    let manners = Manners { proxied: true, ..Manners::default() };
    let (old, node) = telling(manners, Identity::Proxy).await?;
    send_as(&node, "198.51.100.7").await?;
    assert_eq!(old.connections()[0].proxied_for, Some("198.51.100.7:4711".parse()?));
    Ok(())
}

#[tokio::test]
async fn the_received_header_names_the_client_of_a_proxy_header() -> Result<()> {
    let (old, node) = telling(Manners::default(), Identity::None).await?;
    send_as(&node, "198.51.100.7").await?;
    let text = old.messages()[0].text();
    assert!(text.starts_with("Received: from client.example.com ([198.51.100.7])\r\n"), "{text}");
    Ok(())
}

//! What strangers may do at the public listener (MX-14, MX-19).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use mx_gateway::dnsbl::Dnsbl;
use shared::address::Domain;
use shared::config::LimitsConfig;
use tests::gateway_node::{GatewayNode, Settings};
use tests::sink::{Answer, Manners, Sink};
use tests::smtp::{self, Smtp};
use tests::test_ca::TestCa;
use tokio::net::UdpSocket;

use super::*;

/// A node with one backend, `old`, where `ann` lives, and whose strangers may do so much.
async fn with_limits(limits: impl FnOnce(&mut LimitsConfig)) -> Result<(Sink, GatewayNode)> {
    let mut settings = Settings::default();
    limits(&mut settings.rules.limits);
    with_settings(settings, Manners::default()).await
}

async fn with_settings(settings: Settings, manners: Manners) -> Result<(Sink, GatewayNode)> {
    let old = Sink::start("old", manners).await?;
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

fn somebody_else() -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 9).into()
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_put_off_and_nobody_else_is() -> Result<()> {
    let (_, node) = with_limits(|limits| limits.connections_per_minute = 3).await?;
    for _ in 0..3 {
        assert_eq!(node.connect().await?.greeting.code, 220);
    }
    let mut refused = node.connect().await?;
    assert!(refused.greeting.to_string().starts_with("421 4.7.0 "), "{}", refused.greeting);
    assert!(refused.conversation.closed().await?.is_empty());
    let other = Smtp::connect_from(somebody_else(), node.address).await?;
    assert_eq!(other.greeting.code, 220);
    Ok(())
}

#[tokio::test]
async fn an_address_that_sends_too_much_is_put_off_whatever_its_connections() -> Result<()> {
    let (old, node) = with_limits(|limits| limits.messages_per_minute = 2).await?;
    for _ in 0..2 {
        let sent = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert_eq!(sent.code, 250, "{sent}");
    }
    let sent = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert!(sent.to_string().starts_with("450 4.7.0 "), "{sent}");
    let mut other = Smtp::connect_from(somebody_else(), node.address).await?;
    assert_eq!(other.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    assert_eq!(old.messages().len(), 3);
    Ok(())
}

#[tokio::test]
async fn who_guesses_recipients_is_sent_away_before_the_owner_hears_more() -> Result<()> {
    let mut settings = Settings::default();
    settings.rules.limits.refused_recipients = 3;
    // Answered without a delay in the first tenth only, which is one of three; so two more seconds at most.
    let unknown = Manners::default().but("RCPT TO:<x", Answer::Say("550 5.1.1 unknown"));
    let (old, node) = with_settings(settings, unknown).await?;
    node.set_domain(Some("old"));
    let mut guesser = envelope(&node, &[]).await?;
    for guess in ["x1", "x2"] {
        let reply = guesser.command(&format!("RCPT TO:<{guess}@example.org>")).await?;
        assert_eq!(reply.code, 550, "{reply}");
    }
    // On another connection: it is the address that counts.
    let mut again = envelope(&node, &[]).await?;
    let reply = again.command("RCPT TO:<x3@example.org>").await?;
    assert!(reply.to_string().starts_with("421 4.7.0 "), "{reply}");
    assert!(again.conversation.closed().await?.is_empty());
    let refused = node.connect().await?;
    assert!(refused.greeting.to_string().starts_with("421 4.7.0 "), "{}", refused.greeting);
    assert_eq!(old.heard("RCPT").len(), 3);
    let mut other = Smtp::connect_from(somebody_else(), node.address).await?;
    assert_eq!(other.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn who_does_not_wait_for_the_greeting_is_sent_away() -> Result<()> {
    let (_, node) = with_limits(|limits| limits.greet_delay = Duration::from_secs(2)).await?;
    let socket = tokio::net::TcpStream::connect(node.address).await?;
    socket.writable().await?;
    // After the connection is accepted, as such clients do.
    tokio::time::sleep(Duration::from_millis(200)).await;
    socket.try_write(b"EHLO x\r\n")?;
    let early = Smtp::over(socket).await?;
    assert_eq!(early.greeting.code, 554, "{}", early.greeting);
    let patient = node.connect().await?;
    assert_eq!(patient.greeting.code, 220, "{}", patient.greeting);
    Ok(())
}

#[tokio::test]
async fn a_session_ends_between_commands_when_it_has_lasted_long_enough() -> Result<()> {
    let (old, node) = with_limits(|limits| limits.session_time = Duration::from_secs(1)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    client.conversation.send(b"Subject: x\r\n\r\nhello\r\n.\r\n").await?;
    assert_eq!(client.reply().await?.code, 250, "a message in hand is taken");
    let farewell = client.reply().await?;
    assert!(farewell.to_string().starts_with("421 4.3.2 "), "{farewell}");
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn exempt_networks_have_no_limits() -> Result<()> {
    let (_, node) = with_limits(|limits| {
        limits.connections_per_minute = 1;
        limits.messages_per_minute = 1;
        limits.exempt_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await?;
    for _ in 0..5 {
        let sent = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert_eq!(sent.code, 250, "{sent}");
    }
    Ok(())
}

/// A name server by which `bl.example` lists 127.0.0.9; `slow.example` is silent, `broken.example` fails.
async fn name_server() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut packet).await {
            let end = 12 + packet[12..length].iter().position(|octet| *octet == 0).unwrap();
            let question = &packet[12..end + 5];
            let text = String::from_utf8_lossy(question).into_owned();
            let is_listed = text.starts_with("\u{1}9\u{1}0\u{1}0\u{3}127") && text.contains("bl");
            let code = match () {
                () if text.contains("slow") => continue,
                // SERVFAIL, NXDOMAIN.
                () if text.contains("broken") => 2,
                () => u8::from(!is_listed) * 3,
            };
            let count = u8::from(is_listed && code == 0);
            let mut reply =
                vec![packet[0], packet[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
            reply.extend_from_slice(question);
            if count == 1 {
                // The name again, A, IN, 60 seconds.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 2]);
            }
            socket.send_to(&reply, peer).await.unwrap();
        }
    });
    Ok(address)
}

fn asking(server: SocketAddr, zones: &[&str]) -> Result<Dnsbl> {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let asked = NameServerConfig::new(server.ip(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![asked]);
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let zones: Vec<Domain> = zones.iter().map(|zone| Domain::parse(zone).unwrap()).collect();
    Ok(Dnsbl::asking(builder.build()?, &zones))
}

#[tokio::test]
async fn a_listed_address_is_sent_away_by_the_lists_name() -> Result<()> {
    let lists = asking(name_server().await?, &["bl.example"])?;
    let settings = Settings { lists, ..Settings::default() };
    let (_, node) = with_settings(settings, Manners::default()).await?;
    let listed = Smtp::connect_from(somebody_else(), node.address).await?;
    let said = listed.greeting.to_string();
    assert!(said.starts_with("554 5.7.1 ") && said.contains("bl.example"), "{said}");
    assert_eq!(node.connect().await?.greeting.code, 220);
    Ok(())
}

#[tokio::test]
async fn a_list_that_does_not_answer_lists_nobody() -> Result<()> {
    let lists = asking(name_server().await?, &["slow.example", "broken.example"])?;
    let settings = Settings { lists, ..Settings::default() };
    let (_, node) = with_settings(settings, Manners::default()).await?;
    let unlisted = Smtp::connect_from(somebody_else(), node.address).await?;
    assert_eq!(unlisted.greeting.code, 220, "{}", unlisted.greeting);
    Ok(())
}

#[tokio::test]
async fn after_a_failed_handshake_starttls_is_not_offered_to_that_address_where_that_is_set()
-> Result<()> {
    let ca = TestCa::new()?;
    for tls_fallback in [true, false] {
        let tls = Some(Arc::clone(ca.issue("mx.example.org")?.acceptor()?.config()));
        let mut settings = Settings { tls, ..Settings::default() };
        settings.rules.tls_fallback = tls_fallback;
        let (_, node) = with_settings(settings, Manners::default()).await?;
        let mut client = node.connect().await?;
        let offered = client.command("EHLO client.example.com").await?;
        assert!(offered.lines.contains(&"STARTTLS".to_owned()), "{offered}");
        good(&mut client, "STARTTLS").await?;
        // A ClientHello of TLS 1.0, as far as its version.
        client.conversation.send(&[22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 1]).await?;
        while client.conversation.octets(1).await.is_ok() {}
        let mut again = node.connect().await?;
        let offered = again.command("EHLO client.example.com").await?;
        let is_offered = offered.lines.contains(&"STARTTLS".to_owned());
        assert_eq!(is_offered, !tls_fallback, "{offered}");
        let mut other = Smtp::connect_from(somebody_else(), node.address).await?;
        let offered = other.command("EHLO client.example.com").await?;
        assert!(offered.lines.contains(&"STARTTLS".to_owned()), "{offered}");
    }
    Ok(())
}

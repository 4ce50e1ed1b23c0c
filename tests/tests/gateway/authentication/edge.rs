//! What reaches the owner: headers in their order, content as it was sent, nothing in our name but ours.

use sha2::{Digest, Sha256};
use shared::config::EnforcementMode;
use tests::dns_zone::Manner;
use tests::gateway_node::{GatewayNode, Settings};
use tests::patience::until;
use tests::signer::{Kind, Signer};
use tests::sink::{Manners, Sink};
use tests::smtp;

use super::super::{ANN, envelope, good, populate};
use super::*;

/// A gateway with a name server and two owners.
struct Place {
    zone: DnsZone,
    old: Sink,
    new: Sink,
    node: GatewayNode,
}

async fn place(change: impl FnOnce(&mut AuthenticationConfig)) -> Result<Place> {
    let zone = DnsZone::start().await?;
    let authenticator = Some(Arc::new(authenticator(&zone, change)?));
    let old = Sink::start("old", Manners::default()).await?;
    let new = Sink::start("new", Manners::default()).await?;
    let backends = [old.configured(), new.configured()];
    let node =
        GatewayNode::start_with(backends, Settings { authenticator, ..Settings::default() })?;
    populate(&node);
    Ok(Place { zone, old, new, node })
}

impl Place {
    async fn send(&self, to: &[&str], text: &str) -> Result<smtp::Reply> {
        smtp::send(self.node.address, "bob@example.com", to, text).await
    }

    /// What the owner `old` got last.
    fn got(&self) -> String {
        self.old.messages().pop().unwrap().text()
    }
}

/// A message from its Received header on: that header, ours of the results, and what stands behind our fields.
fn parts(got: &str) -> (&str, &str, &str) {
    let (received, rest) =
        got.split_at(got.find("Authentication-Results: mx.example.org").unwrap());
    let end = rest.match_indices("\r\n").find(|(at, _)| !rest[at + 2..].starts_with('\t'));
    let (results, rest) = rest.split_at(end.unwrap().0 + 2);
    let id = rest.strip_prefix("Mailshift-Delivery-Id: ").unwrap();
    (received, results, id.split_once("\r\n").unwrap().1)
}

#[tokio::test]
async fn the_results_stand_between_our_received_header_and_the_message() -> Result<()> {
    let place = place(|_| ()).await?;
    place.zone.txt("example.com", "v=spf1 ip4:127.0.0.1 -all");
    let signer = Signer::new(&place.zone, "example.com", Kind::Ed25519)?;
    let text = signer.sign(&letter("bob@example.com"))?;
    assert_eq!(place.send(&[ANN, "ned@example.org"], &text).await?.code, 250);
    let got = place.got();
    let (received, results, rest) = parts(&got);
    assert!(received.starts_with("Received: "), "{received}");
    assert!(received.contains(" +0000\r\nMailshift-Hop: "), "{received}");
    assert_eq!(received.matches("\r\n\t").count() + 2, received.lines().count());
    assert!(results.contains("spf=pass") && results.contains("dkim=pass"), "{results}");
    assert_eq!(rest, text);
    let other = place.new.messages().pop().unwrap().text();
    assert_eq!(parts(&other).1, results, "every owner gets the same");
    Ok(())
}

#[tokio::test]
async fn every_octet_of_a_body_arrives_as_it_was_signed() -> Result<()> {
    let place = place(|_| ()).await?;
    let body: Vec<u8> =
        (0..=255_u8).filter(|b| !b"\r\n".contains(b)).cycle().take(300_000).collect();
    let forged = b"Authentication-Results: mx.example.org; spf=pass\r\n";
    let header = b"From: a@example.com\r\nX: y\r\n";
    let sent = [&header[..], b"\r\n", &body, b"\r\n.leading dot\r\n \r\n\r\n"].concat();
    let text = [&forged[..], &sent].concat();
    let mut client = envelope(&place.node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    let stuffed = String::from_utf8_lossy(&text).contains("\r\n.");
    assert!(stuffed);
    let at = text.windows(3).position(|w| w == b"\r\n.").unwrap() + 2;
    client.conversation.send(&[&text[..at], b".", &text[at..], b".\r\n"].concat()).await?;
    assert_eq!(client.reply().await?.code, 250);
    let got = place.old.messages().pop().unwrap();
    let rest = &got.content[got.content.len() - sent.len()..];
    assert_eq!(Sha256::digest(rest), Sha256::digest(&sent));
    assert!(!got.content.windows(forged.len()).any(|w| w == forged));
    Ok(())
}

#[tokio::test]
async fn headers_in_our_name_are_gone_and_those_of_others_stay() -> Result<()> {
    let place = place(|_| ()).await?;
    let others = "Authentication-Results: mx.example.com; spf=pass\r\n";
    let letter = letter("bob@example.com");
    for forged in [
        "Authentication-Results: mx.example.org; dkim=pass\r\n",
        "AUTHENTICATION-RESULTS :\r\n (x) MX.Example.ORG/1\r\n\t; dkim=pass\r\n",
        "authentication-results: \"mx.example.org\" 1; dmarc=pass\r\n",
    ] {
        for text in [
            format!("{forged}{others}{letter}"),
            format!("{others}{forged}{forged}{letter}"),
            format!("{others}{letter}").replace("\r\n\r\nHello", &format!("\r\n{forged}\r\nHello")),
        ] {
            assert_eq!(place.send(&[ANN], &text).await?.code, 250);
            let got = place.got();
            assert_eq!(parts(&got).2, format!("{others}{letter}"), "{forged:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_writes_nothing_but_values() -> Result<()> {
    let place = place(|_| ()).await?;
    for helo in ["x;dkim=pass", "x(;dmarc=pass", "\"x;spf=pass", "x\\;arc=pass", "a\tdkim=pass"] {
        let mut client = place.node.connect().await?;
        good(&mut client, &format!("HELO {helo}")).await?;
        good(&mut client, "MAIL FROM:<\"a;dkim=pass (\"@example.com>").await?;
        good(&mut client, &format!("RCPT TO:<{ANN}>")).await?;
        assert_eq!(super::super::message(&mut client).await?.code, 250);
        let got = place.got();
        let methods: Vec<String> = results(&got)
            .iter()
            .map(|result| result.split(['=', ' ']).next().unwrap().to_owned())
            .collect();
        assert_eq!(methods, ["iprev", "spf", "spf", "dkim", "arc", "dmarc"], "{got}");
        for forged in ["dkim=pass", "dmarc=pass", "spf=pass", "arc=pass"] {
            assert!(!parts(&got).1.contains(forged), "{got}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_is_enforced_where_all_recipients_domains_wish_it() -> Result<()> {
    for (mode, expected) in [
        (EnforcementMode::Off, 250),
        (EnforcementMode::Quarantine, 250),
        (EnforcementMode::Reject, 550),
    ] {
        let place = place(|config| enforce(config, mode)).await?;
        place.zone.txt("_dmarc.bank.example", "v=DMARC1; p=reject");
        let text = letter("boss@bank.example");
        let reply = place.send(&[ANN, "ned@example.org"], &text).await?;
        assert_eq!(reply.code, expected, "{reply}");
        if mode == EnforcementMode::Reject {
            let said = "550 5.7.1 Refused by the DMARC policy of bank.example";
            assert_eq!(reply.to_string(), said);
            assert!(place.old.messages().is_empty() && place.new.messages().is_empty());
            // The connections to the owners can go on.
            assert_eq!(place.send(&[ANN], &letter("a@free.example")).await?.code, 250);
            continue;
        }
        let got = place.got();
        let marked = got.contains("\r\nMailshift-Policy: quarantine\r\n");
        assert_eq!(marked, mode == EnforcementMode::Quarantine, "{got}");
        assert!(got.contains("\tdmarc=fail "), "{got}");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_parsed_is_delivered_as_it_is() -> Result<()> {
    let place = place(|_| ()).await?;
    for text in ["\r\n", "no header\r\n", ":\r\n\r\n", "\0\x01\r\n\r\nx\r\n", "From:\r\n\r\n"] {
        assert_eq!(place.send(&[ANN], text).await?.code, 250, "{text:?}");
        let got = place.got();
        assert_eq!(parts(&got).2, text);
    }
    for text in [" folded\r\nFrom: a@b.example\r\n", "\t\r\n\r\nx\r\n"] {
        assert_eq!(place.send(&[ANN], text).await?.code, 250, "{text:?}");
        let got = place.got();
        assert_eq!(parts(&got).2, format!("\r\n{text}"), "our headers end before it");
    }
    Ok(())
}

#[tokio::test]
async fn header_bombs_are_delivered_like_any_other_message() -> Result<()> {
    let place = place(|_| ()).await?;
    let signature = "DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=";
    let names: String = (0..50_000).map(|n| format!("x{n}:")).collect();
    let nested = "(".repeat(1_000_000);
    for (what, header) in [
        ("100,000 headers", "X-A: b\r\n".repeat(100_000)),
        ("a line of 1 MB", format!("X-A: {}\r\n", "b".repeat(1_000_000))),
        ("a folded header of 1 MB", format!("X-A: b\r\n{}", " c\r\n".repeat(250_000))),
        ("a header section of 4 MB", "X-A: bcdefgh\r\n".repeat(300_000)),
        ("a signature of 50,000 headers", format!("{signature}{names}from; bh=YQ==; b=YQ==\r\n")),
        ("addresses", format!("From: {}\r\n", "a@b.example, ".repeat(80_000))),
        ("comments in an address", format!("From: {nested}\r\n")),
        ("results that are nobody's", format!("Authentication-Results: {nested}\r\n")),
        ("chains", "ARC-Seal: i=1; a=rsa-sha256; d=a; s=b; cv=none; b=YQ==\r\n".repeat(20_000)),
    ] {
        let text = format!("{header}Subject: {what}\r\n\r\nbody\r\n");
        let reply = place.send(&[ANN], &text).await?;
        assert_eq!(reply.code, 250, "{what}: {reply}");
        let got = place.old.messages().pop().unwrap();
        let results = String::from_utf8_lossy(&got.content[..2000]).into_owned();
        assert!(
            results.contains("\r\nAuthentication-Results: mx.example.org;"),
            "{what}: {results}"
        );
        let sent: [u8; 32] = Sha256::digest(&text).into();
        let behind = got.octets - text.len() as u64;
        assert!(behind < 3000, "{what}: {behind}");
        if got.content.len() as u64 == got.octets {
            let rest = &got.content[usize::try_from(behind)?..];
            assert_eq!(<[u8; 32]>::from(Sha256::digest(rest)), sent, "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn forged_headers_by_the_thousand_are_all_gone() -> Result<()> {
    let place = place(|_| ()).await?;
    let forged = "Authentication-Results: mx.example.org; spf=pass\r\nX-A: b\r\n";
    let text = format!("{}\r\nbody\r\n", forged.repeat(50_000));
    assert_eq!(place.send(&[ANN], &text).await?.code, 250);
    let kept = format!("{}\r\nbody\r\n", "X-A: b\r\n".repeat(50_000));
    let got = place.got();
    assert_eq!(parts(&got).2.len(), kept.len());
    assert!(parts(&got).2 == kept);
    Ok(())
}

#[tokio::test]
async fn a_name_server_that_is_gone_holds_no_message_up_for_good() -> Result<()> {
    let place = place(|config| config.time_limit = Duration::from_millis(500)).await?;
    place.zone.behave("example.com", Manner::Silent);
    place.zone.behave("client.example.com", Manner::Silent);
    place.zone.behave("_dmarc.example.com", Manner::Silent);
    assert_eq!(place.send(&[ANN], &letter("bob@example.com")).await?.code, 250);
    let got = place.got();
    assert!(got.contains("spf=temperror") && got.contains("dmarc=temperror"), "{got}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_while_its_sender_is_looked_at_gets_its_message_delivered_once()
-> Result<()> {
    let place = place(|config| config.time_limit = Duration::from_secs(2)).await?;
    place.zone.behave("client.example.com", Manner::Silent);
    let mut client = envelope(&place.node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    let text = letter("bob@example.com");
    client.conversation.send(format!("{text}.\r\n").as_bytes()).await?;
    drop(client);
    let prints = &place.node.fingerprints;
    until("the client is missed", || (prints.in_hand() == 1).then_some(())).await?;
    let again = || smtp::send(place.node.address, super::super::SENDER, &[ANN], &text);
    let reply = again().await?.to_string();
    assert!(reply.starts_with("451 4.4.5 ") || reply.contains("already delivered"), "{reply}");
    until("it is done", || (prints.len() == 1).then_some(())).await?;
    assert!(again().await?.to_string().contains("already delivered"));
    assert_eq!(place.old.messages().len(), 1);
    Ok(())
}

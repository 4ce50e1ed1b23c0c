//! One connection to an owner: what is sent when, and what the owner can have of it.

mod envelope;
mod offers;
mod pool;

use std::net::SocketAddr;

use mx_gateway::body::{Body, Limits, Memory, Message};
use mx_gateway::delivery::{Connection, DeliveryError, Introduction};
use shared::address::Address;
use shared::backend::MailEndpoint;
use shared::smtp::command::{Addressee, Mail};
use shared::smtp::path::ReversePath;
use tests::patience::PATIENCE;
use tests::sink::Answer;

use super::*;

const HEADER: &str = "Received: from here\r\n";

fn introduction() -> Introduction {
    Introduction {
        hostname: "mx.example.org".into(),
        client: SocketAddr::from(([198, 51, 100, 7], 4711)),
        local: SocketAddr::from(([192, 0, 2, 1], 25)),
        helo: "client.example.com".into(),
        extended: true,
        session: "5f".into(),
    }
}

fn endpoint(sink: &Sink) -> MailEndpoint {
    sink.configured().mail.expect("a mail endpoint")
}

fn mail() -> Mail {
    let from = ReversePath::parse(SENDER).expect("a path");
    Mail::new(from)
}

fn address(text: &str) -> Addressee {
    Address::parse(text).expect("an address").into()
}

/// The same, with BDAT.
fn chunking(mut manners: Manners) -> Manners {
    manners.keywords.push("CHUNKING");
    manners
}

async fn body(octets: &[u8]) -> Result<Message> {
    let limits = Limits {
        max_size: 1 << 30,
        in_memory: 64 * 1024,
        memory: Memory::new(1 << 20),
        directory: std::env::temp_dir(),
    };
    let mut body = Body::new(limits);
    body.append(octets.to_vec()).await;
    body.finish().map_err(|fault| anyhow::anyhow!("{fault:?}"))
}

/// Messages of all sizes, among them those that are sent at once, and those that are not.
fn messages() -> Vec<Vec<u8>> {
    let lines = |count| b".a line that begins with a dot\r\n".repeat(count);
    vec![Vec::new(), b"\r\n".to_vec(), lines(1), lines(1_000), lines(40_000)]
}

/// A message that is not all under way before its owner reads: more than sockets hold.
fn huge() -> Vec<u8> {
    b"many of the same line\r\n".repeat(1_500_000)
}

/// A connection on which ann was accepted and the message is begun.
async fn ready(sink: &Sink) -> Result<Connection> {
    let mut connection = Connection::open(&endpoint(sink), "mx.example.org", None).await?;
    let (from, to) = connection.begin(&introduction(), &mail(), &[&address(ANN)]).await?;
    ensure!(from.code() == 250 && to.iter().all(|to| to.code() == 250), "{from}");
    ensure!(connection.data().await?.code() == 354, "no message is taken");
    Ok(connection)
}

#[tokio::test]
async fn an_owner_that_is_left_before_the_last_octets_has_no_message() -> Result<()> {
    for manners in [Manners::default(), chunking(Manners::default())] {
        let sink = Sink::start("old", manners).await?;
        for (at, message) in messages().iter().enumerate() {
            let mut connection = ready(&sink).await?;
            connection.content(HEADER, &body(message).await?).await?;
            // Nothing is discarded: it gets all that was sent.
            drop(connection);
            sink.until("the connection is over", |sink| sink.connections()[at].closed).await?;
            assert!(sink.messages().is_empty(), "{} octets", message.len());
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_has_the_whole_message_after_its_last_octets() -> Result<()> {
    for manners in [Manners::default(), chunking(Manners::default())] {
        let sink = Sink::start("old", manners).await?;
        for (at, message) in messages().iter().enumerate() {
            let mut connection = ready(&sink).await?;
            connection.content(HEADER, &body(message).await?).await?;
            connection.finish(PATIENCE).await?;
            assert_eq!(connection.verdict().await?.code(), 250);
            let got = &sink.messages()[at];
            assert_eq!(got.octets, (HEADER.len() + message.len()) as u64);
            assert!([HEADER.as_bytes(), message].concat().starts_with(&got.content));
        }
    }
    Ok(())
}

/// DATA could carry none of them unchanged.
#[tokio::test]
async fn by_bdat_a_message_arrives_as_it_is() -> Result<()> {
    let sink = Sink::start("old", chunking(Manners::default())).await?;
    for (at, message) in
        [&b"no line end"[..], b"lone\nLF and CR\r", b"\r\n.\r\nMAIL FROM:<>\r\n"].iter().enumerate()
    {
        let mut connection = ready(&sink).await?;
        connection.content(HEADER, &body(message).await?).await?;
        connection.finish(PATIENCE).await?;
        assert_eq!(connection.verdict().await?.code(), 250);
        assert_eq!(sink.messages()[at].content, [HEADER.as_bytes(), message].concat());
    }
    Ok(())
}

#[tokio::test]
async fn bdat_says_how_long_the_message_is_once() -> Result<()> {
    let (old, node) = alone(chunking(Manners::default())).await?;
    let message = smtp::message("by BDAT");
    let reply = smtp::send(node.address, SENDER, &[ANN], &message).await?;
    assert_eq!(reply.code, 250, "{reply}");
    let octets = old.messages()[0].octets;
    assert_eq!(old.heard("BDAT"), [format!("BDAT {octets} LAST")]);
    assert_eq!(old.messages()[0].as_sent(), message.as_bytes());
    assert!(old.heard("DATA").is_empty());
    Ok(())
}

#[tokio::test]
async fn bdat_is_not_said_where_that_is_configured_or_not_offered() -> Result<()> {
    let old = Sink::start("old", chunking(Manners::default())).await?;
    let new = Sink::start("new", Manners::default()).await?;
    let without = old.configured_with(|mail| mail.chunking = false);
    let node = GatewayNode::start([without, new.configured()])?;
    populate(&node);
    let reply = smtp::send(node.address, SENDER, &[ANN, NED], &smtp::message("by DATA")).await?;
    assert_eq!(reply.code, 250, "{reply}");
    for sink in [old, new] {
        assert_eq!((sink.heard("BDAT").len(), sink.heard("DATA").len()), (0, 1));
    }
    Ok(())
}

#[tokio::test]
async fn by_bdat_lmtp_has_a_verdict_for_each_recipient() -> Result<()> {
    let full = Answer::Say("452 4.2.2 Full");
    let manners = chunking(Manners::lmtp()).but("(verdict) <ben@example.org>", full);
    let sink = Sink::start("old", manners).await?;
    let mut connection = Connection::open(&endpoint(&sink), "mx.example.org", None).await?;
    let (ann, ben) = (address(ANN), address(BEN));
    let (_, to) = connection.begin(&introduction(), &mail(), &[&ann, &ben]).await?;
    assert_eq!(to.len(), 2);
    connection.data().await?;
    connection.content(HEADER, &body(b"x\r\n").await?).await?;
    connection.finish(PATIENCE).await?;
    assert_eq!(connection.verdict().await?.code(), 250);
    assert_eq!(connection.verdict().await?.code(), 452);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_left_while_the_client_wrote_its_message_is_asked_anew_before_bdat()
-> Result<()> {
    let farewell = "421 4.4.2 Timeout";
    let (mut old, node) = alone(chunking(Manners::default()).but("RCPT", Answer::Ask)).await?;
    let mut client = node.connect().await?;
    good(&mut client, "EHLO client.example.com").await?;
    good(&mut client, &format!("MAIL FROM:<{SENDER}>")).await?;
    client.conversation.send(format!("RCPT TO:<{ANN}>\r\n").as_bytes()).await?;
    // It says goodbye behind its answer.
    assert!(old.asked().await?.say(&format!("250 2.1.5 Ok\r\n{farewell}")));
    assert_eq!(client.reply().await?.code, 250);
    say_message(&mut client).await?;
    assert!(old.asked().await?.say("250 2.1.5 Ok"));
    assert_eq!(client.reply().await?.code, 250);
    assert_eq!((old.connections().len(), old.messages().len()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_within_the_message_was_not_sent_it() -> Result<()> {
    let answers = [Answer::Close, Answer::CloseWith("421 4.3.2 Shutting down")];
    for answer in answers {
        let sink = Sink::start("old", Manners::default().but("(content)", answer)).await?;
        let mut connection = ready(&sink).await?;
        let message = body(&huge()).await?;
        let sent = connection.content(HEADER, &message).await;
        assert!(sent.is_err(), "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_before_the_end_of_the_message_is_the_verdict() -> Result<()> {
    let refusal = Answer::Say("552 5.3.4 Too much");
    let sink = Sink::start("old", Manners::default().but("(content)", refusal)).await?;
    let mut connection = ready(&sink).await?;
    connection.content(HEADER, &body(&huge()).await?).await?;
    connection.finish(PATIENCE).await?;
    assert_eq!(connection.verdict().await?.code(), 552);
    // Nobody may take the message for accepted before it is there.
    let early = Answer::Say("250 2.0.0 Ok");
    let sink = Sink::start("old", Manners::default().but("(content)", early)).await?;
    let mut connection = ready(&sink).await?;
    let sent = connection.content(HEADER, &body(&huge()).await?).await;
    assert!(matches!(sent, Err(DeliveryError::Protocol(_))), "{sent:?}");
    Ok(())
}

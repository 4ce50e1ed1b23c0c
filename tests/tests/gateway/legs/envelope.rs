//! Sender and recipients of a transaction: pipelined, in order, within the owner's limits.

use shared::smtp::reply::Reply as Answered;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;

/// Replies that a client may leave unread at most.
const MOST_AHEAD: usize = 100;

fn crowd(count: usize) -> Vec<Addressee> {
    (0..count).map(|number| address(&format!("r{number}@example.org"))).collect()
}

async fn begun(sink: &Sink, to: &[Addressee]) -> Result<(Answered, Vec<Answered>), DeliveryError> {
    let mut connection = Connection::open(&endpoint(sink), "mx.example.org", None).await?;
    connection.begin(&introduction(), &mail(), &to.iter().collect::<Vec<_>>()).await
}

fn codes(replies: &[Answered]) -> Vec<u16> {
    replies.iter().map(Answered::code).collect()
}

/// Answers only when it has as many commands as it may get, or the last one.
async fn patient_server(listener: TcpListener, last: String) -> Result<Vec<usize>> {
    let (socket, _) = listener.accept().await?;
    let mut socket = BufReader::new(socket);
    socket.write_all(b"220 ready\r\n").await?;
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    socket.write_all(b"250-here\r\n250 PIPELINING\r\n").await?;
    let (mut groups, mut pending) = (Vec::new(), 0);
    loop {
        line.clear();
        socket.read_line(&mut line).await?;
        pending += 1;
        let is_last = line.contains(&last);
        // Half of them is left unanswered when the client goes on.
        if is_last || pending == MOST_AHEAD {
            let answered = if is_last { pending } else { MOST_AHEAD / 2 };
            socket.write_all("250 2.1.5 Ok\r\n".repeat(answered).as_bytes()).await?;
            groups.push(answered);
            pending -= answered;
        }
        if is_last {
            return Ok(groups);
        }
    }
}

#[tokio::test]
async fn a_thousand_recipients_go_out_without_waiting_for_each_answer() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let place = listener.local_addr()?;
    let server = tokio::spawn(patient_server(listener, "<r999@".to_owned()));
    let host = shared::backend::Host::new("127.0.0.1", place.port());
    let mail_endpoint = MailEndpoint::new(
        shared::backend::Endpoint::plain(host),
        shared::backend::MailProtocol::Smtp,
    );
    let mut connection = Connection::open(&mail_endpoint, "mx.example.org", None).await?;
    let to = crowd(1000);
    let (from, answers) =
        connection.begin(&introduction(), &mail(), &to.iter().collect::<Vec<_>>()).await?;
    assert_eq!((from.code(), answers.len()), (250, 1000));
    let groups = server.await??;
    assert_eq!(groups.iter().sum::<usize>(), 1001, "{groups:?}");
    Ok(())
}

#[tokio::test]
async fn every_recipient_gets_its_own_answer() -> Result<()> {
    for keywords in [vec!["PIPELINING"], vec![]] {
        let manners = Manners { keywords, ..Manners::default() }
            .but("RCPT TO:<r7@", Answer::Say("550 5.1.1 Nobody"))
            .but("RCPT TO:<r251@", Answer::Say("452 4.2.2 Full"));
        let sink = Sink::start("old", manners).await?;
        let (_, answers) = begun(&sink, &crowd(300)).await?;
        let mut expected = vec![250; 300];
        (expected[7], expected[251]) = (550, 452);
        assert_eq!(codes(&answers), expected);
    }
    Ok(())
}

/// Neither side waits for the other to read.
#[tokio::test]
async fn an_owner_with_much_to_say_does_not_block() -> Result<()> {
    let long = format!("250 2.1.5 {}", "x".repeat(500));
    let manners = Manners::default().but("RCPT", Answer::Say(Box::leak(long.into_boxed_str())));
    let sink = Sink::start("old", manners).await?;
    let (_, answers) = begun(&sink, &crowd(2000)).await?;
    assert_eq!(codes(&answers), [250; 2000]);
    Ok(())
}

#[tokio::test]
async fn a_farewell_among_the_answers_ends_the_connection() -> Result<()> {
    for answer in [Answer::CloseWith("421 4.3.2 Shutting down"), Answer::Close] {
        let sink = Sink::start("old", Manners::default().but("RCPT TO:<r50@", answer)).await?;
        let begun = begun(&sink, &crowd(300)).await;
        assert!(begun.is_err(), "{answer:?}: {begun:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sender_that_is_refused_is_no_answer_to_its_recipients() -> Result<()> {
    let manners = Manners::default().but("MAIL", Answer::Say("550 5.7.1 Not you"));
    let sink = Sink::start("old", manners).await?;
    let (from, answers) = begun(&sink, &crowd(300)).await?;
    assert_eq!((from.code(), answers.len()), (550, 0));
    Ok(())
}

#[tokio::test]
async fn recipients_over_the_owners_limit_are_put_off_without_asking() -> Result<()> {
    let mut manners = Manners::default();
    manners.keywords.push("LIMITS RCPTMAX=3");
    let (old, node) = alone(manners).await?;
    let mut connection = Connection::open(&endpoint(&old), "mx.example.org", None).await?;
    let to = crowd(5);
    let (_, answers) =
        connection.begin(&introduction(), &mail(), &to.iter().collect::<Vec<_>>()).await?;
    assert_eq!(codes(&answers), [250, 250, 250, 452, 452]);
    assert_eq!(connection.add(&address(ANN)).await?.code(), 452);
    assert_eq!(old.heard("RCPT").len(), 3);
    // A client hears of it when it names the one too many.
    let mut client = envelope(&node, &[]).await?;
    let mut said = Vec::new();
    for name in ["a", "b", "c", "d"] {
        node.set_owner(name, "old");
        said.push(client.command(&format!("RCPT TO:<{name}@example.org>")).await?.to_string());
    }
    assert!(said[2].starts_with("250 ") && said[3].starts_with("452 4.5.3 "), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn xforward_comes_before_each_mail_and_the_connection_serves_all() -> Result<()> {
    for answer in ["250 2.0.0 Ok", "550 5.7.0 Not from you"] {
        let mut manners = Manners::default().but("XFORWARD", Answer::Say(answer));
        manners.keywords.push("XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT");
        let old = Sink::start("old", manners).await?;
        let backend = old.configured_as(|e| e.identity = shared::backend::Identity::Xforward);
        let node = GatewayNode::start([backend])?;
        populate(&node);
        for _ in 0..2 {
            let sent = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
            assert_eq!(sent.code, 250, "{sent}");
        }
        let connections = old.connections();
        assert_eq!(connections.len(), 1);
        let verbs: Vec<&str> =
            connections[0].lines.iter().filter_map(|line| line.split(' ').next()).collect();
        let each = ["XFORWARD", "MAIL", "RCPT", "DATA"];
        assert_eq!(verbs, [&["EHLO"][..], &each, &each].concat());
        let line = &old.heard("XFORWARD")[0];
        for word in ["NAME=[UNAVAILABLE]", "ADDR=127.0.0.1", "PROTO=ESMTP", "SOURCE=REMOTE"] {
            assert!(line.contains(word), "{line}");
        }
        // The name of the session, as our log has it.
        assert!(
            line.split(' ').any(|word| word.len() == 38 && word.starts_with("IDENT=")),
            "{line}"
        );
    }
    Ok(())
}

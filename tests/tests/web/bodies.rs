//! Bodies both ways: streamed, bounded, and with the end of what is waited for (HTP-2, HTP-8).

use std::time::Duration;

use tests::web_backend::Manners;
use tests::web_node::{a_moment, get, rules};

use crate::{Stage, post};

#[tokio::test]
async fn a_body_arrives_as_it_was_sent_in_either_framing() {
    let stage = Stage::set().await.unwrap();
    let body = "x".repeat(300_000);
    let mut client = stage.node.connect().await.unwrap();
    let answered = client
        .ask(&post("/echo", "ann", &format!("Content-Length: {}\n", body.len()), &body))
        .await
        .unwrap();
    assert_eq!(answered.body.len(), body.len() + 4);
    let chunked = "Transfer-Encoding: chunked\n";
    let answered =
        client.ask(&post("/echo", "ann", chunked, "5;ext=1\nhello\n3\nyou\n0\n\n")).await.unwrap();
    assert_eq!(answered.body, "old:helloyou");
    let seen = stage.old.seen();
    assert_eq!(seen[0].field("content-length"), Some("300000"));
    assert_eq!(seen[0].field("transfer-encoding"), None);
    assert_eq!(seen[1].field("content-length"), None, "one framing, never two");
}

#[tokio::test]
async fn the_client_is_told_to_go_on_by_the_backend() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let head = post("/echo", "ann", "Content-Length: 2\nExpect: 100-continue\n", "");
    client.say(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 100"));
    client.say(b"hi").await.unwrap();
    assert_eq!(client.hear().await.unwrap().body, "old:hi");
    let mut client = stage.node.connect().await.unwrap();
    let head = post("/refuse", "ann", "Content-Length: 2\nExpect: 100-continue\n", "");
    client.say(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 417"), "no 100 before it");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_is_heard() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let head = post("/early", "ann", "Content-Length: 10000000\n", "");
    client.say(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.say(&[b'x'; 100_000]).await.unwrap();
    let answered = client.hear().await.unwrap();
    assert_eq!((answered.status, &*answered.body), (413, "large"));
}

#[tokio::test]
async fn a_body_is_bounded_whether_its_length_is_said_or_not() {
    let mut rules = rules();
    rules.web.max_body = 1000;
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let said = post("/echo", "ann", "Content-Length: 1001\n", &"x".repeat(1001));
    assert_eq!(stage.node.ask(&said).await.unwrap().status, 413);
    assert!(stage.old.seen().is_empty());
    let chunks = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let unsaid = post("/echo", "ann", "Transfer-Encoding: chunked\n", "").replace('\n', "\r\n");
    let mut client = stage.node.connect().await.unwrap();
    client.say(unsaid.as_bytes()).await.unwrap();
    client.say(chunks.as_bytes()).await.unwrap();
    assert_eq!(client.hear().await.unwrap().status, 413);
    assert!(stage.old.seen().is_empty(), "no backend has a whole request of it");
    let fits = post("/echo", "ann", "Content-Length: 1000\n", &"x".repeat(1000));
    assert_eq!(stage.node.ask(&fits).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_its_body_is_not_waited_for() {
    let mut rules = rules();
    rules.web.body_timeout = Duration::from_millis(200);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let half = post("/echo", "ann", "Content-Length: 10\n", "half");
    assert_eq!(client.ask(&half).await.unwrap().status, 408);
    assert!(stage.old.seen().is_empty());
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
}

#[tokio::test]
async fn a_client_that_has_gone_leaves_nothing_behind() {
    let stage = Stage::set().await.unwrap();
    for path in ["/slow", "/sse", "/half"] {
        let mut client = stage.node.connect().await.unwrap();
        client.say(get(path, "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
        tests::patience::until("its connection", || (stage.old.connections().0 > 0).then_some(()))
            .await
            .unwrap();
        a_moment().await;
        drop(client);
        stage.old.left_alone().await.unwrap();
        assert_eq!(stage.node.ownership.registry().counts().0, 0, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_not_waited_for() {
    let mut rules = rules();
    rules.web.body_timeout = Duration::from_millis(300);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let body = "x".repeat(4_000_000);
    let mut client = stage.node.connect().await.unwrap();
    let echo = post("/echo", "ann", &format!("Content-Length: {}\n", body.len()), &body);
    client.say(echo.replace('\n', "\r\n").as_bytes()).await.unwrap();
    stage.old.until_seen(1).await.unwrap();
    let registry = stage.node.ownership.registry();
    tests::patience::until("its end", || (registry.counts().0 == 0).then_some(())).await.unwrap();
}

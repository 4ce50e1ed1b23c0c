//! What goes on: event streams and WebSockets pass without waiting (HTP-2).

use std::time::Duration;

use tests::web_backend::Manners;
use tests::web_node::{a_moment, get};

use crate::Stage;

const UPGRADE: &str =
    "\nConnection: keep-alive, Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: x\n\n";

#[tokio::test]
async fn each_event_is_there_when_it_is_sent() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/sse", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    for _ in 0..3 {
        client.until(b"data: old\n\n").await.unwrap();
    }
    assert_eq!(stage.node.ownership.registry().counts().0, 1);
}

fn short() -> shared::config::LoginConfig {
    let mut rules = tests::web_node::rules();
    rules.web.head_timeout = Duration::from_millis(100);
    rules.web.keepalive = Duration::from_millis(200);
    rules
}

#[tokio::test]
async fn a_stream_goes_on_for_longer_than_a_connection_may_be_idle() {
    let stage = Stage::set_with(short(), Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/sse", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    for _ in 0..30 {
        client.until(b"data: old\n\n").await.unwrap();
    }
}

#[tokio::test]
async fn a_request_goes_on_for_longer_than_a_connection_may_be_idle() {
    let stage = Stage::set_with(short(), Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/slow", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    for _ in 0..5 {
        a_moment().await;
    }
    stage.old.go_on();
    assert_eq!(client.hear().await.unwrap().body, "old slow");
}

#[tokio::test]
async fn a_connection_that_is_idle_is_closed_and_one_that_asks_now_and_then_is_not() {
    let mut rules = short();
    rules.web.keepalive = Duration::from_secs(1);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    for _ in 0..10 {
        assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().status, 200);
        a_moment().await;
    }
    client.closed().await.unwrap();
    // Also when it was not idle for as long as that.
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/slow", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    for _ in 0..8 {
        a_moment().await;
    }
    stage.old.go_on();
    assert_eq!(client.hear().await.unwrap().body, "old slow");
    let closed = tokio::time::timeout(Duration::from_secs(10), client.closed());
    closed.await.expect("long before the longest silence of a session").unwrap();
    let mut silent = stage.node.connect().await.unwrap();
    silent.closed().await.unwrap();
}

#[tokio::test]
async fn what_runs_at_a_hand_over_goes_on() {
    let stage = Stage::set_with(short(), Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/sse", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.until(b"data: old\n\n").await.unwrap();
    stage.node.lifecycle.drain().await;
    for _ in 0..30 {
        client.until(b"data: old\n\n").await.unwrap();
    }
}

#[tokio::test]
async fn a_websocket_carries_octets_both_ways_after_the_first() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client
        .say(get("/ws", "ann").replace("\n\n", UPGRADE).replace('\n', "\r\n").as_bytes())
        .await
        .unwrap();
    let head = client.head().await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for word in [&b"one"[..], b"\x00\xff"] {
        client.say(word).await.unwrap();
        client.until(&[b"old", word].concat()).await.ok();
    }
    let seen = stage.old.seen().remove(0);
    assert_eq!(seen.field("sec-websocket-key"), Some("x"));
    drop(client);
    stage.old.left_alone().await.unwrap();
    assert_eq!(stage.node.ownership.registry().counts().0, 0);
}

#[tokio::test]
async fn an_upgrade_elsewhere_is_no_upgrade() {
    let stage = Stage::set().await.unwrap();
    let asked = get("/echo", "ann").replace("\n\n", UPGRADE);
    assert_eq!(stage.node.ask(&asked).await.unwrap().body, "old:");
    assert_eq!(stage.old.seen()[0].field("upgrade"), None);
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_like_any_other() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    // The backend is asked without it.
    let asked = get("/ws", "ann");
    assert_eq!(client.ask(&asked).await.unwrap().status, 400);
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_stop_lets_what_runs_finish_and_takes_no_more() {
    let stage = Stage::set().await.unwrap();
    let mut idle = stage.node.connect().await.unwrap();
    assert_eq!(idle.ask(&get("/echo", "ann")).await.unwrap().status, 200);
    let mut busy = stage.node.connect().await.unwrap();
    busy.say(get("/slow", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    stage.old.until_seen(2).await.unwrap();
    let lifecycle = stage.node.lifecycle.clone();
    let stopping =
        tokio::spawn(async move { lifecycle.shut_down(tests::patience::PATIENCE).await });
    idle.closed().await.unwrap();
    stage.old.go_on();
    assert_eq!(busy.hear().await.unwrap().body, "old slow");
    assert_eq!(stopping.await.unwrap(), 0);
}

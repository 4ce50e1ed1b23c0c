//! Requests when their account moves (HTP-7, KIK-1, P4, P5).

use std::time::Duration;

use tests::web_backend::Manners;
use tests::web_node::{a_moment, get, rules};

use crate::{Stage, post};

#[tokio::test]
async fn after_a_flip_the_next_request_of_an_open_connection_is_the_new_owners() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "old:");
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "new:");
}

#[tokio::test]
async fn a_request_in_flight_may_finish_within_the_grace_and_is_busy_until_then() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client
        .say(post("/slow", "ann", "Content-Length: 0\n", "").replace('\n', "\r\n").as_bytes())
        .await
        .unwrap();
    stage.old.until_seen(1).await.unwrap();
    stage.node.set_owner("ann", "new");
    assert_eq!(stage.node.ownership.registry().busy().len(), 1, "busy until it has ended");
    stage.old.go_on();
    assert_eq!(client.hear().await.unwrap().body, "old slow");
    stage.node.applied().await.unwrap();
}

#[tokio::test]
async fn one_that_takes_longer_is_cut_and_may_come_again() {
    let mut rules = rules();
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client
        .say(post("/slow", "ann", "Content-Length: 0\n", "").replace('\n', "\r\n").as_bytes())
        .await
        .unwrap();
    stage.old.until_seen(1).await.unwrap();
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    let answered = client.hear().await.unwrap();
    assert_eq!(answered.status, 503);
    assert!(answered.field("retry-after").is_some());
    stage.old.left_alone().await.unwrap();
    assert!(stage.new.seen().is_empty(), "what may have been done is not done again");
}

#[tokio::test]
async fn what_does_no_harm_is_asked_again_at_the_new_owner() {
    let mut rules = rules();
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/slow", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    stage.old.until_seen(1).await.unwrap();
    stage.new.go_on();
    stage.node.set_owner("ann", "new");
    assert_eq!(client.hear().await.unwrap().body, "new slow");
    stage.node.applied().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_has_begun_is_cut_when_the_grace_is_over() {
    let mut rules = rules();
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/half", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.head().await.unwrap();
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    client.closed().await.unwrap();
    stage.old.left_alone().await.unwrap();
}

/// The answer to a wrong password is delayed for seconds.
#[tokio::test]
async fn a_no_that_is_answered_late_keeps_up_no_fence() {
    let mut rules = rules();
    rules.failure_delay = Duration::from_mins(1);
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/wrong", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    stage.old.until_seen(1).await.unwrap();
    stage.node.set_owner("ann", "new");
    let applied = stage.node.applied();
    tokio::time::timeout(Duration::from_secs(10), applied).await.expect("in time").unwrap();
    assert_eq!(client.hear().await.unwrap().status, 503);
}

/// Whoever reads nothing must not keep up a fence.
#[tokio::test]
async fn an_answer_that_nobody_takes_is_cut_like_any_other() {
    let mut rules = rules();
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/endless", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.head().await.unwrap();
    // As much as fits in between.
    a_moment().await;
    stage.node.set_owner("ann", "new");
    let applied = stage.node.applied();
    tokio::time::timeout(Duration::from_secs(10), applied)
        .await
        .expect("long before it is given up")
        .unwrap();
    stage.old.left_alone().await.unwrap();
}

#[tokio::test]
async fn an_event_stream_ends_at_once_and_the_next_is_the_new_owners() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/sse", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.until(b"data: old").await.unwrap();
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    client.closed().await.unwrap();
    stage.old.left_alone().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(get("/sse", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.until(b"data: new").await.unwrap();
}

#[tokio::test]
async fn a_websocket_ends_at_once_and_the_next_is_the_new_owners() {
    let stage = Stage::set().await.unwrap();
    let upgrade =
        get("/ws", "ann").replace("\n\n", "\nConnection: Upgrade\nUpgrade: websocket\n\n");
    let mut client = stage.node.connect().await.unwrap();
    client.say(upgrade.replace('\n', "\r\n").as_bytes()).await.unwrap();
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
    client.say(b"hello").await.unwrap();
    client.until(b"oldhello").await.unwrap();
    assert_eq!(stage.node.ownership.registry().counts().0, 1, "it is a session");
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    client.closed().await.unwrap();
    stage.old.left_alone().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    client.say(upgrade.replace('\n', "\r\n").as_bytes()).await.unwrap();
    client.head().await.unwrap();
    client.say(b"hello").await.unwrap();
    client.until(b"newhello").await.unwrap();
}

#[tokio::test]
async fn a_request_waits_out_a_hold_and_is_routed_by_the_row_after_it() {
    let mut rules = rules();
    rules.hold_wait = Duration::from_secs(20);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    stage.node.hold("ann", "old");
    let mut client = stage.node.connect().await.unwrap();
    client
        .say(post("/echo", "ann", "Content-Length: 5\n", "hello").replace('\n', "\r\n").as_bytes())
        .await
        .unwrap();
    a_moment().await;
    assert!(stage.node.ownership.registry().busy().is_empty(), "who waits keeps no fence up");
    stage.node.set_owner("ann", "new");
    assert_eq!(client.hear().await.unwrap().body, "new:hello");
    assert!(stage.old.seen().is_empty());
}

#[tokio::test]
async fn a_hold_that_lasts_is_a_temporary_refusal() {
    let stage = Stage::set().await.unwrap();
    stage.node.hold("ann", "old");
    let answered = stage.node.ask(&get("/echo", "ann")).await.unwrap();
    assert_eq!((answered.status, answered.field("retry-after")), (503, Some("5")));
}

#[tokio::test]
async fn an_upload_under_way_is_cut_and_its_account_is_busy_until_it_is() {
    let mut rules = rules();
    rules.kick_grace = Duration::from_millis(100);
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let begun = post("/echo", "ann", "Content-Length: 100000\n", "begun");
    client.say(begun.replace('\n', "\r\n").as_bytes()).await.unwrap();
    tests::patience::until("a connection", || (stage.old.connections().0 == 1).then_some(()))
        .await
        .unwrap();
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    assert_eq!(client.hear().await.unwrap().status, 503);
    stage.old.left_alone().await.unwrap();
    assert!(stage.old.seen().is_empty() && stage.new.seen().is_empty());
}

//! What clients are told, and whose fault it is (study of RFC 9110 §15; HTP-7, HTP-8).

use std::time::Duration;

use shared::ownership::map::AccountRow;
use tests::web_backend::Manners;
use tests::web_node::{basic, get, rules};

use crate::{Stage, post};

fn by(local: &str, password: &str, path: &str) -> String {
    let authorization = basic(local, password);
    format!("GET {path} HTTP/1.1\nHost: mail.example.org\n{authorization}\n\n")
}

#[tokio::test]
async fn who_names_nobody_is_asked_to_log_in() {
    let stage = Stage::set().await.unwrap();
    let answered = stage.node.ask("GET /echo HTTP/1.1\nHost: mail.example.org\n\n").await.unwrap();
    assert_eq!(answered.status, 401);
    assert!(answered.field("www-authenticate").unwrap().starts_with("Basic realm="));
    assert!(stage.old.seen().is_empty() && stage.new.seen().is_empty());
}

#[tokio::test]
async fn a_name_that_nobody_has_and_a_wrong_password_are_guesses_and_a_fault_of_ours_is_none() {
    let mut rules = rules();
    rules.guesses_per_address = 3;
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    stage
        .node
        .set("gone", AccountRow { owner: "mars".into(), held: false, login: true, flipped: None });
    stage.node.hold("held", "old");
    for local in ["gone", "held"] {
        for _ in 0..5 {
            let answered = stage.node.ask(&get("/echo", local)).await.unwrap();
            assert_eq!(answered.status, 503, "{local}");
        }
    }
    assert_eq!(stage.node.ask(&by("nobody", "x", "/echo")).await.unwrap().status, 401);
    assert_eq!(stage.node.ask(&by("ann", "x", "/wrong")).await.unwrap().status, 401);
    assert_eq!(stage.node.ask(&by("ann", "x", "/wrong")).await.unwrap().status, 401);
    let answered = stage.node.ask(&get("/echo", "bob")).await.unwrap();
    assert_eq!(answered.status, 429);
    assert!(answered.field("retry-after").is_some());
}

/// Much of the web is there for everybody, whatever password comes with it.
#[tokio::test]
async fn a_yes_forgives_no_guesses() {
    let mut rules = rules();
    rules.guesses_per_address = 3;
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stage.node.ask(&by("ann", "x", "/wrong")).await.unwrap().status, 401);
        let open = stage.node.ask(&by("ann", "x", "/echo")).await.unwrap();
        assert!(open.status == 200 || open.status == 429, "{open:?}");
    }
    assert_eq!(stage.node.ask(&by("ann", "x", "/wrong")).await.unwrap().status, 429);
}

#[tokio::test]
async fn a_token_that_has_run_out_is_nobodys_guess() {
    let mut rules = rules();
    rules.guesses_per_address = 1;
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let stale = "GET /wrong HTTP/1.1\nHost: mail.example.org\nAuthorization: Bearer sw1.c2VhbGVk.YW5uQGV4YW1wbGUub3Jn\n\n";
    for _ in 0..3 {
        let answered = stage.node.ask(stale).await.unwrap();
        assert_eq!((answered.status, &*answered.body), (401, "no"), "the backend's own words");
    }
}

#[tokio::test]
async fn past_the_lease_everything_is_refused_for_now() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().status, 200);
    stage.node.end_lease();
    let answered = client.ask(&get("/echo", "ann")).await.unwrap();
    assert_eq!(answered.status, 503);
    assert_eq!(stage.old.seen().len(), 1);
}

#[tokio::test]
async fn a_backend_that_is_down_or_slow_or_breaks_off_is_told_apart() {
    let stage = Stage::set().await.unwrap();
    let mut backend = stage.old.configured();
    backend.http.as_mut().unwrap().reply_timeout = Duration::from_millis(200);
    stage.node.ownership.set_backends([backend].into_iter().collect());
    assert_eq!(stage.node.ask(&get("/hang", "ann")).await.unwrap().status, 504);
    assert_eq!(
        stage.node.ask(&post("/close", "ann", "Content-Length: 0\n", "")).await.unwrap().status,
        502
    );
    assert_eq!(stage.node.ask(&get("/garbage", "ann")).await.unwrap().status, 502);
    let mut nowhere = stage.old.configured();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    nowhere.http.as_mut().unwrap().hosts[0].port = unused.port();
    stage.node.ownership.set_backends([nowhere].into_iter().collect());
    let answered = stage.node.ask(&get("/echo", "ann")).await.unwrap();
    assert_eq!((answered.status, answered.field("retry-after")), (503, Some("5")));
}

#[tokio::test]
async fn a_backend_without_http_is_a_mistake_of_ours() {
    let stage = Stage::set().await.unwrap();
    let mut backend = stage.old.configured();
    backend.http = None;
    stage.node.ownership.set_backends([backend].into_iter().collect());
    assert_eq!(stage.node.ask(&get("/echo", "ann")).await.unwrap().status, 500);
}

#[tokio::test]
async fn what_no_rule_names_is_not_there() {
    let mut rules = rules();
    rules.web.rules = std::sync::Arc::default();
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    assert_eq!(stage.node.ask(&get("/echo", "ann")).await.unwrap().status, 404);
}

#[tokio::test]
async fn what_has_come_by_before_is_a_loop() {
    let stage = Stage::set().await.unwrap();
    let request = get("/echo", "ann").replace("\n\n", "\nVia: 1.1 mailshift-test\n\n");
    assert_eq!(stage.node.ask(&request).await.unwrap().status, 508);
    // A node whose backend is itself.
    let mut itself = stage.old.configured();
    itself.http.as_mut().unwrap().hosts[0].port = stage.node.address.port();
    stage.node.ownership.set_backends([itself].into_iter().collect());
    assert_eq!(stage.node.ask(&get("/echo", "ann")).await.unwrap().status, 508);
}

#[tokio::test]
async fn a_kept_connection_that_its_server_has_closed_is_nobodys_trouble() {
    let closes = Manners { closes: true, ..Manners::default() };
    let stage = Stage::set_with(rules(), closes).await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    for _ in 0..20 {
        let answered =
            client.ask(&post("/echo", "ann", "Content-Length: 2\n", "hi")).await.unwrap();
        assert_eq!((answered.status, &*answered.body), (200, "old:hi"));
    }
    assert_eq!(stage.old.seen().len(), 20, "each was asked once");
}

//! Which request goes where (HTP-1, HTP-2).

use shared::backend::BackendName;
use shared::web::{AccountSource, Action, Rule};
use tests::web_backend::Manners;
use tests::web_node::{get, rules};

use crate::{Stage, post};

fn name(text: &str) -> BackendName {
    BackendName::parse(text).unwrap()
}

#[tokio::test]
async fn each_request_of_one_connection_goes_to_its_own_owner() {
    let stage = Stage::set().await.unwrap();
    stage.node.set_owner("bob", "new");
    let mut client = stage.node.connect().await.unwrap();
    for _ in 0..3 {
        assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "old:");
        assert_eq!(client.ask(&get("/echo", "bob")).await.unwrap().body, "new:");
    }
    assert_eq!(stage.old.connections().1, 1, "its connection is kept");
}

#[tokio::test]
async fn connections_to_a_backend_are_shared_by_clients() {
    let stage = Stage::set().await.unwrap();
    for local in ["ann", "bob", "ann"] {
        assert_eq!(stage.node.ask(&get("/echo", local)).await.unwrap().status, 200);
    }
    assert_eq!(stage.old.connections().1, 1);
}

#[tokio::test]
async fn with_proxy_a_connection_is_its_clients() {
    let stage = Stage::set().await.unwrap();
    let mut backend = stage.old.configured();
    let http = backend.http.as_mut().unwrap();
    http.identity = shared::backend::Identity::ProxyV1;
    stage.node.ownership.set_backends([backend].into_iter().collect());
    for _ in 0..2 {
        let mut client = stage.node.connect().await.unwrap();
        // The server here takes the header for a part of the first request's head.
        for _ in 0..2 {
            client.say(get("/echo", "ann").replace('\n', "\r\n").as_bytes()).await.unwrap();
            assert_eq!(client.hear().await.unwrap().status, 200);
        }
    }
    assert_eq!(stage.old.connections().1, 2, "one for each client");
    let first = &stage.old.seen()[0];
    assert!(first.head.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{}", first.head);
}

#[tokio::test]
async fn a_rule_pins_or_falls_back_and_the_first_decides() {
    let mut rules = rules();
    let pinned = Rule::new("/pinned/**", Action::Backend(name("new"))).unwrap();
    let fallback =
        Action::Account { sources: vec![AccountSource::Basic], fallback: Some(name("new")) };
    let open = Rule::new("/open/**", fallback).unwrap();
    let posts = Rule {
        methods: vec!["POST".into()],
        ..Rule::new("/echo", Action::Backend(name("new"))).unwrap()
    };
    let own = rules.web.rules.to_vec();
    rules.web.rules = [pinned, open, posts].into_iter().chain(own).collect();
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    let ask = async |request: &str| stage.node.ask(request).await.unwrap().body;
    assert_eq!(ask(&get("/pinned/echo", "ann")).await, "new:");
    assert_eq!(ask(&get("/x/../pinned/echo", "ann")).await, "new:");
    assert_eq!(ask(&get("//pinned/echo", "ann")).await, "new:");
    assert_eq!(ask(&get("/%70inned/echo", "ann")).await, "new:");
    assert_eq!(ask(&get("/open/echo", "ann")).await, "old:");
    assert_eq!(ask("GET /open/echo HTTP/1.1\nHost: mail.example.org\n\n").await, "new:");
    assert_eq!(ask(&get("/echo", "ann")).await, "old:");
    assert_eq!(ask(&post("/echo", "ann", "Content-Length: 1\n", "x")).await, "new:x");
}

#[tokio::test]
async fn a_form_names_its_account_and_arrives_whole() {
    let mut rules = rules();
    let login = Rule::by_account("/login", &[AccountSource::Form("user".into())]).unwrap();
    rules.web.rules = [login].into();
    let stage = Stage::set_with(rules, Manners::default()).await.unwrap();
    stage.node.set_owner("bob", "new");
    let body = format!("pad={}&user=bob%40example.org&x=1", "y".repeat(3000));
    let framings = [
        (format!("Content-Length: {}\n", body.len()), body.clone()),
        // The reference did not look into these.
        (
            "Transfer-Encoding: chunked\n".to_owned(),
            format!(
                "{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
                2000,
                &body[..2000],
                body.len() - 2000,
                &body[2000..]
            ),
        ),
    ];
    for (framing, text) in framings {
        let head = format!(
            "POST /login HTTP/1.1\r\nHost: mail.example.org\r\nContent-Type: application/x-www-form-urlencoded\r\n{}\r\n",
            framing.replace('\n', "\r\n")
        );
        let mut client = stage.node.connect().await.unwrap();
        client.say(head.as_bytes()).await.unwrap();
        client.say(text.as_bytes()).await.unwrap();
        assert_eq!(client.hear().await.unwrap().body, format!("new:{body}"));
    }
}

#[tokio::test]
async fn a_token_names_its_account_and_one_that_does_not_is_no_guess() {
    let stage = Stage::set().await.unwrap();
    let bearer = |token: &str| {
        format!("GET /echo HTTP/1.1\nHost: mail.example.org\nAuthorization: Bearer {token}\n\n")
    };
    // {"email":"ann@example.org"}
    let jwt = bearer("e30.eyJlbWFpbCI6ImFubkBleGFtcGxlLm9yZyJ9.x");
    let stalwart = bearer("sw1.c2VhbGVk.YW5uQGV4YW1wbGUub3Jn");
    let context = stage.node.context.load_full();
    assert!(
        context.names.token_claims.is_empty() || stage.node.ask(&jwt).await.unwrap().status == 200
    );
    assert_eq!(stage.node.ask(&stalwart).await.unwrap().body, "old:");
    let opaque = stage.node.ask(&bearer("opaque")).await.unwrap();
    assert_eq!(
        opaque.status, 500,
        "a fault of ours is no wrong password, and nobody's token is guessed"
    );
    assert!(stage.new.seen().is_empty());
}

#[tokio::test]
async fn an_opaque_token_is_asked_for_at_every_backend_where_that_is_configured() {
    let mut rules = rules();
    rules.web.discovery = Some("/json/session".into());
    let manners =
        Manners { json: r#"{"username":"ann@example.org"}"#.into(), ..Manners::default() };
    let stage = Stage::set_with(rules, manners).await.unwrap();
    let ask = "GET /echo HTTP/1.1\nHost: mail.example.org\nAuthorization: Bearer opaque\n\n";
    for _ in 0..2 {
        assert_eq!(stage.node.ask(ask).await.unwrap().body, "old:");
    }
    let asked = stage.new.seen();
    assert_eq!(asked.len(), 1, "it is remembered");
    assert_eq!(asked[0].field("authorization"), Some("Bearer opaque"));
}

#[tokio::test]
async fn a_code_goes_to_the_server_that_issued_it() {
    let mut rules = rules();
    let device = Rule::by_account("/json/device", &[AccountSource::Basic]).unwrap();
    let device = Rule { issues_codes: true, ..device };
    let sources = [AccountSource::FormCode("device_code".into())];
    let fallback = Action::Account { sources: sources.to_vec(), fallback: Some(name("old")) };
    let token = Rule::new("/token", fallback).unwrap();
    rules.web.rules = [device, token].into();
    let manners = Manners { json: r#"{"device_code":"d1"}"#.into(), ..Manners::default() };
    let stage = Stage::set_with(rules, manners).await.unwrap();
    stage.node.set_owner("bob", "new");
    let issued = stage.node.ask(&get("/json/device", "bob")).await.unwrap();
    assert_eq!(issued.body, r#"{"device_code":"d1"}"#);
    let redeem = |code: &str| {
        let body = format!("device_code={code}");
        format!(
            "POST /token HTTP/1.1\nHost: mail.example.org\nContent-Type: application/x-www-form-urlencoded\nContent-Length: {}\n\n{body}",
            body.len()
        )
    };
    assert_eq!(stage.node.ask(&redeem("d1")).await.unwrap().body, "new:device_code=d1");
    assert_eq!(stage.node.ask(&redeem("d2")).await.unwrap().body, "old:device_code=d2");
}

#[tokio::test]
async fn urls_of_a_backend_become_those_of_the_public_name() {
    let manners = Manners {
        json: r#"{"apiUrl":"http://10.1.1.1/jmap/","capabilities":{}}"#.into(),
        ..Manners::default()
    };
    let stage = Stage::set_with(rules(), manners).await.unwrap();
    let session = stage.node.ask(&get("/jmap/session", "ann")).await.unwrap();
    assert_eq!(session.status, 200);
    assert!(session.body.contains(r#""apiUrl":"http://mail.example.org/jmap/""#), "{session:?}");
    let other = stage.node.ask(&get("/json/other", "ann")).await.unwrap();
    assert!(other.body.contains("10.1.1.1"), "only session objects: {other:?}");
}

#[tokio::test]
async fn rules_that_change_count_for_connections_that_are_open() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "old:");
    let mut changed = rules();
    changed.web.rules = [Rule::new("/**", Action::Backend(name("new"))).unwrap()].into();
    let context = stage.node.context.load_full();
    let context = login_proxy::web::Context {
        ownership: context.ownership.clone(),
        shared: context.shared.clone(),
        lifecycle: context.lifecycle.clone(),
        rules: changed,
        names: context.names.clone(),
        tls: None,
        via: context.via.clone(),
        published: context.published.clone(),
        common: context.common.clone(),
    };
    stage.node.context.store(std::sync::Arc::new(context));
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "new:");
}

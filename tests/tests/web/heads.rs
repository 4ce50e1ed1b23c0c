//! What of a head goes on, either way (HTP-6).

use tests::web_node::get;

use crate::Stage;

#[tokio::test]
async fn a_backend_is_told_by_us_who_the_client_is() {
    let stage = Stage::set().await.unwrap();
    let forged = "X-Forwarded-For: 1.2.3.4\nForwarded: for=1.2.3.4\nX-Real-IP: 1.2.3.4\nX_Forwarded_For: 1.2.3.4\n\
                  Remote-User: root\nX-Request-Id: forged\nConnection: x-mine, keep-alive\nX-Mine: 1\nTE: trailers\n\
                  Proxy-Authorization: Basic eA==\nUpgrade: h2c\nAccept-Language: d\u{e9}";
    let request = get("/echo", "ann").replace("\n\n", &format!("\n{forged}\n\n"));
    assert_eq!(stage.node.ask(&request).await.unwrap().status, 200);
    let seen = stage.old.seen().remove(0);
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(seen.field("forwarded"), Some("for=127.0.0.1;proto=http;host=\"mail.example.org\""));
    assert_eq!(seen.field("host"), Some("mail.example.org"));
    assert_eq!(seen.field("via"), Some("1.1 mailshift-test"));
    assert_eq!(seen.field("accept-language").map(str::len), Some("d\u{e9}".len()), "octets stay");
    assert_eq!(seen.field("x-request-id").map(str::len), Some(32));
    for gone in ["x_forwarded_for", "remote-user", "x-mine", "te", "proxy-authorization", "upgrade"]
    {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
}

#[tokio::test]
async fn a_trusted_front_names_its_client_and_nobody_else_does() {
    let mut rules = tests::web_node::rules();
    rules.trusted_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let stage = Stage::set_with(rules, tests::web_backend::Manners::default()).await.unwrap();
    let request = get("/echo", "ann").replace("\n\n", "\nX-Forwarded-For: 8.8.8.8, 192.0.2.7\n\n");
    assert_eq!(stage.node.ask(&request).await.unwrap().status, 200);
    assert_eq!(stage.old.seen()[0].field("x-forwarded-for"), Some("192.0.2.7"));
}

#[tokio::test]
async fn what_is_one_connections_does_not_come_back() {
    let stage = Stage::set().await.unwrap();
    let answered = stage.node.ask(&get("/hop", "ann")).await.unwrap();
    assert_eq!((answered.status, &*answered.body), (200, "old"));
    for gone in ["x-hop", "keep-alive", "alt-svc"] {
        assert_eq!(answered.field(gone), None, "{gone}");
    }
}

#[tokio::test]
async fn a_redirection_to_the_backends_own_address_leads_to_the_public_name() {
    let stage = Stage::set().await.unwrap();
    // The backend's address is known once it runs.
    let own = tests::web_backend::Manners {
        location: "http://127.0.0.1:9/elsewhere".into(),
        ..tests::web_backend::Manners::default()
    };
    let other = tests::web_backend::WebBackend::start("old", own).await.unwrap();
    let mut backend = other.configured();
    backend.http.as_mut().unwrap().hosts.push(shared::backend::Host::new("127.0.0.1", 9));
    stage.node.ownership.set_backends([backend].into_iter().collect());
    let answered = stage.node.ask(&get("/moved", "ann")).await.unwrap();
    assert_eq!(answered.field("location"), Some("http://mail.example.org/elsewhere"));
}

#[tokio::test]
async fn a_head_answer_has_a_length_and_no_body() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let head = get("/echo", "ann").replace("GET", "HEAD").replace('\n', "\r\n");
    client.say(head.as_bytes()).await.unwrap();
    let head = client.head().await.unwrap().to_ascii_lowercase();
    assert!(head.contains("content-length: 7"), "{head}");
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "old:");
}

#[tokio::test]
async fn no_octet_in_a_head_ends_more_than_its_request() {
    let stage = Stage::set().await.unwrap();
    for octet in 0..=255_u8 {
        for place in ["Authorization: Basi", "X-Any: a", "Cookie: ", "Host: mail"] {
            let mut client = stage.node.connect().await.unwrap();
            let mut request = format!("GET /echo HTTP/1.1\r\n{place}").into_bytes();
            request.push(octet);
            request.extend(b"\xc3\xa9x\r\n");
            if !place.starts_with("Host") {
                request.extend(b"Host: mail.example.org\r\n");
            }
            request.extend(b"Connection: close\r\n\r\n");
            client.say(&request).await.unwrap();
            client.closed().await.unwrap();
        }
    }
    assert_eq!(stage.node.ask(&get("/echo", "ann")).await.unwrap().status, 200);
}

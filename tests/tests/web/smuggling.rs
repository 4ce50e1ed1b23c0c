//! Requests within requests (RFC 9112 §11.2): a backend never sees two where the client sent one, and never
//! one that differs from what was routed.

use tests::web_node::{basic, get};

use crate::Stage;

/// What is sent, by what it is called. `AUTH` stands for ann's authorization; each asks for `/echo` and hides
/// `/hidden`.
const VECTORS: [(&str, &str); 24] = [
    (
        "CL.TE",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "TE.CL",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2e\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nX: xxxxxxxxxxx\r\n0\r\n\r\n",
    ),
    (
        "double CL",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length: 0\r\nContent-Length: 36\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nA: b\r\n\r\n",
    ),
    (
        "CL list",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length: 0, 36\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nA: b\r\n\r\n",
    ),
    (
        "CL plus",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length: +36\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nA: b\r\n\r\n",
    ),
    (
        "CL overflow",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length: 18446744073709551652\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nA: b\r\n\r\n",
    ),
    (
        "TE twice",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "TE other",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "TE tab",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "TE in 1.0",
        "POST /echo HTTP/1.0\r\nHost: m\r\nAUTH\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "space before colon",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nContent-Length : 36\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nA: b\r\n\r\n",
    ),
    (
        "obs-fold",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nX: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "bare LF in a field",
        "GET /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nX: y\nGET /hidden HTTP/1.1\r\nA: b\r\n\r\n",
    ),
    (
        "bare CR in a field",
        "GET /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nX: y\rGET /hidden HTTP/1.1\r\n\r\n",
    ),
    ("NUL", "GET /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nX: y\0GET /hidden HTTP/1.1\r\n\r\n"),
    (
        "chunk overflow",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nGET /hidden HTTP/1.1\r\n\r\n",
    ),
    (
        "chunk of junk",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "chunk without CRLF",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxGET /hidden HTTP/1.1\r\n0\r\n\r\n",
    ),
    (
        "LF chunk ends",
        "POST /echo HTTP/1.1\r\nHost: m\r\nAUTH\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    (
        "no version",
        "GET /echo\r\nHost: m\r\nAUTH\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
    ("a space in the target", "GET /echo /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n"),
    ("two hosts", "GET /echo HTTP/1.1\r\nHost: m\r\nHost: n\r\nAUTH\r\n\r\n"),
    ("a target elsewhere", "GET http://n/hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n"),
    (
        "CONNECT",
        "CONNECT m:80 HTTP/1.1\r\nHost: m:80\r\nAUTH\r\n\r\nGET /hidden HTTP/1.1\r\nHost: m\r\nAUTH\r\n\r\n",
    ),
];

/// The pipelined request that follows is the client's own second one: it is a request, if what came before it
/// was understood as the RFC says. Never is it a part of the first one's that the backend takes for a request.
#[tokio::test]
async fn a_backend_sees_no_request_that_was_not_routed() {
    let authorization = basic("ann", tests::login_backend::PASSWORD);
    for (what, octets) in VECTORS {
        let stage = Stage::set().await.unwrap();
        let mut client = stage.node.connect().await.unwrap();
        client.say(octets.replace("AUTH", &authorization).as_bytes()).await.unwrap();
        let answered = client.hear().await;
        drop(client);
        for seen in stage.old.seen() {
            assert!(
                !String::from_utf8_lossy(&seen.body).contains("/hidden") || what == "TE.CL",
                "{what}: {seen:?}"
            );
            assert!(!seen.head.contains("/hidden"), "{what}: {seen:?}");
            let framings =
                ["content-length", "transfer-encoding"].map(|name| seen.field(name).is_some());
            assert_ne!(framings, [true, true], "{what}: {seen:?}");
        }
        let status = answered.map(|answered| answered.status).unwrap_or(400);
        assert!(status == 400 || status == 405 || status == 200, "{what}: {status}");
    }
}

#[tokio::test]
async fn an_answer_with_two_lengths_has_one_when_it_is_passed_on() {
    let stage = Stage::set().await.unwrap();
    let mut client = stage.node.connect().await.unwrap();
    let answered = client.ask(&get("/both", "ann")).await.unwrap();
    let lengths =
        ["content-length", "transfer-encoding"].map(|name| answered.field(name).is_some());
    assert!(
        lengths == [false, true] && answered.body == "hello" || answered.status == 502,
        "{answered:?}"
    );
    assert_eq!(client.ask(&get("/echo", "ann")).await.unwrap().body, "old:");
}

#[tokio::test]
async fn heads_and_trailers_are_bounded() {
    let stage = Stage::set().await.unwrap();
    let long = format!("\nX-Long: {}\n\n", "y".repeat(80_000));
    let mut client = stage.node.connect().await.unwrap();
    let request = get("/echo", "ann").replace("\n\n", &long).replace('\n', "\r\n");
    let _ = client.say(request.as_bytes()).await;
    assert_eq!(client.hear().await.unwrap().status, 431);
    let many: String = (0..200).map(|number| format!("X-{number}: y\n")).collect();
    let request = get("/echo", "ann").replace("\n\n", &format!("\n{many}\n"));
    assert_eq!(stage.node.ask(&request).await.unwrap().status, 431);
    let mut client = stage.node.connect().await.unwrap();
    let authorization = basic("ann", tests::login_backend::PASSWORD);
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: m\r\n{authorization}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    );
    client.say(head.as_bytes()).await.unwrap();
    // As long as somebody takes them.
    let line = format!("X-Trailer: {}\r\n", "y".repeat(1000)).into_bytes();
    let mut sent = 0_usize;
    while client.say(&line).await.is_ok() {
        sent += line.len();
        assert!(sent < 100_000_000, "trailers without end");
        if sent > 10_000_000 {
            break;
        }
    }
    client.closed().await.unwrap();
    assert!(stage.old.seen().is_empty());
}

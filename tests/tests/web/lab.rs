//! The private web servers themselves, and the clients, before anything is between them.

use serde_json::{Value, json};
use tests::browser;
use tests::curl::{self, Answer};
use tests::cyrus::Cyrus;
use tests::nginx::{self, Nginx};
use tests::program::Home;
use tests::radicale::Radicale;
use tests::smtp::{Smtp, message};
use tests::test_ca::TestCa;
use tests::web_server::{self, WebServer};
use tests::xandikos::Xandikos;

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";
const LOGIN: &str = "ann@example.org:secret";

/// One request of ann's.
async fn ask(home: &Home, url: &str, more: &[&str]) -> Answer {
    let arguments: Vec<&str> = ["--user", LOGIN].iter().chain(more).copied().chain([url]).collect();
    curl::ask(home, &arguments).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn python(home: &Home, name: &str, text: &str, arguments: &[&str]) -> String {
    let script = home.write(name, text).unwrap();
    let command: Vec<&str> = ["python3", &*script].iter().chain(arguments).copied().collect();
    home.run(&command, "").await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn calendar(home: &Home, url: &str, words: &[&str]) -> String {
    let words: Vec<&str> = [url, ANN, "secret", "-"].iter().chain(words).copied().collect();
    python(home, "calendars.py", include_str!("calendars.py"), &words).await
}

/// Makes a calendar with an event by a real program, which finds it again.
async fn keeps_a_calendar(url: &str) {
    let home = Home::new().unwrap();
    calendar(&home, url, &["make", "work"]).await;
    calendar(&home, url, &["add", "work", "tea at four"]).await;
    let found = calendar(&home, url, &["list"]).await;
    assert!(found.lines().any(|line| line == "work: tea at four"), "{found}");
}

async fn deliver(server: &Cyrus, subject: &str) {
    let mut lmtp = Smtp::connect(server.lmtp()).await.unwrap();
    for command in ["LHLO test.example.com", "MAIL FROM:<s@example.com>"] {
        lmtp.command(command).await.unwrap();
    }
    assert_eq!(lmtp.command(&format!("RCPT TO:<{ANN}>")).await.unwrap().code, 250);
    lmtp.command("DATA").await.unwrap();
    lmtp.conversation.send(format!("{}.\r\n", message(subject)).as_bytes()).await.unwrap();
    assert_eq!(lmtp.reply().await.unwrap().code, 250);
}

#[tokio::test]
async fn cyrus_speaks_jmap() {
    let (server, home) = (Cyrus::start(&[ANN, BOB]).await.unwrap(), Home::new().unwrap());
    let refused = curl::get(&home, &server.url("/jmap/")).await.unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").is_some());
    let session = ask(&home, &server.url("/.well-known/jmap"), &["--location"]).await;
    assert_eq!(session.interim, [301]);
    assert_eq!(session.json().unwrap()["username"], ANN);
    deliver(&server, "by LMTP").await;
    let request = json!({
        "using": ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"],
        "methodCalls": [
            ["Email/query", {"accountId": ANN}, "0"],
            ["Email/get", {
                "accountId": ANN,
                "properties": ["subject"],
                "#ids": {"resultOf": "0", "name": "Email/query", "path": "/ids"},
            }, "1"],
        ],
    });
    let json = ["--header", "Content-Type: application/json", "--data", &request.to_string()];
    let answer = ask(&home, &server.url("/jmap/"), &json).await.json().unwrap();
    assert_eq!(answer["methodResponses"][1][1]["list"][0]["subject"], "by LMTP", "{answer}");
}

#[tokio::test]
async fn cyrus_keeps_blobs_calendars_and_contacts() {
    let (server, home) = (Cyrus::start(&[ANN, BOB]).await.unwrap(), Home::new().unwrap());
    let upload = server.url(&format!("/jmap/upload/{ANN}/"));
    let blob = ask(&home, &upload, &["--data-binary", "hello"]).await.json().unwrap();
    let id = blob["blobId"].as_str().unwrap_or_else(|| panic!("{blob}"));
    let download = server.url(&format!("/jmap/download/{ANN}/{id}/hello.txt?accept=text/plain"));
    assert_eq!(ask(&home, &download, &[]).await.text(), "hello");
    keeps_a_calendar(&server.url("/dav/principals/")).await;
    let book = server.url(&format!("/dav/addressbooks/user/{ANN}/Default/"));
    let card = "BEGIN:VCARD\r\nVERSION:3.0\r\nUID:c1\r\nFN:Cat\r\nN:Cat;;;;\r\nEND:VCARD\r\n";
    let put = ["--request", "PUT", "--header", "Content-Type: text/vcard", "--data-binary", card];
    assert_eq!(ask(&home, &format!("{book}c1.vcf"), &put).await.status, 201);
    let found = ask(&home, &book, &["--request", "PROPFIND", "--header", "Depth: 1"]).await;
    assert_eq!(found.status, 207);
    assert!(found.text().contains("c1.vcf"), "{}", found.text());
}

/// Debian builds it without WebSocket. Should that change, tests of push on it are due.
#[tokio::test]
async fn cyrus_of_debian_has_no_push() {
    let (server, home) = (Cyrus::start(&[ANN]).await.unwrap(), Home::new().unwrap());
    let session = ask(&home, &server.url("/jmap/"), &[]).await.json().unwrap();
    assert_eq!(session["capabilities"]["urn:ietf:params:jmap:websocket"], Value::Null);
    let events = server.url("/jmap/eventsource/?types=*&closeafter=no&ping=1");
    assert_eq!(ask(&home, &events, &[]).await.status, 204);
}

#[tokio::test]
async fn radicale_keeps_calendars_for_whom_it_knows() {
    let mut server = Radicale::start("old", &[ANN, BOB]).await.unwrap();
    let home = Home::new().unwrap();
    let find = ["--request", "PROPFIND", "--header", "Depth: 0"];
    let own = server.url(&format!("/{ANN}/"));
    let refused = curl::ask(&home, &[&find[..], &[&own]].concat()).await.unwrap();
    assert_eq!(refused.status, 401);
    let found = ask(&home, &own, &find).await;
    assert_eq!((found.status, found.header("x-backend")), (207, Some("old")));
    let forbidden = ask(&home, &server.url(&format!("/{BOB}/")), &find).await;
    assert_eq!(forbidden.status, 403);
    keeps_a_calendar(&server.url("/")).await;
    server.stop().unwrap();
    assert!(curl::get(&home, &own).await.is_err());
    server.resume().await.unwrap();
    assert!(calendar(&home, &server.url("/"), &["list"]).await.contains("tea at four"));
}

#[tokio::test]
async fn xandikos_behind_nginx_keeps_calendars() {
    let server = Xandikos::start(ANN).await.unwrap();
    let options =
        nginx::Options { behind: Some(server.http()), ..nginx::Options::with_users([ANN]) };
    let front = Nginx::start("old", options).await.unwrap();
    let home = Home::new().unwrap();
    assert_eq!(curl::get(&home, &front.url("/")).await.unwrap().status, 401);
    keeps_a_calendar(&front.url("/")).await;
}

#[tokio::test]
async fn nginx_has_files_and_takes_uploads() {
    let server = Nginx::start("old", nginx::Options::with_users([ANN])).await.unwrap();
    let home = Home::new().unwrap();
    let file = ask(&home, &server.url("/files/64k"), &[]).await;
    assert_eq!((file.status, file.body.len()), (200, 64 * 1024));
    assert_eq!(file.header("x-backend"), Some("old"));
    let text = "u".repeat(3_000_000);
    let source = home.write("upload", &text).unwrap();
    let put = ask(&home, &server.url("/upload/one"), &["--upload-file", &source]).await;
    assert_eq!((put.status, put.interim), (201, vec![100]));
    assert_eq!(server.uploaded("one").unwrap(), text.as_bytes());
    server.logged(&["PUT /upload/one", ANN, " 201 "]).await.unwrap();
}

#[tokio::test]
async fn a_browser_opens_a_page_over_h2() {
    let ca = TestCa::new().unwrap();
    let tls = Some(ca.issue("www.example.org").unwrap());
    let options = nginx::Options { tls, ..nginx::Options::with_users([ANN]) };
    let server = Nginx::start("old", options).await.unwrap();
    let home = Home::new().unwrap();
    let map = format!("--host-resolver-rules=MAP www.example.org:443 {}", server.http());
    let url = "https://ann%40example.org:secret@www.example.org/";
    let page = browser::open(&home, url, &[&map]).await.unwrap();
    assert!(page.contains("<title>old 1024 by h2</title>"), "{page}\n{}", server.log());
}

#[tokio::test]
async fn curl_speaks_h2() {
    let ca = TestCa::new().unwrap();
    let tls = Some(ca.issue("localhost").unwrap());
    let options = nginx::Options { tls, ..nginx::Options::default() };
    let server = Nginx::start("old", options).await.unwrap();
    let (home, ca) = (Home::new().unwrap(), ca.file().to_string_lossy().into_owned());
    let url = format!("https://localhost:{}/", server.http().port());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let page = curl::ask(&home, &["--cacert", &ca, flag, &url]).await.unwrap();
        assert_eq!((page.status, page.version.as_str()), (200, version));
    }
}

#[tokio::test]
async fn the_web_server_says_what_it_got() {
    let mut options = web_server::Options::with_users([ANN]);
    options.tokens.push(("t0ken".to_owned(), BOB.to_owned()));
    let mut server = WebServer::start("old", options).await.unwrap();
    let home = Home::new().unwrap();
    let wrong = ["--user", "ann@example.org:wrong", &server.url("/echo")];
    let refused = curl::ask(&home, &wrong).await.unwrap();
    assert_eq!((refused.status, refused.header("x-backend")), (401, Some("old")));
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"old\""));
    let said = ask(&home, &server.url("/echo"), &["--data", "hello"]).await.json().unwrap();
    assert_eq!(said["user"], ANN);
    assert_eq!(said["octets"], 5);
    let bearer = ["--header", "Authorization: Bearer t0ken", &server.url("/jmap/session")];
    let session = curl::ask(&home, &bearer).await.unwrap().json().unwrap();
    assert_eq!(session["username"], BOB);
    let trailers = ask(&home, &server.url("/trailers?count=2"), &[]).await;
    assert_eq!(trailers.trailers.len(), 2);
    let url = server.url("/echo");
    server.stop().unwrap();
    assert!(curl::get(&home, &url).await.is_err());
    server.resume().await.unwrap();
    assert_eq!(ask(&home, &url, &[]).await.status, 200);
}

#[tokio::test]
async fn the_web_server_asks_for_a_body_or_does_not() {
    let server = WebServer::start("old", web_server::Options::with_users([ANN])).await.unwrap();
    let home = Home::new().unwrap();
    let source = home.write("upload", &"u".repeat(3_000_000)).unwrap();
    let body = ["--upload-file", &*source, "--expect100-timeout", "60"];
    let taken = ask(&home, &server.url("/continue?ms=100"), &body).await;
    assert_eq!((taken.status, taken.interim.as_slice()), (200, [100].as_slice()));
    assert_eq!(taken.json().unwrap()["octets"], 3_000_000);
    for (path, status) in [("/continue?refuse", 403), ("/early", 413)] {
        let refused = ask(&home, &server.url(path), &body).await;
        assert_eq!((refused.status, refused.interim), (status, vec![]));
    }
    assert_eq!(server.state().await.unwrap()["octets"], 3_000_000);
}

#[tokio::test]
async fn streams_of_the_web_server_are_seen_to_begin_and_end() {
    let server = WebServer::start("old", web_server::Options::with_users([ANN])).await.unwrap();
    let home = Home::new().unwrap();
    let (events, socket) = (
        home.write("events.py", include_str!("events.py")).unwrap(),
        home.write("websocket.py", include_str!("websocket.py")).unwrap(),
    );
    let url = server.url("/sse?count=5");
    let events = ["python3", &*events, &url, ANN, "secret", "-"];
    let said = home.run(&events, "").await.unwrap();
    assert_eq!(said, "at old for ann@example.org\nended\nat old for ann@example.org\n");
    server.reaches("sse", 0).await.unwrap();
    let url = server.url("/ws").replace("http:", "ws:");
    let mut socket = home.start(&["python3", &socket, &url, ANN, "secret", "-"], "").await.unwrap();
    socket.says("at old for ann@example.org").await.unwrap();
    socket.says("echoed").await.unwrap();
    server.reaches("ws", 1).await.unwrap();
    drop(socket);
    server.reaches("ws", 0).await.unwrap();
}

//! HTTP through the login proxy as it is run: real servers, real clients, one SQL update (HTP-1 … HTP-10).

use anyhow::Result;
use serde_json::{Value, json};
use tests::browser;
use tests::curl::{self, Answer};
use tests::cyrus::Cyrus;
use tests::lab::Lab;
use tests::nginx::{self, Nginx};
use tests::node::{self, Node};
use tests::program::{Home, Program};
use tests::radicale::Radicale;
use tests::table::Engine;
use tests::web_server::{Options, WebServer};

use crate::{ANN, BOB};

tests::in_both! {
    a_flip_moves_the_next_request,
}

const EVERYTHING: &str = "rewrite_urls = true\n[[login.web.rules]]\npath = \"/jmap/ws\"\n\
                          account = [\"basic\"]\nwebsocket = true\n[[login.web.rules]]\npath = \"/ws\"\n\
                          account = [\"basic\"]\nwebsocket = true\n[[login.web.rules]]\npath = \"/**\"\n\
                          account = [\"basic\", \"bearer\"]\n";

/// Two servers with the same users, and a node in front of them.
struct Web {
    lab: Lab,
    node: Node,
    home: Home,
    old: WebServer,
    _new: WebServer,
}

impl Web {
    async fn start(engine: Engine) -> Result<Self> {
        let lab = Lab::start(engine).await?;
        let old = WebServer::start("old", Options::with_users([ANN, BOB])).await?;
        let new = WebServer::start("new", Options::with_users([ANN, BOB])).await?;
        let mut options = lab.options("node1");
        options.backends += &node::login("old", "http", old.http());
        options.backends += &node::login("new", "http", new.http());
        options.web = Some(EVERYTHING.into());
        let node = Node::start(&options, &lab.ca).await?;
        Ok(Self { lab, node, home: Home::new()?, old, _new: new })
    }

    async fn ask(&self, path: &str, who: &str, more: &[&str]) -> Answer {
        ask(&self.home, &self.node, path, who, more).await
    }

    async fn python(&self, name: &str, text: &str, url: &str) -> Program {
        let script = self.home.write(name, text).unwrap();
        let ca = self.node.ca_file();
        let command = ["python3", &*script, url, ANN, "secret", &*ca.to_string_lossy()];
        self.home.start(&command, "").await.unwrap()
    }
}

async fn ask(home: &Home, node: &Node, path: &str, who: &str, more: &[&str]) -> Answer {
    let (login, url, ca) = (format!("{who}:secret"), node.url(path), node.ca_file());
    let ca = ca.to_string_lossy();
    let first = ["--cacert", &*ca, "--user", &login];
    let arguments: Vec<&str> = first.iter().chain(more).copied().chain([&*url]).collect();
    curl::ask(home, &arguments).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn a_flip_moves_the_next_request(engine: Engine) {
    let web = Web::start(engine).await.unwrap();
    for version in ["--http1.1", "--http2"] {
        let answer = web.ask("/echo", ANN, &[version]).await;
        assert_eq!((answer.status, answer.header("x-backend")), (200, Some("old")), "{answer:?}");
    }
    web.lab.table.flip(ANN, "new").unwrap();
    web.lab.table.settled(ANN).await.unwrap();
    for (version, seen) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = web.ask("/echo", ANN, &[version]).await;
        assert_eq!((answer.header("x-backend"), &*answer.version), (Some("new"), seen));
        assert_eq!(web.ask("/echo", BOB, &[version]).await.header("x-backend"), Some("old"));
    }
    let wrong = web.ask("/echo", ANN, &["--user", "ann@example.org:wrong"]).await;
    assert_eq!((wrong.status, wrong.header("x-backend")), (401, Some("new")), "its owner's word");
    assert_eq!(web.ask("/echo", "nobody@example.org", &[]).await.status, 401);
}

#[tokio::test]
async fn uploads_and_downloads_arrive_whole() {
    let web = Web::start(Engine::Sqlite).await.unwrap();
    let octets: String = (0..20_000_000_u32).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let file = web.home.write("large", &octets).unwrap();
    for version in ["--http1.1", "--http2"] {
        let sent = web.ask("/upload", ANN, &[version, "-T", &file]).await;
        assert_eq!(sent.json().unwrap()["octets"], 20_000_000, "{sent:?}");
        let got = web.ask("/download?octets=3000000&chunked=1", ANN, &[version]).await;
        assert_eq!(got.body.len(), 3_000_000);
    }
    let early = web.ask("/early", ANN, &["--http1.1", "-T", &file]).await;
    assert_eq!(early.status, 413, "heard, though nothing of the body was wanted");
}

#[tokio::test]
async fn an_event_stream_and_a_websocket_end_at_the_flip_and_come_again_at_the_new_owner() {
    let web = Web::start(Engine::Sqlite).await.unwrap();
    let socket = web.node.url("/ws").replace("https", "wss");
    let events = include_str!("../web/events.py");
    let sockets = include_str!("../web/websocket.py");
    let mut stream = web.python("events.py", events, &web.node.url("/sse")).await;
    let mut socket = web.python("websocket.py", sockets, &socket).await;
    stream.says(&format!("at old for {ANN}")).await.unwrap();
    for line in [&format!("at old for {ANN}"), "echoed"] {
        socket.says(line).await.unwrap();
    }
    web.lab.table.flip(ANN, "new").unwrap();
    web.lab.table.settled(ANN).await.unwrap();
    stream.says("ended").await.unwrap();
    stream.says(&format!("at new for {ANN}")).await.unwrap();
    for line in ["closed without a word", &format!("at new for {ANN}"), "echoed"] {
        socket.says(line).await.unwrap();
    }
    for open in ["sse", "ws"] {
        web.old.reaches(open, 0).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_waits_out_a_hold() {
    let web = Web::start(Engine::Sqlite).await.unwrap();
    web.lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    web.lab.table.settled(ANN).await.unwrap();
    let waits = web.ask("/echo", ANN, &["-d", "hello"]);
    let moves = async {
        web.node
            .proxy
            .as_ref()
            .unwrap()
            .logged(&["login waits for the end of a hold"])
            .await
            .unwrap();
        web.lab
            .table
            .sql(&format!(
                "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = '{ANN}'"
            ))
            .unwrap();
    };
    let (answer, ()) = tokio::join!(waits, moves);
    assert_eq!((answer.status, answer.header("x-backend")), (200, Some("new")));
}

#[tokio::test]
async fn an_owner_that_is_away_is_nobodys_but_its_own_users_trouble() {
    let mut web = Web::start(Engine::Sqlite).await.unwrap();
    web.lab.table.flip(BOB, "new").unwrap();
    web.lab.table.settled(BOB).await.unwrap();
    web.old.stop().unwrap();
    let away = web.ask("/echo", ANN, &[]).await;
    assert_eq!(away.status, 503);
    assert!(away.header("retry-after").is_some());
    assert_eq!(web.ask("/echo", BOB, &[]).await.status, 200);
    web.old.resume().await.unwrap();
    let mut back = web.ask("/echo", ANN, &[]).await;
    while back.status == 503 {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        back = web.ask("/echo", ANN, &[]).await;
    }
    assert_eq!(back.header("x-backend"), Some("old"));
}

#[tokio::test]
async fn cyrus_serves_jmap_and_dav_by_the_public_name() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let (cyrus, home) = (Cyrus::start(&[ANN, BOB]).await.unwrap(), Home::new().unwrap());
    let mut options = lab.options("node1");
    options.backends += &node::login("old", "http", cyrus.http());
    options.web = Some("presets = [\"cyrus\", \"autoconfig\"]".into());
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let session = ask(&home, &node, "/.well-known/jmap", ANN, &["--location-trusted"]).await;
    assert_eq!(session.status, 200, "{session:?}");
    assert_eq!(session.header("alt-svc"), None, "it would lead past us");
    let session = session.json().unwrap();
    let account = session["primaryAccounts"]["urn:ietf:params:jmap:mail"].as_str().unwrap();
    let call = json!({
        "using": ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"],
        "methodCalls": [["Mailbox/get", {"accountId": account}, "0"]],
    });
    let json = "Content-Type: application/json";
    let answer = ask(&home, &node, "/jmap/", ANN, &["-H", json, "-d", &call.to_string()]).await;
    let boxes: Value = answer.json().unwrap();
    assert_eq!(boxes["methodResponses"][0][0], "Mailbox/get", "{boxes}");
    let ca = node.ca_file();
    let calendar = async |words: &[&str]| {
        let script = home.write("calendars.py", include_str!("../web/calendars.py")).unwrap();
        let url = node.url("/dav/principals/");
        let first = ["python3", &*script, &*url, ANN, "secret", &*ca.to_string_lossy()];
        let command: Vec<&str> = first.iter().chain(words).copied().collect();
        home.run(&command, "").await.unwrap()
    };
    calendar(&["make", "work"]).await;
    calendar(&["add", "work", "tea at four"]).await;
    assert!(calendar(&["list"]).await.contains("work: tea at four"));
    let settings =
        ask(&home, &node, "/mail/config-v1.1.xml?emailaddress=ann@example.org", ANN, &[]).await;
    assert!(settings.text().contains("<hostname>imap.example.org</hostname>"), "{settings:?}");
}

#[tokio::test]
async fn a_calendar_program_follows_its_account_from_one_radicale_to_another() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let home = Home::new().unwrap();
    let old = Radicale::start("old", &[ANN, BOB]).await.unwrap();
    let new = Radicale::start("new", &[ANN, BOB]).await.unwrap();
    let mut options = lab.options("node1");
    options.backends += &node::login("old", "http", old.http());
    options.backends += &node::login("new", "http", new.http());
    options.web = Some("[[login.web.rules]]\npath = \"/**\"\naccount = [\"basic\"]\n".into());
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let ca = node.ca_file();
    let calendar = async |words: &[&str]| {
        let script = home.write("calendars.py", include_str!("../web/calendars.py")).unwrap();
        let url = node.url("/");
        let first = ["python3", &*script, &*url, ANN, "secret", &*ca.to_string_lossy()];
        let command: Vec<&str> = first.iter().chain(words).copied().collect();
        home.run(&command, "").await.unwrap()
    };
    calendar(&["make", "work"]).await;
    calendar(&["add", "work", "tea at four"]).await;
    lab.table.flip(ANN, "new").unwrap();
    lab.table.settled(ANN).await.unwrap();
    calendar(&["make", "elsewhere"]).await;
    let there = calendar(&["list"]).await;
    assert!(there.contains("elsewhere:") && !there.contains("work:"), "{there}");
    lab.table.flip(ANN, "old").unwrap();
    lab.table.settled(ANN).await.unwrap();
    let back = calendar(&["list"]).await;
    assert!(back.contains("work: tea at four") && !back.contains("elsewhere"), "{back}");
}

#[tokio::test]
async fn a_browser_opens_a_page_by_http2() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let home = Home::new().unwrap();
    let site = Nginx::start("old", nginx::Options::default()).await.unwrap();
    let mut options = lab.options("node1");
    options.backends += &node::login("old", "http", site.http());
    options.web = Some("[[login.web.rules]]\npath = \"/**\"\nbackend = \"old\"\n".into());
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let page = browser::open(&home, &node.url("/"), &["--ignore-certificate-errors"]).await;
    let page = page.unwrap();
    assert!(page.contains("<title>old 1024 by h2</title>"), "{page}");
}

//! A service that starts where something is missing: it answers, and it makes nothing up.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shared::ownership::table::Table;
use tests::conversation::Conversation;
use tests::node::binary;
use tests::patience::until;
use tests::place::Place;
use tests::ports;

/// A service that is ended with this value.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both services on loopback without TLS, on a table in `place` that need not be there.
struct Start {
    place: Place,
    smtp: std::net::SocketAddr,
    imap: std::net::SocketAddr,
}

impl Start {
    fn new() -> Self {
        let start = Self {
            place: Place::new().unwrap(),
            smtp: ports::reserve_one().unwrap(),
            imap: ports::reserve_one().unwrap(),
        };
        let configuration = format!(
            "[node]\nname = \"node1\"\nstate_dir = \"{place}/state\"\nshutdown_grace = \"1s\"\n\
             [ownership]\nurl = \"{url}\"\n\
             [backends.old.mail]\nhost = \"127.0.0.1\"\nport = 1\n\
             [backends.old.imap]\nhost = \"127.0.0.1\"\nport = 1\n\
             [mx]\nhostname = \"mx.example.org\"\nsmtp = {{ listen = [\"{smtp}\"], tls = \"none\" }}\n\
             authentication.enabled = false\n\
             [login]\nhostname = \"imap.example.org\"\nfailure_delay = \"0s\"\n\
             imap = {{ listen = [\"{imap}\"], tls = \"none\" }}\n",
            place = start.place.path().display(),
            url = start.url(),
            smtp = start.smtp,
            imap = start.imap,
        );
        start.place.write("mailshift.toml", &configuration, 0o644, None).unwrap();
        start
    }

    fn url(&self) -> String {
        format!("sqlite:{}/ownership.db", self.place.path().display())
    }

    fn service(&self, name: &str, log: impl Into<Stdio>) -> Service {
        let child = Command::new(binary(name).unwrap())
            .args([
                "run".as_ref(),
                "--config".as_ref(),
                self.place.join("mailshift.toml").as_os_str(),
            ])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        Service(child.unwrap())
    }

    /// What a recipient is answered.
    async fn recipient(&self) -> String {
        let connect = || std::net::TcpStream::connect(self.smtp).ok();
        drop(until("the gateway to listen", connect).await.unwrap());
        let mut client = Conversation::connect(self.smtp).await.unwrap();
        client.expect("220").await.unwrap();
        client.say("HELO client.example.com").await.unwrap();
        client.expect("250").await.unwrap();
        client.say("MAIL FROM:<>").await.unwrap();
        client.expect("250").await.unwrap();
        client.say("RCPT TO:<ann@example.org>").await.unwrap();
        client.line().await.unwrap()
    }

    /// What a login is answered.
    async fn login(&self) -> String {
        let connect = || std::net::TcpStream::connect(self.imap).ok();
        drop(until("the proxy to listen", connect).await.unwrap());
        let mut client = Conversation::connect(self.imap).await.unwrap();
        client.expect("* OK").await.unwrap();
        client.say("a LOGIN ann@example.org secret").await.unwrap();
        client.line().await.unwrap()
    }

    async fn make_table(&self) {
        let table = Table::create(&self.url()).await.unwrap();
        table.apply_schema().await.unwrap();
    }
}

#[tokio::test]
async fn without_a_table_clients_are_refused_for_now_and_none_is_made() {
    let start = Start::new();
    let _gateway = start.service("mx-gateway", Stdio::null());
    let _proxy = start.service("login-proxy", Stdio::null());
    let refused = start.recipient().await;
    assert!(refused.starts_with("451 4.3.0"), "{refused}");
    let refused = start.login().await;
    assert!(refused.starts_with("a NO [UNAVAILABLE]"), "{refused}");
    assert!(!start.place.join("ownership.db").exists(), "a service must not make an empty table");
    // Once it is there both go on without a restart, and at once: neither is in the other's way.
    start.make_table().await;
    for _ in 0..100 {
        if start.recipient().await.starts_with("550 5.7.1") {
            let refused = start.login().await;
            assert!(refused.starts_with("a NO [AUTHENTICATIONFAILED]"), "{refused}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the table was not found");
}

#[tokio::test]
async fn a_log_that_is_full_or_not_read_stops_nothing() {
    let start = Start::new();
    start.make_table().await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let _gateway = start.service("mx-gateway", full);
    // A pipe that nobody reads takes 64 KiB and then blocks whoever writes.
    let (reader, writer) = std::io::pipe().unwrap();
    let _proxy = start.service("login-proxy", writer);
    for _ in 0..20 {
        assert!(
            start.recipient().await.starts_with("4") || start.recipient().await.starts_with("550")
        );
    }
    for _ in 0..400 {
        let refused = start.login().await;
        assert!(refused.starts_with("a NO"), "{refused}");
    }
    drop(reader);
    for _ in 0..20 {
        assert!(start.login().await.starts_with("a NO"));
    }
}

//! The private servers themselves: real mail goes in and comes out, and nothing is left behind.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;

use tests::children::Child;
use tests::dovecot::{self, Dovecot};
use tests::imap::Imap;
use tests::patience::until;
use tests::place::{self, Place};
use tests::postfix::{self, Delivery, Postfix};
use tests::smtp::{self, Smtp, message};
use tests::test_ca::TestCa;
use tokio::io::{AsyncBufReadExt, BufReader};

const ANN: &str = "ann@example.org";

#[tokio::test]
async fn a_message_by_lmtp_is_read_by_imap() {
    let server = Dovecot::start("old", dovecot::Options::with_users([ANN])).await.unwrap();
    let mut lmtp = Smtp::connect(server.lmtp()).await.unwrap();
    lmtp.command("LHLO test.example.com").await.unwrap();
    lmtp.command("MAIL FROM:<sender@example.com>").await.unwrap();
    let unknown = lmtp.command("RCPT TO:<nobody@example.org>").await.unwrap();
    assert_eq!(unknown.code, 550, "{unknown}");
    assert_eq!(lmtp.command(&format!("RCPT TO:<{ANN}>")).await.unwrap().code, 250);
    lmtp.command("DATA").await.unwrap();
    lmtp.conversation.send(format!("{}.\r\n", message("first")).as_bytes()).await.unwrap();
    assert_eq!(lmtp.reply().await.unwrap().code, 250);

    let mut imap = Imap::connect(server.imap()).await.unwrap();
    assert!(!imap.login(ANN, "wrong").await.unwrap().is_ok());
    imap.log_in(ANN, "secret").await.unwrap();
    let messages = imap.messages("INBOX").await.unwrap();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].contains("This is first."), "{messages:?}");
    assert_eq!(server.inbox(ANN).len(), 1);
}

#[tokio::test]
async fn dovecot_speaks_tls_and_believes_a_forwarded_address() {
    let ca = TestCa::new().unwrap();
    let tls = Some(ca.issue("old.example.org").unwrap());
    let options = dovecot::Options { tls, ..dovecot::Options::with_users([ANN]) };
    let server = Dovecot::start("old", options).await.unwrap();
    let connector = ca.connector().unwrap();
    let mut imap = Imap::connect_tls(server.imaps(), &connector, "old.example.org").await.unwrap();
    imap.command(r#"ID ("x-originating-ip" "203.0.113.7" "x-originating-port" "4711")"#)
        .await
        .unwrap();
    imap.log_in(ANN, "secret").await.unwrap();
    server.logged(&["Login", ANN, "rip=203.0.113.7"]).await.unwrap();
    let mut imap = Imap::connect(server.imap()).await.unwrap();
    imap.start_tls(&connector, "old.example.org").await.unwrap();
    imap.log_in(ANN, "secret").await.unwrap();
}

#[tokio::test]
async fn a_login_can_be_held_between_the_credentials_and_the_verdict() {
    let options =
        dovecot::Options { gate: true, ..dovecot::Options::with_users([ANN, "bob@example.org"]) };
    let server = Dovecot::start("old", options).await.unwrap();
    let held = server.hold_login(ANN).unwrap();
    let mut ann = Imap::connect(server.imap()).await.unwrap();
    let tag = ann.send_command(&format!("LOGIN {ANN} secret")).await.unwrap();
    held.arrived().await.unwrap();
    let mut bob = Imap::connect(server.imap()).await.unwrap();
    bob.log_in("bob@example.org", "secret").await.unwrap();
    held.release();
    assert!(ann.response(&tag).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_stopped_dovecot_comes_back_with_its_mail() {
    let mut server = Dovecot::start("old", dovecot::Options::with_users([ANN])).await.unwrap();
    let mut open = Imap::connect(server.imap()).await.unwrap();
    open.log_in(ANN, "secret").await.unwrap();
    let appended = open.command("APPEND INBOX {5+}\r\nhello").await.unwrap();
    assert!(appended.is_ok(), "{appended:?}");
    server.stop().unwrap();
    open.ended().await.unwrap();
    server.resume().await.unwrap();
    assert_eq!(server.inbox(ANN).len(), 1);
    server.add_user("eve@example.org", "other").unwrap();
    Imap::connect(server.imap()).await.unwrap().log_in("eve@example.org", "other").await.unwrap();
}

#[tokio::test]
async fn postfix_delivers_to_those_it_knows_and_takes_the_clients_address_by_xclient() {
    let options = postfix::Options {
        domain: "example.org".to_owned(),
        recipients: vec![ANN.to_owned()],
        delivery: Delivery::Maildirs,
        wants_names: false,
        sasl: None,
        ..postfix::Options::default()
    };
    let server = Postfix::start(options).await.unwrap();
    let unknown = smtp::send(server.smtp(), "s@example.com", &["x@example.org"], "").await.unwrap();
    assert_eq!(unknown.code, 550, "{unknown}");
    let mut client = Smtp::connect(server.smtp()).await.unwrap();
    client.command("EHLO gateway.example.org").await.unwrap();
    let taken = client.command("XCLIENT ADDR=203.0.113.7 NAME=[UNAVAILABLE]").await.unwrap();
    assert_eq!(taken.code, 220, "{taken}");
    let sent = client.send("s@example.com", &[ANN], &message("second")).await.unwrap();
    assert_eq!(sent.code, 250, "{sent}");
    server.logged(&["client=unknown[203.0.113.7]"]).await.unwrap();
    server.logged(&["status=sent"]).await.unwrap();
    assert_eq!(server.inbox(ANN).len(), 1);
}

#[tokio::test]
async fn postfix_hands_on_by_lmtp() {
    let dovecot = Dovecot::start("old", dovecot::Options::with_users([ANN])).await.unwrap();
    let options = postfix::Options {
        domain: "example.org".to_owned(),
        recipients: vec![ANN.to_owned()],
        delivery: Delivery::Lmtp(dovecot.lmtp()),
        wants_names: false,
        sasl: None,
        ..postfix::Options::default()
    };
    let server = Postfix::start(options).await.unwrap();
    let sent = smtp::send(server.smtp(), "s@example.com", &[ANN], &message("third")).await.unwrap();
    assert_eq!(sent.code, 250, "{sent}");
    server.logged(&["status=sent"]).await.unwrap();
    assert_eq!(dovecot.inbox(ANN).len(), 1);
}

#[tokio::test]
async fn a_client_can_have_an_address_of_its_own() {
    let server = Dovecot::start("old", dovecot::Options::with_users([ANN])).await.unwrap();
    let source: IpAddr = "127.0.0.9".parse().unwrap();
    let mut imap = Imap::connect_from(source, server.imap()).await.unwrap();
    imap.log_in(ANN, "secret").await.unwrap();
    server.logged(&["Login", ANN, "rip=127.0.0.9"]).await.unwrap();
}

#[test]
fn sockets_fit_into_a_place() {
    let place = Place::new().unwrap();
    assert!(place.socket("queue/private/trivial-rewrite").is_ok());
    assert!(place.socket(&"x".repeat(107)).is_err());
}

/// What [`nothing_survives_the_process_that_started_it`] starts as another process and kills.
#[tokio::test]
#[ignore = "started by another test"]
async fn a_process_that_is_going_to_be_killed() {
    let server = Dovecot::start("old", dovecot::Options::with_users([ANN])).await.unwrap();
    println!("at {} {}", server.imap(), server.directory().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_survives_the_process_that_started_it() {
    let mut other = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "a_process_that_is_going_to_be_killed"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let (address, directory) = loop {
        let line = lines.next_line().await.unwrap().expect("a server was started");
        if let Some((address, directory)) =
            line.strip_prefix("at ").and_then(|at| at.split_once(' '))
        {
            break (address.parse::<SocketAddr>().unwrap(), PathBuf::from(directory));
        }
    };
    let mut open = Imap::connect(address).await.unwrap();
    other.kill().await.unwrap();
    open.ended().await.unwrap();
    until("the server to end", || TcpStream::connect(address).err()).await.unwrap();
    until("its keeper to end", || {
        (!directory.join("keeper.pid.dovecot.log").exists()).then_some(())
    })
    .await
    .unwrap();
    place::remove_leftovers();
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_server_whose_keeper_was_killed_too_is_ended_by_the_next_run() {
    let place = Place::new().unwrap();
    // As a run leaves it that was killed with its keeper: its process is gone, the server is not.
    let gone = PathBuf::from(format!("/tmp/mailshift-lab-{}-0", i32::MAX));
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let command = ["/bin/sh", "-c", script, &*gone.to_string_lossy()];
    let child = Child::start(&[], &command, place.path(), "log").unwrap();
    child.logged(&["ready"]).await.unwrap();
    assert!(child.is_running());
    // In one step: another test's process may sweep at any moment.
    let left = place.directory("left", 0o711, None).unwrap();
    place.write("left/child.pid.log", &format!("{}\n", child.pid()), 0o644, None).unwrap();
    std::fs::rename(left, &gone).unwrap();
    place::remove_leftovers();
    until("the server to end", || (!child.is_running()).then_some(())).await.unwrap();
    until("its directory to go", || (!gone.exists()).then_some(())).await.unwrap();
}

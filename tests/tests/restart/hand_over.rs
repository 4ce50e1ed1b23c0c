//! A new process takes over from one that serves (KIK-6).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners};
use tests::node::login;
use tests::patience::until;
use tests::smtp::{self, Smtp};
use tests::table::Engine;

use crate::{ANN, BOB, Crowd, Host, signal_to};

tests::in_both! {
    logins_without_a_pause_notice_nothing_of_upgrades_and_old_sessions_live_on,
    a_flip_ends_the_sessions_of_every_process,
    a_fence_names_the_process_that_has_handed_over,
}

async fn logins_without_a_pause_notice_nothing_of_upgrades_and_old_sessions_live_on(
    engine: Engine,
) {
    let host = Host::new(engine).await;
    let mut proxy = host.start("login-proxy").await;
    let crowd = Crowd::of_logins(&host, 6);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        crowd.serve(50).await;
        sessions.push(host.session(ANN).await);
        proxy.upgrade().await;
    }
    crowd.serve(100).await;
    crowd.content().await;
    assert_eq!(host.nodes("login-proxy"), "node1|node1.2|node1.3|node1.4");
    for (number, session) in sessions.iter_mut().enumerate() {
        session.say(&format!("n{number} NOOP")).await.unwrap();
        session.expect(&format!("n{number} OK done at old")).await.unwrap();
    }
    // Each process leaves when its last session has ended.
    drop(sessions);
    until("the processes before to leave", || {
        (host.nodes("login-proxy") == "node1.4").then_some(())
    })
    .await
    .unwrap();
    proxy.said("\"stopped\"", 3).await;
}

async fn a_flip_ends_the_sessions_of_every_process(engine: Engine) {
    let host = Host::new(engine).await;
    let mut proxy = host.start("login-proxy").await;
    let mut before = host.session(ANN).await;
    let _keeps_it_alive = host.session(BOB).await;
    proxy.upgrade().await;
    let mut after = host.session(ANN).await;
    host.table.flip(ANN, "new").unwrap();
    for session in [&mut before, &mut after] {
        session.closed().await.unwrap();
    }
    host.table.settled(ANN).await.unwrap();
    assert_eq!(host.nodes("login-proxy"), "node1|node1.2");
    let mut session = host.session(ANN).await;
    session.say("n NOOP").await.unwrap();
    session.expect("n OK done at new").await.unwrap();
}

async fn a_fence_names_the_process_that_has_handed_over(engine: Engine) {
    let host = Host::new(engine).await;
    let mut proxy = host.start("login-proxy").await;
    let mut session = host.session(ANN).await;
    let before = proxy.upgrade().await;
    signal_to(before, Signal::STOP);
    let token = host.table.mailshift(&["hold", ANN, "--for", "5m"]).unwrap();
    let fence = ["fence", ANN, "--token", token.trim_end()];
    let blocked = host.table.mailshift(&[&fence[..], &["--wait", "1s"]].concat()).unwrap_err();
    assert!(format!("{blocked:#}").contains("waiting or busy"), "{blocked:#}");
    // The new process is there soon, the one before cannot be.
    until("only the process before to be waited for", || {
        let waiting = host.table.flip_status(ANN, "waiting").ok()?;
        (waiting == "node1/login-proxy").then_some(())
    })
    .await
    .unwrap();
    signal_to(before, Signal::CONT);
    host.table.settled(ANN).await.unwrap();
    session.closed().await.unwrap();
    host.table.mailshift(&fence).unwrap();
}

#[tokio::test]
async fn senders_without_a_pause_notice_nothing_and_a_message_in_hand_is_finished() {
    let host = Host::new(Engine::Sqlite).await;
    let mut gateway = host.start("mx-gateway").await;
    let address = host.smtp;
    let crowd = Crowd::of(
        8,
        &[move || async move {
            let message = smtp::message("without a pause");
            let reply = smtp::send(address, "s@example.com", &[BOB], &message).await?;
            anyhow::ensure!(reply.code == 250, "{reply:?}");
            Ok(())
        }],
    );
    crowd.serve(20).await;
    let mut in_hand = Smtp::connect(address).await.unwrap();
    in_hand.command("EHLO client.example.com").await.unwrap();
    in_hand.command("MAIL FROM:<s@example.com>").await.unwrap();
    assert_eq!(in_hand.command(&format!("RCPT TO:<{ANN}>")).await.unwrap().code, 250);
    assert_eq!(in_hand.command("DATA").await.unwrap().code, 354);
    gateway.upgrade().await;
    crowd.serve(20).await;
    assert_eq!(in_hand.command("Subject: in hand\r\n\r\nslow\r\n.").await.unwrap().code, 250);
    // And so is what the client still has to say.
    assert_eq!(in_hand.send("s@example.com", &[ANN], "more\r\n").await.unwrap().code, 250);
    crowd.serve(20).await;
    crowd.content().await;
    drop(in_hand);
    gateway.said("\"stopped\"", 1).await;
}

#[tokio::test]
async fn a_process_that_has_handed_over_keeps_no_flip_from_being_made() {
    let host = Host::new(Engine::Sqlite).await;
    let mut proxy = host.start("login-proxy").await;
    let mut sessions = vec![host.session(BOB).await];
    proxy.upgrade().await;
    sessions.push(host.session(BOB).await);
    proxy.upgrade().await;
    // The newest process takes a backend in, which the two before are told of.
    let third = LoginBackend::start("third", Manners::default()).await.unwrap();
    host.configure(&(host.configuration() + &login("third", "imap", third.address)));
    proxy.signal(Signal::HUP);
    until("all processes to know", || host.move_to_third().ok()).await.unwrap();
    assert_eq!(host.nodes("login-proxy"), "node1|node1.2|node1.3");
    for session in &mut sessions {
        session.say("n NOOP").await.unwrap();
        session.expect("n OK done at old").await.unwrap();
    }
}

#[tokio::test]
async fn who_has_connected_before_a_hand_over_logs_in_after_it() {
    let host = Host::new(Engine::Sqlite).await;
    let mut proxy = host.start("login-proxy").await;
    let mut client = Conversation::connect(host.logins[0]).await.unwrap();
    client.expect("* OK").await.unwrap();
    proxy.upgrade().await;
    client.say(&format!("a LOGIN {ANN} secret")).await.unwrap();
    client.expect("a OK").await.unwrap();
}

#[tokio::test]
async fn a_new_process_that_does_not_come_to_serve_leaves_the_old_one_serving() {
    let host = Host::new(Engine::Sqlite).await;
    let mut proxy = host.start("login-proxy").await;
    let mut session = host.session(ANN).await;
    let good = host.configuration();

    host.configure(&good.replace("failure_delay", "failure_dely"));
    proxy.signal(Signal::USR2);
    proxy.said("has ended without taking over", 1).await;
    assert!(proxy.child.log().contains("login.failure_dely"), "{}", proxy.child.end_of_log());
    host.configure(&good);

    // A program that is broken, and one that is not there.
    let program = host.program("login-proxy");
    fs::remove_file(&program).unwrap();
    fs::write(&program, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    proxy.signal(Signal::USR2);
    proxy.said("has ended without taking over", 2).await;
    fs::remove_file(&program).unwrap();
    proxy.signal(Signal::USR2);
    proxy.said("cannot start a new process", 1).await;

    // One that takes the sockets and dies.
    let door = host.place.join("state/login-proxy/hand-over.sock");
    drop(UnixStream::connect(&door).unwrap());
    proxy.said("not handed over: this process serves on", 1).await;

    // An address that is taken elsewhere.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    host.configure(&good.replace(&host.logins[1].to_string(), &taken.to_string()));
    host.install("login-proxy");
    proxy.signal(Signal::USR2);
    proxy.said("has ended without taking over", 3).await;
    let log = proxy.child.log();
    assert!(log.contains(&format!("cannot listen on {taken}")), "{log}");
    drop(holder);

    assert_eq!(host.nodes("login-proxy"), "node1");
    session.say("n NOOP").await.unwrap();
    session.expect("n OK").await.unwrap();
    drop(host.session(BOB).await);
    // Once all is well again, it can be done.
    host.configure(&good);
    proxy.upgrade().await;
    session.say("m NOOP").await.unwrap();
    session.expect("m OK").await.unwrap();
}

#[tokio::test]
async fn a_process_can_be_told_by_hand_to_take_over_and_a_plain_start_is_refused() {
    let host = Host::new(Engine::Sqlite).await;
    let mut proxy = host.start("login-proxy").await;
    let mut session = host.session(ANN).await;
    let by_hand = host.child(&host.command("login-proxy", &["run", "--take-over"]), "by-hand.log");
    by_hand.logged(&["\"ready\""]).await.unwrap();
    proxy.handed_over().await;
    assert_eq!(proxy.pid, by_hand.pid());
    session.say("n NOOP").await.unwrap();
    session.expect("n OK").await.unwrap();
    let plain = host.child(&host.command("login-proxy", &["run"]), "plain.log");
    plain.logged(&["is in use by another process"]).await.unwrap();
    by_hand.stop().unwrap();
    // The one before has nothing to hand over any more, although it still has a session.
    let late = host.child(&host.command("login-proxy", &["run", "--take-over"]), "late.log");
    late.logged(&["nothing to take over"]).await.unwrap();
}

#[tokio::test]
async fn the_grace_after_a_hand_over_ends_with_the_words_of_a_shutdown() {
    let host = Host::new(Engine::Sqlite).await;
    let grace = "shutdown_grace = \"1s\"\nhandover_grace = \"1s\"";
    host.configure(&host.configuration().replace("shutdown_grace = \"2s\"", grace));
    let mut proxy = host.start("login-proxy").await;
    let mut client = Conversation::connect(host.logins[0]).await.unwrap();
    client.expect("* OK").await.unwrap();
    let mut session = host.session(ANN).await;
    proxy.upgrade().await;
    client.expect("* BYE").await.unwrap();
    session.closed().await.unwrap();
    proxy.said("\"stopped\"", 1).await;
    until("the process before to leave", || (host.nodes("login-proxy") == "node1.2").then_some(()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_message_that_comes_again_after_an_upgrade_is_known() {
    let host = Host::new(Engine::Sqlite).await;
    let mut gateway = host.start("mx-gateway").await;
    let message = smtp::message("once");
    let reply = smtp::send(host.smtp, "s@example.com", &[BOB], &message).await.unwrap();
    assert!(reply.to_string().contains("Ok, delivered as "), "{reply}");
    for round in 1..=2 {
        // Its client has gone without a word.
        gateway.upgrade().await;
        gateway.said("fingerprints were taken over", round).await;
        let reply = smtp::send(host.smtp, "s@example.com", &[BOB], &message).await.unwrap();
        assert!(reply.to_string().contains("Ok, already delivered as "), "{reply}");
    }
    assert_eq!(host.mail.messages().len(), 1);
}

#[tokio::test]
async fn mail_that_waits_is_taken_over_and_delivered_once() {
    let host = Host::new(Engine::Sqlite).await;
    let mut gateway = host.start("mx-gateway").await;
    host.table.mailshift(&["hold", BOB, "--for", "10m"]).unwrap();
    host.table.settled(BOB).await.unwrap();
    for number in 0..3 {
        let message = smtp::message(&format!("waits {number}"));
        let reply = smtp::send(host.smtp, "s@example.com", &[BOB], &message).await.unwrap();
        assert!(reply.to_string().contains("queued as "), "{reply}");
    }
    for round in 1..=2 {
        gateway.upgrade().await;
        gateway.said("a spool was taken over", round).await;
    }
    let release = format!("UPDATE accounts SET state = 'active' WHERE account = '{BOB}';");
    host.table.sql(&release).unwrap();
    host.mail.until("all three", |mail| mail.messages().len() == 3).await.unwrap();
    host.table.settled(BOB).await.unwrap();
    assert_eq!(host.mail.messages().len(), 3);
}

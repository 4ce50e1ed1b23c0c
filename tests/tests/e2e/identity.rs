//! The owners see who the client really is (FWD-1, MX-9).

use std::net::IpAddr;

use tests::imap::Imap;
use tests::lab::{ACCOUNTS, Lab};
use tests::node::{self, IMAP_HOST, Node};
use tests::postfix::{self, Delivery, Postfix};
use tests::smtp::{Smtp, message};
use tests::table::Engine;

use crate::ANN;

/// Not the address that the services connect from.
const CLIENT: &str = "127.0.0.9";

fn client() -> IpAddr {
    CLIENT.parse().unwrap()
}

#[tokio::test]
async fn dovecot_sees_the_mail_programs_address() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    let mut imap = Imap::connect_from(client(), node.imap()).await.unwrap();
    imap.start_tls(&lab.ca.connector().unwrap(), IMAP_HOST).await.unwrap();
    imap.log_in(ANN, "secret").await.unwrap();
    assert_eq!(imap.server_name().await.unwrap(), "old");
    lab.old.logged(&["Login", ANN, &format!("rip={CLIENT}")]).await.unwrap();
}

#[tokio::test]
async fn dovecot_sees_the_senders_address() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    let mut smtp = Smtp::connect_from(client(), node.smtp()).await.unwrap();
    let reply = smtp.send("sender@example.com", &[ANN], &message("whence")).await.unwrap();
    assert_eq!(reply.code, 250, "{reply}");
    let file = lab.old.inbox(ANN).pop().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(&format!("([{CLIENT}])")), "{text}");
}

#[tokio::test]
async fn postfix_as_an_old_server_sees_the_sender_and_delivers() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let postfix = Postfix::start(postfix::Options {
        domain: "example.org".to_owned(),
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        delivery: Delivery::Lmtp(lab.old.lmtp()),
        wants_names: false,
        sasl: None,
        ..postfix::Options::default()
    })
    .await
    .unwrap();
    let mut options = lab.options("node1");
    options.backends = node::postfix("old", &postfix, &lab.old) + &node::dovecot("new", &lab.new);
    let node = Node::start(&options, &lab.ca).await.unwrap();
    lab.table
        .sql("INSERT INTO accounts (account, owner) VALUES ('ghost@example.org', 'old');")
        .unwrap();
    lab.table.settled("ghost@example.org").await.unwrap();
    let unknown = node.recipient("ghost@example.org").await.unwrap();
    assert_eq!(unknown.code, 550, "{unknown}");

    let mut smtp = Smtp::connect_from(client(), node.smtp()).await.unwrap();
    let reply = smtp.send("sender@example.com", &[ANN], &message("by Postfix")).await.unwrap();
    assert_eq!(reply.code, 250, "{reply}");
    postfix.logged(&["client=", &format!("[{CLIENT}]")]).await.unwrap();
    postfix.logged(&["status=sent"]).await.unwrap();
    assert_eq!(lab.old.inbox(ANN).len(), 1);
    let file = lab.old.inbox(ANN).pop().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let by_postfix = format!("Received: from client.example.com (unknown [{CLIENT}])");
    assert!(text.contains(&by_postfix), "{text}");

    lab.table.flip(ANN, "new").unwrap();
    lab.table.settled(ANN).await.unwrap();
    let reply = node.send(ANN, "by LMTP").await.unwrap();
    assert_eq!(reply.code, 250, "{reply}");
    assert_eq!((lab.old.inbox(ANN).len(), lab.new.inbox(ANN).len()), (1, 1));
}

#[tokio::test]
async fn postfix_never_refuses_a_client_for_good_whose_name_we_did_not_look_up() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let postfix = Postfix::start(postfix::Options {
        domain: "example.org".to_owned(),
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        delivery: Delivery::Maildirs,
        wants_names: true,
        sasl: None,
        ..postfix::Options::default()
    })
    .await
    .unwrap();
    let mut options = lab.options("node1");
    options.backends = node::postfix("old", &postfix, &lab.old) + &node::dovecot("new", &lab.new);
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let reply = node.recipient(ANN).await.unwrap();
    assert_eq!(reply.code, 450, "{reply}");
}

#[tokio::test]
async fn postfix_logs_the_client_of_each_message_by_xforward_and_judges_us() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let postfix = Postfix::start(postfix::Options {
        domain: "example.org".to_owned(),
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        ..postfix::Options::default()
    })
    .await
    .unwrap();
    let mut options = lab.options("node1");
    let old = node::postfix("old", &postfix, &lab.old).replace("\"xclient\"", "\"xforward\"");
    options.backends = old + &node::dovecot("new", &lab.new);
    let node = Node::start(&options, &lab.ca).await.unwrap();
    for source in [CLIENT, "127.0.0.10"] {
        let mut smtp = Smtp::connect_from(source.parse().unwrap(), node.smtp()).await.unwrap();
        let reply = smtp.send("sender@example.com", &[ANN], &message("logged")).await.unwrap();
        assert_eq!(reply.code, 250, "{reply}");
        let client = format!("orig_client=unknown[{source}]");
        let line = postfix.logged(&["client=", "[127.0.0.1]", &client]).await.unwrap();
        assert!(line.contains("orig_queue_id="), "{line}");
    }
}

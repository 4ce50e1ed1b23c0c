//! One SQL update moves an account: mail, logins and open sessions follow it (DESIGN §1, P1, P4, P5).

use tests::lab::Lab;
use tests::table::Engine;

use crate::{ANN, BOB};

async fn a_message_and_a_login_follow_one_update(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    assert_eq!(node.send(ANN, "before").await.unwrap().code, 250);
    let mut imap = node.log_in(ANN).await.unwrap();
    assert_eq!(imap.server_name().await.unwrap(), "old");
    let messages = imap.messages("INBOX").await.unwrap();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].contains("Subject: before"), "{messages:?}");

    lab.table.flip(ANN, "new").unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
    assert_eq!(node.send(ANN, "after").await.unwrap().code, 250);
    assert_eq!((lab.old.inbox(ANN).len(), lab.new.inbox(ANN).len()), (1, 1));
    // Nobody else moved.
    assert_eq!(node.owner_seen_by_login(BOB).await.unwrap(), "old");
    node.stop().unwrap();
}

#[tokio::test]
async fn a_message_and_a_login_follow_one_update_in_postgres() {
    a_message_and_a_login_follow_one_update(Engine::Postgres).await;
}

#[tokio::test]
async fn a_message_and_a_login_follow_one_update_in_sqlite() {
    a_message_and_a_login_follow_one_update(Engine::Sqlite).await;
}

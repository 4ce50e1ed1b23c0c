//! Other names of an account: aliases, domains with a default owner (OWN-3, OWN-4).

use tests::lab::Lab;
use tests::table::Engine;

use crate::{ANN, BOB};

/// An alias that is a login name, too. Both servers know it.
const INFO: &str = "info@example.org";

tests::in_both! {
    an_alias_that_moves_takes_its_mail_and_its_sessions_along,
    a_flip_of_the_account_takes_its_alias_along,
    a_domain_with_a_default_owner_needs_no_rows,
}

async fn lab_with_alias(engine: Engine) -> Lab {
    let lab = Lab::start(engine).await.unwrap();
    for server in [&lab.old, &lab.new] {
        server.add_user(INFO, "secret").unwrap();
    }
    lab.table
        .sql(&format!("INSERT INTO aliases (alias, account) VALUES ('{INFO}', '{ANN}');"))
        .unwrap();
    lab
}

async fn an_alias_that_moves_takes_its_mail_and_its_sessions_along(engine: Engine) {
    let lab = lab_with_alias(engine).await;
    let node = lab.node("node1").await.unwrap();
    lab.table.flip(BOB, "new").unwrap();
    lab.table.settled(BOB).await.unwrap();
    let mut as_info = node.log_in(INFO).await.unwrap();
    let mut as_ann = node.log_in(ANN).await.unwrap();
    assert_eq!(as_info.server_name().await.unwrap(), "old");
    assert_eq!(node.send(INFO, "to ann").await.unwrap().code, 250);

    lab.table
        .sql(&format!("UPDATE aliases SET account = '{BOB}' WHERE alias = '{INFO}';"))
        .unwrap();
    as_info.ended().await.unwrap();
    assert_eq!(node.owner_seen_by_login(INFO).await.unwrap(), "new");
    assert_eq!(node.send(INFO, "to bob").await.unwrap().code, 250);
    assert_eq!((lab.old.inbox(INFO).len(), lab.new.inbox(INFO).len()), (1, 1));
    assert_eq!(as_ann.server_name().await.unwrap(), "old");
}

async fn a_flip_of_the_account_takes_its_alias_along(engine: Engine) {
    let lab = lab_with_alias(engine).await;
    let node = lab.node("node1").await.unwrap();
    let mut as_info = node.log_in(INFO).await.unwrap();
    lab.table.flip(ANN, "new").unwrap();
    as_info.ended().await.unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(INFO).await.unwrap(), "new");
    assert_eq!(node.send(INFO, "to ann").await.unwrap().code, 250);
    assert_eq!((lab.old.inbox(INFO).len(), lab.new.inbox(INFO).len()), (0, 1));
}

async fn a_domain_with_a_default_owner_needs_no_rows(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    for server in [&lab.old, &lab.new] {
        server.add_user("eve@example.net", "secret").unwrap();
    }
    lab.table
        .sql("INSERT INTO domains (domain, default_owner) VALUES ('example.net', 'old');")
        .unwrap();
    let node = lab.node("node1").await.unwrap();
    let mut eve = node.log_in("eve@example.net").await.unwrap();
    assert_eq!(eve.server_name().await.unwrap(), "old");
    lab.table
        .sql("UPDATE domains SET default_owner = 'new' WHERE domain = 'example.net';")
        .unwrap();
    eve.ended().await.unwrap();
    assert_eq!(node.owner_seen_by_login("eve@example.net").await.unwrap(), "new");
    assert_eq!(node.send("Eve+x@EXAMPLE.net", "hello").await.unwrap().code, 250);
    assert_eq!(lab.new.inbox("eve@example.net").len(), 1);
}

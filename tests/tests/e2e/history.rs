//! A database that lost what it had committed (OWN-16): what senders, clients and the operator see of it.

use tests::children::Child;
use tests::lab::Lab;
use tests::node::Node;
use tests::patience::until;
use tests::table::Engine;

use crate::{ANN, BOB, CAT};

tests::in_both! {
    mail_for_an_alias_whose_move_is_lost_waits_until_an_operator_decides,
}

const INFO: &str = "info@example.org";
const WEB: &str = "web@strict.example";

/// A line in either service's log that has all of `words`: the first of both to notice says it.
async fn logged(node: &Node, words: &[&str]) {
    let services = || [&node.gateway, &node.proxy].into_iter().flatten().map(Child::log);
    let is_it = |line: &str| words.iter().all(|word| line.contains(word));
    let found = || services().any(|log| log.lines().any(is_it)).then_some(());
    until(&format!("{words:?} in a log"), found).await.unwrap();
}

/// Waits until both services serve by the table that was restored.
async fn serves_again(node: &Node) {
    for service in [&node.gateway, &node.proxy].into_iter().flatten() {
        until("the table to be loaded again", || {
            (service.log().matches("ownership loaded").count() == 2).then_some(())
        })
        .await
        .unwrap();
    }
    let mut asked = 0;
    while node.recipient(CAT).await.unwrap().code != 250 || node.log_in(CAT).await.is_err() {
        asked += 1;
        assert!(asked < 100, "it does not serve again");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn mail_for_an_alias_whose_move_is_lost_waits_until_an_operator_decides(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    for name in [INFO, WEB] {
        // Whoever asked the old server would be told that there is no such user.
        lab.new.add_user(name, "secret").unwrap();
    }
    let table = &lab.table;
    table.flip(BOB, "new").unwrap();
    table
        .sql(&format!(
            "INSERT INTO aliases (alias, account) VALUES ('{INFO}', '{ANN}');
             INSERT INTO domains (domain, default_owner) VALUES ('strict.example', NULL),
               ('late.example', 'old');"
        ))
        .unwrap();
    let mut options = lab.options("node1");
    options.login = "hold_wait = \"100ms\"".to_owned();
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let backup = table.back_up().unwrap();
    table
        .sql(&format!(
            "UPDATE aliases SET account = '{BOB}' WHERE alias = '{INFO}';
             INSERT INTO aliases (alias, account) VALUES ('{WEB}', '{BOB}');
             UPDATE domains SET default_owner = 'new' WHERE domain = 'late.example';"
        ))
        .unwrap();
    table.settled(BOB).await.unwrap();
    for name in [INFO, WEB] {
        assert_eq!(node.send(name, "before").await.unwrap().code, 250, "{name}");
    }

    table.restore(&backup, "").unwrap();
    serves_again(&node).await;
    for name in [INFO, WEB] {
        let reply = node.send(name, "meanwhile").await.unwrap();
        assert!(reply.to_string().contains("queued as "), "{name}: {reply}");
        let (_, response) = node.login(name).await.unwrap();
        assert!(response.tagged.starts_with("NO [UNAVAILABLE]"), "{name}: {response:?}");
    }
    logged(&node, &["ERROR", INFO, "new", "old", BOB, "UPDATE accounts SET owner"]).await;
    logged(&node, &["ERROR", WEB, "new", "nobody", BOB, "UPDATE accounts SET owner"]).await;
    logged(&node, &["ERROR", "late.example", "names there without a row"]).await;
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "old");
    assert_eq!(node.owner_seen_by_login(BOB).await.unwrap(), "new");

    table
        .sql(&format!(
            "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = '{INFO}';"
        ))
        .unwrap();
    table.settled(INFO).await.unwrap();
    assert_eq!(node.send(INFO, "after").await.unwrap().code, 250);
    // What came meanwhile has waited for that decision.
    until("all has arrived", || (lab.new.inbox(INFO).len() == 3).then_some(())).await.unwrap();
    assert!(lab.old.inbox(INFO).is_empty());
}

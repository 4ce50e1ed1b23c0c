//! A node's name: who may have it, and what becomes of a node that is not counted any more. No fence
//! waits for such a node, so nothing may run there.

use std::time::Duration;

use shared::ownership::Work;
use tests::patience::until;
use tests::table::Table;
use tokio::time::timeout;

use super::node::{Node, Settings, fill, outdated, run};

super::on_both_stores! {
    a_node_that_was_forgotten_stops_at_once_and_enters_anew
    a_node_whose_row_was_deleted_stops_at_once_and_enters_anew
    a_second_process_waits_for_the_name
    a_restart_takes_its_own_name_at_once
    a_name_whose_lease_has_ended_is_free
}

/// Statements on the table of nodes, which SQLite has in a second file.
fn nodes(table: &Table, statement: &str) -> String {
    if table.url().starts_with("sqlite:") {
        let file = table.file().with_file_name("ownership-nodes.db");
        return tests::table::sqlite3(&[], &file, statement).unwrap().trim_end().to_owned();
    }
    run(table, statement)
}

async fn a_node_that_was_forgotten_stops_at_once_and_enters_anew(table: Table) {
    stops_and_enters_anew(&table, "UPDATE nodes SET forgotten = (1 = 1) WHERE node = 'a';").await;
}

async fn a_node_whose_row_was_deleted_stops_at_once_and_enters_anew(table: Table) {
    stops_and_enters_anew(&table, "DELETE FROM nodes WHERE node = 'a';").await;
}

async fn stops_and_enters_anew(table: &Table, eviction: &str) {
    fill(table);
    let (node, other) = (Node::start(table, "a").await, Node::start(table, "b").await);
    let session = node.enter("ann@example.org", Work::Session);
    let elsewhere = other.enter("ann@example.org", Work::Session);
    nodes(table, eviction);
    outdated(&session).await;
    node.serves("ann@example.org", "old").await;
    // The row tells of it again, with what still runs there.
    let row = "SELECT n.node, n.forgotten IN (1 = 1), b.account FROM nodes n \
               LEFT JOIN busy b ON b.node = n.node WHERE n.node = 'a' AND n.seen_epoch > 0;";
    let known = until("the node's row", || {
        let row = nodes(table, row);
        (row == "a|f|ann@example.org" || row == "a|0|ann@example.org").then_some(())
    });
    known.await.unwrap();
    assert!(!elsewhere.is_outdated());
    table.flip("ann@example.org", "new").unwrap();
    node.serves("ann@example.org", "new").await;
}

async fn a_second_process_waits_for_the_name(table: Table) {
    fill(&table);
    let first = Node::start(&table, "a").await;
    let session = first.enter("ann@example.org", Work::Session);
    let second =
        || Settings { incarnation: "elsewhere/1".to_owned(), ..Settings::new(&table, "a") };
    let mut waiting = Box::pin(second().start_when_it_may());
    // The first renews its lease several times meanwhile.
    timeout(Duration::from_secs(2), &mut waiting)
        .await
        .err()
        .expect("two processes serve as one node");
    assert!(first.ownership.still_stands(&session));
    assert_eq!(nodes(&table, "SELECT incarnation FROM nodes;"), "state-of-a/1");
    first.stop().await;
    let second = timeout(tests::patience::PATIENCE, waiting).await.unwrap();
    assert_eq!(second.owner("ann@example.org"), "old");
    assert_eq!(nodes(&table, "SELECT incarnation FROM nodes;"), "elsewhere/1");
}

/// The same state directory: the former process is dead, or so slow that it must find out.
async fn a_restart_takes_its_own_name_at_once(table: Table) {
    fill(&table);
    let former = Node::start(&table, "a").await;
    let session = former.enter("ann@example.org", Work::Session);
    let restarted =
        Settings { incarnation: "state-of-a/2".to_owned(), ..Settings::new(&table, "a") };
    let restarted = restarted.start().await;
    assert_eq!(restarted.owner("ann@example.org"), "old");
    outdated(&session).await;
    drop((former, session));
}

async fn a_name_whose_lease_has_ended_is_free(table: Table) {
    fill(&table);
    let first = Node::start(&table, "a").await;
    let session = first.enter("ann@example.org", Work::Session);
    // As if the first had been cut off for longer than its lease.
    let past =
        if table.url().starts_with("sqlite:") { "'2001-01-01 00:00:00.000'" } else { "'epoch'" };
    let take = format!("UPDATE nodes SET incarnation = 'elsewhere/1', lease_until = {past};");
    nodes(&table, &take);
    outdated(&session).await;
    // It finds the row of another process there, whose lease has ended, and takes the name back.
    first.serves("ann@example.org", "old").await;
    assert_eq!(nodes(&table, "SELECT incarnation FROM nodes;"), "state-of-a/1");
    // A process that lives keeps it away until it has gone.
    let future =
        if table.url().starts_with("sqlite:") { "'2999-01-01 00:00:00.000'" } else { "'infinity'" };
    let session = first.enter("ann@example.org", Work::Session);
    let take = format!("UPDATE nodes SET incarnation = 'elsewhere/2', lease_until = {future};");
    nodes(&table, &take);
    outdated(&session).await;
    first.is_stale("ann@example.org").await;
    nodes(&table, "DELETE FROM nodes;");
    first.serves("ann@example.org", "old").await;
}

//! Mail on a node's own disk, as the table knows of it (SPL-11).

use shared::ownership::Work;
use shared::ownership::spool::Spooled;
use tests::patience::until;
use tests::table::Table;

use super::node::{Node, fill};
use super::on_both_stores;

on_both_stores! {
    what_is_on_a_nodes_disk_is_in_the_table
    a_node_that_leaves_mail_behind_stays_in_the_table_and_no_fence_waits_for_it
    a_spool_that_another_node_has_adopted_is_nobodys_any_more
}

const OLDEST: Option<u64> = Some(1_700_000_000);

/// What `mailshift node list` says of each.
fn listed(table: &Table) -> Vec<String> {
    table.mailshift(&["node", "list"]).unwrap().lines().map(str::to_owned).collect()
}

async fn comes_to(table: &Table, what: &str, so: impl Fn(&[String]) -> bool) {
    let waited = until(what, || so(&listed(table)).then_some(())).await;
    waited.unwrap_or_else(|error| panic!("{error}; {:#?}", listed(table)));
}

async fn what_is_on_a_nodes_disk_is_in_the_table(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    assert!(!listed(&table)[0].contains("spool"));
    for (messages, oldest, shown) in [
        (3, OLDEST, Some("spool: 3 messages since 2023-11-14 22:13:20")),
        (1, OLDEST, Some("spool: 1 message since 2023-11-14 22:13:20")),
        (0, None, None),
    ] {
        node.ownership.spool().set(Spooled { messages, oldest });
        comes_to(&table, "the spool", |lines| match shown {
            Some(shown) => lines[0].ends_with(shown) && lines.len() == 1,
            None => !lines[0].contains("spool"),
        })
        .await;
    }
    node.stop().await;
    assert!(listed(&table).is_empty(), "nothing is left behind");
}

async fn a_node_that_leaves_mail_behind_stays_in_the_table_and_no_fence_waits_for_it(table: Table) {
    fill(&table);
    let (a, b) = (Node::start(&table, "a").await, Node::start(&table, "b").await);
    // Something that a fence would wait for is still there when it stops.
    let session = a.enter("ann@example.org", Work::Session);
    // Later than its last report: what counts is what is there at the end.
    let spool = a.ownership.spool();
    spool.set(Spooled { messages: 2, oldest: OLDEST });
    a.stop().await;
    let lines = listed(&table);
    assert!(lines[0].starts_with("a/login-proxy  stopped since 20"), "{lines:?}");
    assert!(lines[0].ends_with("spool: 2 messages since 2023-11-14 22:13:20"), "{lines:?}");
    assert!(lines[2].starts_with("a/login-proxy has left mail"), "{lines:?}");
    table.flip("ann@example.org", "new").unwrap();
    table.settled("ann@example.org").await.unwrap();
    assert_eq!(table.flip_status("ann@example.org", "lapsed").unwrap(), "a/login-proxy");
    b.serves("ann@example.org", "new").await;
    drop(session);

    let again = Node::start(&table, "a").await;
    again.ownership.spool().set(Spooled { messages: 2, oldest: OLDEST });
    comes_to(&table, "it serves again", |lines| {
        lines.len() == 2 && lines[0].contains("lease until") && lines[0].contains("2 messages")
    })
    .await;
    again.ownership.spool().set(Spooled::default());
    again.stop().await;
    assert_eq!(listed(&table).len(), 1);
}

async fn a_spool_that_another_node_has_adopted_is_nobodys_any_more(table: Table) {
    fill(&table);
    let stopped = Node::start(&table, "a").await;
    stopped.ownership.spool().set(Spooled { messages: 2, oldest: OLDEST });
    stopped.stop().await;
    let nodes = if table.url().starts_with("sqlite") { "nodes.nodes" } else { "nodes" };
    // Killed: its lease has ended, and nobody has said why.
    let lapsed = format!(
        "INSERT INTO {nodes} (node, service, incarnation, version, lease_until, spooled) VALUES \
         ('c', 'login-proxy', 'state-of-c/1', '1', '2001-01-01 00:00:00.000', 5);"
    );
    if nodes == "nodes" {
        table.sql(&lapsed).unwrap();
    } else {
        table.mailshift(&["sql", &lapsed]).unwrap();
    }
    let b = Node::start(&table, "b").await;
    assert_eq!(listed(&table).iter().filter(|line| line.contains("has left mail")).count(), 2);
    b.ownership.spool().adopted("state-of-a");
    comes_to(&table, "a goes", |lines| lines[0].starts_with("b/")).await;
    assert_eq!(listed(&table).iter().filter(|line| line.contains("has left mail")).count(), 1);
    // A part of its name, and its own: neither is meant.
    b.ownership.spool().adopted("state-of");
    b.ownership.spool().set(Spooled { messages: 7, oldest: None });
    b.ownership.spool().adopted("state-of-b");
    b.ownership.spool().adopted("state-of-c");
    comes_to(&table, "nothing is left", |lines| {
        lines.len() == 2 && lines[0].ends_with("spool: 7 messages") && lines[1].starts_with("c/")
    })
    .await;
    assert!(listed(&table)[1].contains("lapsed since 2001"));
}

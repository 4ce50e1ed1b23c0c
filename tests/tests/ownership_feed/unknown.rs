//! Names without a row, from a node's memory to the operator's list (NAM-6).

use shared::ownership::{Name, Work};
use tests::patience::until;
use tests::table::Table;

use super::node::{Node, fill, run};

super::on_both_stores! {
    names_without_a_row_are_listed_until_they_get_one
}

fn refuse(node: &Node, name: &str) {
    node.ownership.note_refused(&Name::of_login(name.as_bytes()).unwrap());
}

/// What the operator's command prints: how often, name and outcome of each.
fn listed(table: &Table) -> Vec<String> {
    let said = table.mailshift(&["names", "unknown"]).unwrap();
    let lines = said.lines().filter(|line| line.contains(" to "));
    lines.map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
}

async fn until_listed(table: &Table, wanted: &[&str]) {
    let there = until("the names", || (listed(table) == wanted).then_some(())).await;
    there.unwrap_or_else(|error| panic!("{error}; they are {:?}", listed(table)));
}

async fn names_without_a_row_are_listed_until_they_get_one(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    for name in
        ["eve@strict.example", "eve+x@strict.example", "zoe@elsewhere.example", "p4ss w0rd!"]
    {
        refuse(&node, name);
    }
    // Has a row, whatever was refused there.
    refuse(&node, "ann@example.org");
    let (owner, registration) = {
        let name = Name::of_login(b"cat+list@example.org").unwrap();
        node.ownership.enter(&name, Work::Session).unwrap()
    };
    node.ownership.note_served(&owner);
    until_listed(
        &table,
        &[
            "2 eve@strict.example refused",
            "1 cat@example.org default",
            "1 zoe@elsewhere.example refused",
        ],
    )
    .await;
    run(
        &table,
        "INSERT INTO accounts (account, owner) VALUES ('cat@example.org', 'old'); \
         INSERT INTO aliases (alias, account) VALUES ('zoe@elsewhere.example', 'ann@example.org');",
    );
    // What comes again is added up.
    refuse(&node, "eve@strict.example");
    until_listed(&table, &["3 eve@strict.example refused"]).await;
    drop(registration);
    node.stop().await;
    assert_eq!(listed(&table), ["3 eve@strict.example refused"], "also when the node has gone");
}

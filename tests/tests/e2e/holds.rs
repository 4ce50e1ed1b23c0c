//! A mover at work while users log in: hold, fence, flip, and what becomes of a hold whose mover dies (P6,
//! KIK-2, OWN-8).

use std::time::Instant;

use rustix::process::Signal;
use tests::imap::Imap;
use tests::lab::Lab;
use tests::node::Node;
use tests::patience::until;
use tests::table::{Engine, Table};

use crate::{ANN, BOB};

tests::in_both! {
    logins_wait_while_a_hold_is_fenced_and_are_joined_where_it_was_flipped_to,
    a_hold_ends_open_sessions_and_is_settled_soon,
    a_fence_waits_for_a_node_that_does_not_answer,
    of_two_movers_one_wins,
    a_hold_whose_mover_has_died_ends_by_the_services,
    a_plain_change_of_a_held_rows_owner_is_refused_with_a_hint,
}

/// A client whose credentials are given, and the tag under which it will be answered.
struct Waiting {
    imap: Imap,
    tag: String,
}

impl Waiting {
    async fn at(node: &Node, user: &str) -> Self {
        let mut imap = node.connect().await.unwrap();
        let tag = imap.send_command(&format!("LOGIN {user} secret")).await.unwrap();
        Self { imap, tag }
    }

    /// Where it is joined, which is the first that it hears.
    async fn joined(mut self) -> String {
        let response = self.imap.response(&self.tag).await.unwrap();
        assert!(response.is_ok() && response.untagged.is_empty(), "{response:?}");
        self.imap.server_name().await.unwrap()
    }
}

/// How many logins a node has let wait so far.
fn waits(node: &Node) -> usize {
    let log = node.proxy.as_ref().map(tests::children::Child::log).unwrap_or_default();
    log.matches("login waits for the end of a hold").count()
}

async fn two_nodes(lab: &Lab) -> [Node; 2] {
    [lab.node("node1").await.unwrap(), lab.node("node2").await.unwrap()]
}

fn hold(table: &Table, lease: &str) -> String {
    table.mailshift(&["hold", ANN, "--for", lease]).unwrap().trim_end().to_owned()
}

fn complaint(table: &Table, arguments: &[&str]) -> String {
    format!("{:#}", table.mailshift(arguments).unwrap_err())
}

async fn logins_wait_while_a_hold_is_fenced_and_are_joined_where_it_was_flipped_to(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let nodes = two_nodes(&lab).await;
    let token = hold(&lab.table, "5m");
    let fence = ["fence", ANN, "--token", &token];
    let said = lab.table.mailshift(&fence).unwrap();
    assert_eq!(said.matches("  seen\n").count(), 4, "{said}");
    let mut waiting = Vec::new();
    for node in &nodes {
        for user in [ANN, ANN, "ann"] {
            waiting.push(Waiting::at(node, user).await);
        }
        until("three logins to wait", || (waits(node) == 3).then_some(())).await.unwrap();
    }
    // Nobody is served, and nobody else notices.
    let kept = nodes[0].send(ANN, "meanwhile").await.unwrap();
    assert!(kept.to_string().contains("queued as "), "{kept}");
    assert_eq!(nodes[1].owner_seen_by_login(BOB).await.unwrap(), "old");
    // A change that everybody has to apply anew is settled with them waiting.
    let alias =
        format!("INSERT INTO aliases (alias, account) VALUES ('lee@example.org', '{ANN}');");
    lab.table.sql(&alias).unwrap();
    lab.table.mailshift(&fence).unwrap();
    lab.table.mailshift(&["flip", ANN, "new", "--token", &token]).unwrap();
    for login in waiting {
        assert_eq!(login.joined().await, "new");
    }
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(nodes[0].send(ANN, "after").await.unwrap().code, 250);
    until("both have arrived", || (lab.new.inbox(ANN).len() == 2).then_some(())).await.unwrap();
    assert!(lab.old.inbox(ANN).is_empty());
}

async fn a_hold_ends_open_sessions_and_is_settled_soon(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let nodes = two_nodes(&lab).await;
    let mut other = nodes[0].log_in(BOB).await.unwrap();
    let mut open = Vec::new();
    for node in &nodes {
        let mut idle = node.log_in(ANN).await.unwrap();
        idle.idle().await.unwrap();
        open.extend([idle, node.log_in("ann").await.unwrap()]);
    }
    let token = hold(&lab.table, "5m");
    let held = Instant::now();
    lab.table.mailshift(&["fence", ANN, "--token", &token]).unwrap();
    println!("hold → settled with {} idle sessions: {:?}", open.len(), held.elapsed());
    for session in &mut open {
        session.ended().await.unwrap();
    }
    assert_eq!(other.server_name().await.unwrap(), "old");
    // Released: where it was.
    let login = Waiting::at(&nodes[0], ANN).await;
    until("it to wait", || (waits(&nodes[0]) == 1).then_some(())).await.unwrap();
    lab.table.mailshift(&["release", ANN, "--token", &token]).unwrap();
    assert_eq!(login.joined().await, "old");
    // Nothing is busy now.
    let token = hold(&lab.table, "5m");
    let held = Instant::now();
    lab.table.mailshift(&["fence", ANN, "--token", &token]).unwrap();
    println!("hold → settled with one session: {:?}", held.elapsed());
}

async fn a_fence_waits_for_a_node_that_does_not_answer(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let nodes = two_nodes(&lab).await;
    let mut open = nodes[1].log_in(ANN).await.unwrap();
    let frozen = nodes[1].proxy.as_ref().unwrap();
    frozen.signal(Signal::STOP).unwrap();
    let token = hold(&lab.table, "5m");
    let fence = ["fence", ANN, "--token", &token, "--wait", "1s"];
    assert!(complaint(&lab.table, &fence).contains("waiting or busy"));
    let flip = ["flip", ANN, "new", "--token", &token];
    assert!(complaint(&lab.table, &flip).contains("not fenced"));
    frozen.signal(Signal::CONT).unwrap();
    open.ended().await.unwrap();
    lab.table.mailshift(&["fence", ANN, "--token", &token]).unwrap();
    lab.table.mailshift(&flip).unwrap();
    assert_eq!(nodes[1].owner_seen_by_login(ANN).await.unwrap(), "new");
}

async fn of_two_movers_one_wins(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    let token = hold(&lab.table, "5m");
    assert!(complaint(&lab.table, &["hold", ANN]).contains("held already, until "));
    lab.table.mailshift(&["renew", ANN, "--token", &token]).unwrap();
    lab.table.mailshift(&["fence", ANN, "--token", &token]).unwrap();
    let theirs = ["flip", ANN, "old", "--token", "0123456789abcdef"];
    assert!(complaint(&lab.table, &theirs).contains("not under this token"));
    lab.table.mailshift(&["flip", ANN, "new", "--token", &token]).unwrap();
    assert!(complaint(&lab.table, &theirs).contains("its owner is new"));
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
}

async fn a_hold_whose_mover_has_died_ends_by_the_services(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let nodes = two_nodes(&lab).await;
    let token = hold(&lab.table, "5s");
    lab.table.mailshift(&["fence", ANN, "--token", &token]).unwrap();
    let waiting = [Waiting::at(&nodes[0], ANN).await, Waiting::at(&nodes[1], ANN).await];
    for login in waiting {
        assert_eq!(login.joined().await, "old");
    }
    let last = format!(
        "SELECT old_state, new_state, via FROM changes WHERE name = '{ANN}' ORDER BY epoch DESC LIMIT 1;"
    );
    assert_eq!(lab.table.sql(&last).unwrap(), "held|active|expire_holds");
    // Too late, though it was fenced.
    let flip = ["flip", ANN, "new", "--token", &token];
    assert!(complaint(&lab.table, &flip).contains("not held (any more); its owner is old"));
    // The proxies have seen it; the gateways may be a moment behind them.
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(nodes[0].send(ANN, "after").await.unwrap().code, 250);
    assert_eq!((lab.old.inbox(ANN).len(), lab.new.inbox(ANN).len()), (1, 0));
}

async fn a_plain_change_of_a_held_rows_owner_is_refused_with_a_hint(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    let token = hold(&lab.table, "5m");
    let error = format!("{:#}", lab.table.flip(ANN, "new").unwrap_err());
    assert!(error.contains("held") && error.contains("state = 'active'"), "{error}");
    // In one statement with the rest: those who are held are skipped.
    lab.table.sql("UPDATE accounts SET owner = 'new' WHERE state = 'active';").unwrap();
    lab.table.settled(BOB).await.unwrap();
    assert_eq!(node.owner_seen_by_login(BOB).await.unwrap(), "new");
    lab.table.mailshift(&["release", ANN, "--token", &token]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "old");
}

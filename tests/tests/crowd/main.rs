//! Hundreds of sessions of all four protocols at two nodes before real servers, logins without a pause, and
//! all that happens to a mail system meanwhile: flips, holds that end well and badly, two movers, a database
//! that goes away, a node that stands still past its lease (P2, P4-P6, KIK-1..3).
//!
//! Whatever happens: no session of a moved account stays at its former owner, no login is refused that a
//! hold would only have delayed, and nobody is told that a password is wrong. `CROWD_PEOPLE` (default 30:
//! 240 sessions) and `CROWD_ROUNDS` (default 6) make it larger and longer: `make chaos`.

mod ledger;
mod town;
mod traffic;

use rustix::process::Signal;
use tests::table::Table;

use crate::town::{NODES, Town, table};
use crate::traffic::Traffic;

/// People who log in again and again.
const TRAFFIC: usize = 6;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn build(table: Table, ownership: &str) -> Town {
    let town = Town::build(table, setting("CROWD_PEOPLE", 30), ownership).await;
    println!("{} sessions are open", town.residents());
    town
}

fn rounds() -> impl Iterator<Item = (&'static str, &'static str)> {
    let there_and_back = [("old", "new"), ("old", "new"), ("new", "old")];
    there_and_back.into_iter().cycle().take(setting("CROWD_ROUNDS", 6))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_takes_everybody_along_and_nobody_else_notices() {
    let mut town = build(table(), "").await;
    let traffic = Traffic::start(&town.streets, TRAFFIC);
    for (from, to) in rounds() {
        let account = town.anybody_at(from);
        town.move_plainly(&account, to).await;
    }
    town.everybody_is_home().await;
    town.move_everybody().await;
    town.everybody_is_home().await;
    traffic.more(50).await;
    assert_eq!(traffic.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_wait_out_every_hold_and_nobody_is_refused() {
    let mut town = build(table(), "").await;
    let traffic = Traffic::start(&town.streets, TRAFFIC);
    for (number, (from, to)) in rounds().enumerate() {
        let account = town.anybody_at(from);
        // The sessions end and the owner stays, until it is flipped or not.
        town.streets.ledger.begin(&account, from);
        let lease = if number % 3 == 1 { "5s" } else { "5m" };
        let token = town.table.mailshift(&["hold", &account, "--for", lease]).unwrap();
        let token = token.trim_end();
        let another = town.table.mailshift(&["hold", &account]).unwrap_err();
        assert!(format!("{another:#}").contains("held already"), "{another:#}");
        town.table.mailshift(&["fence", &account, "--token", token]).unwrap();
        traffic.more(10).await;
        match number % 3 {
            0 => {
                town.streets.ledger.begin(&account, to);
                let flip = ["flip", &account, to, "--token", token];
                town.table.mailshift(&flip).unwrap();
            }
            // Its holder has died; the services end it.
            1 => {
                tests::patience::until("the hold to end", || {
                    let state = format!("SELECT state FROM accounts WHERE account = '{account}';");
                    (town.table.sql(&state).ok()? == "active").then_some(())
                })
                .await
                .unwrap();
            }
            _ => {
                town.table.mailshift(&["release", &account, "--token", token]).unwrap();
            }
        }
        town.settled(&account).await;
    }
    town.everybody_is_home().await;
    assert_eq!(traffic.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_and_comes_back_is_noticed_by_nobody() {
    let mut town = build(Table::on_own_server().unwrap(), "").await;
    let traffic = Traffic::start(&town.streets, TRAFFIC);
    for (from, to) in rounds().step_by(2) {
        town.table.server().unwrap().stop().unwrap();
        traffic.more(50).await;
        town.everybody_is_home().await;
        town.table.server().unwrap().resume().unwrap();
        let account = town.anybody_at(from);
        town.move_plainly(&account, to).await;
    }
    town.everybody_is_home().await;
    assert_eq!(traffic.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_past_its_lease_serves_no_moved_account_when_it_wakes() {
    // Long enough for a busy machine to poll within it.
    let lease = "max_staleness = \"5s\"\npoll_interval = \"200ms\"";
    let mut town = build(table(), lease).await;
    let traffic = Traffic::start(&town.streets, TRAFFIC);
    town.streets.ledger.begin(NODES[1], "");
    let still = |signal| town.nodes[1].proxy.as_ref().unwrap().signal(signal).unwrap();
    still(Signal::STOP);
    let account = town.anybody_at("old");
    town.streets.ledger.begin(&account, "new");
    town.table.flip(&account, "new").unwrap();
    // As long as that node may serve, nothing is settled; then it counts as lapsed.
    town.table.settled(&account).await.unwrap();
    let nodes = format!("SELECT status FROM node_status('{account}') WHERE node = 'node2';");
    let nodes = town.table.sql(&nodes).unwrap();
    assert!(nodes.contains("lapsed"), "{nodes}");
    still(Signal::CONT);
    // Past its lease it serves nobody, whether they have moved or not.
    town.everybody_leaves(1).await;
    town.is_served_again(1).await;
    town.streets.ledger.settle(NODES[1]);
    town.settled(&account).await;
    traffic.more(50).await;
    town.everybody_is_home().await;
    traffic.stop().await;
}

//! The file: whose it is, and whether it is still the same.

use std::fs;

use shared::ownership::Work;
use tests::table::{Engine, Table, sqlite3};
use tests::user::{User, is_root};

use super::node::{NEVER, Node, Settings, fill, outdated, run};

/// The services run as one user, the operator is another, and the directory's group has both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_by_another_user_of_the_directorys_group_is_seen() {
    assert!(is_root(), "this test changes users: run the tests as root, or allow `sudo -n`");
    let table = Table::create(Engine::Sqlite).unwrap();
    fill(&table);
    let file = table.file();
    let group = User::named("nobody").unwrap().gid;
    let directory = file.parent().unwrap();
    for path in [directory.to_owned(), file.clone(), directory.join("ownership-nodes.db")] {
        if path.exists() {
            std::os::unix::fs::chown(&path, None, Some(group)).unwrap();
        }
    }
    let node = Settings { poll_interval: NEVER, ..Settings::new(&table, "a") }.start().await;
    let member = ["setpriv", "--reuid=nobody", &format!("--regid={group}"), "--clear-groups", "--"];
    let stranger = ["setpriv", "--reuid=nobody", "--regid=54321", "--clear-groups", "--"];
    for to in ["new", "old", "new"] {
        let session = node.enter("ann@example.org", Work::Session);
        let flip = format!("UPDATE accounts SET owner = '{to}' WHERE account = 'ann@example.org';");
        sqlite3(&stranger, &file, &flip).expect_err("somebody else may not even open it");
        sqlite3(&member, &file, &flip).unwrap();
        outdated(&session).await;
        assert_eq!(node.owner("ann@example.org"), to);
    }
    // Nobody has left a file behind that the other cannot write to.
    run(&table, "UPDATE accounts SET owner = 'old' WHERE account = 'bob@example.org';");
    node.stop().await;
    let flip = "UPDATE accounts SET owner = 'new' WHERE account = 'bob@example.org';";
    sqlite3(&member, &file, flip).unwrap();
    let node = Node::start(&table, "a").await;
    assert_eq!(node.owner("bob@example.org"), "new");
    table.flip("bob@example.org", "old").unwrap();
    node.serves("bob@example.org", "old").await;
}

/// The open file is not the one that an operator's shell writes to any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_replaced_is_not_served_from() {
    let table = Table::create(Engine::Sqlite).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("ann@example.org", Work::Session);
    let copy = table.file().with_file_name("copy.db");
    run(&table, &format!(".backup {}", copy.display()));
    fs::rename(&copy, table.file()).unwrap();
    outdated(&session).await;
    node.is_stale("ann@example.org").await;
}

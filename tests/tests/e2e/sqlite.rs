//! One host, one file, several users: the services under their own, operators under theirs.

use tests::lab::Lab;
use tests::node::Node;
use tests::patience::until;
use tests::table::{Engine, sqlite3};
use tests::user::{User, as_root};

use crate::{ANN, BOB, CAT};

fn flip(account: &str, owner: &str) -> String {
    format!("UPDATE accounts SET owner = '{owner}' WHERE account = '{account}';")
}

#[tokio::test]
async fn an_account_is_flipped_by_another_user_and_by_root() {
    let root = as_root("flipping as another user").unwrap();
    let services = User::named("nobody").unwrap();
    // Another user in the same group.
    let operator = User { uid: User::named("daemon").unwrap().uid, gid: services.gid };
    let lab = Lab::start_for(services).await.unwrap();
    let options = tests::node::Options { run_as: Some(services), ..lab.options("node1") };
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let before = operator.before_command();
    let before: Vec<&str> = root.iter().copied().chain(before.iter().map(String::as_str)).collect();
    let file = lab.table.file();

    sqlite3(&before, &file, &flip(ANN, "new")).unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
    sqlite3(root, &file, &flip(BOB, "new")).unwrap();
    lab.table.settled(BOB).await.unwrap();
    assert_eq!(node.owner_seen_by_login(BOB).await.unwrap(), "new");
    node.stop().unwrap();

    // The shells again, now alone with the files: what they leave must not lock the services out.
    sqlite3(root, &file, &flip(CAT, "new")).unwrap();
    sqlite3(&before, &file, &flip(ANN, "old")).unwrap();
    lab.table.mailshift(&["sql", &flip(BOB, "old")]).unwrap();
    let node = Node::start(&options, &lab.ca).await.unwrap();
    for (account, owner) in [(ANN, "old"), (BOB, "old"), (CAT, "new")] {
        assert_eq!(node.owner_seen_by_login(account).await.unwrap(), owner);
    }
    sqlite3(root, &file, &flip(CAT, "old")).unwrap();
    lab.table.settled(CAT).await.unwrap();
    // Whoever made them, the files are the services' group's.
    let find = [
        "find",
        &*file.parent().unwrap().to_string_lossy(),
        "-not",
        "-group",
        &services.gid.to_string(),
    ]
    .map(str::to_owned);
    let find: Vec<&str> = root.iter().copied().chain(find.iter().map(String::as_str)).collect();
    let output = std::process::Command::new(find[0]).args(&find[1..]).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    node.stop().unwrap();
}

#[tokio::test]
async fn an_open_transaction_in_a_shell_stops_no_service() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let mut options = lab.options("node1");
    options.ownership = "max_staleness = \"3s\"\npoll_interval = \"200ms\"".to_owned();
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let file = lab.table.file();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let shell = std::thread::spawn(move || tests::table::with_lock(&file, released));
    // Longer than the lease, which the services go on renewing in the file of their own.
    let nodes = lab.table.file().with_file_name("ownership-nodes.db");
    let seconds = "strftime('%s', lease_until)";
    let longest = sqlite3(&[], &nodes, &format!("SELECT max({seconds}) FROM nodes;")).unwrap();
    let renewed = format!("SELECT count(*) FROM nodes WHERE {seconds} - {} > 3;", longest.trim());
    until("both services to renew their leases", || {
        sqlite3(&[], &nodes, &renewed).ok().filter(|count| count.trim() == "2").map(drop)
    })
    .await
    .unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "old");
    assert_eq!(node.send(ANN, "meanwhile").await.unwrap().code, 250);
    release.send(()).unwrap();
    shell.join().unwrap().unwrap();
}

//! Mail that waits, as its operators see it: `mailshift queue` on the real service, a crash, a process that hands
//! over, a sender who is told (SPL-5, SPL-7, SPL-10, SPL-11).

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::lab::Lab;
use tests::node::{Node, binary};
use tests::patience::until;
use tests::smtp::{self, message};
use tests::table::Engine;
use tests::user::User;

use crate::{ANN, BOB};

tests::in_both! {
    mail_for_a_held_account_is_in_the_queue_until_the_hold_ends,
    mail_that_waits_survives_a_crash,
    mail_of_a_lost_node_is_adopted_from_a_copy_of_its_disk_and_delivered_once,
}

/// What `mailshift queue` says, an object for each line.
fn queue(node: &Node, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = Command::new(binary("mailshift")?)
        .args(["queue", "--json", "--config"])
        .arg(node.configuration())
        .args(arguments)
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "queue {}: {complaint}", arguments.join(" "));
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}

async fn mail_for_a_held_account_is_in_the_queue_until_the_hold_ends(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    let reply = node.send(ANN, "kept").await.unwrap();
    assert!(reply.code == 250 && reply.to_string().contains("queued as "), "{reply}");
    let listed = queue(&node, &["list"]).unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    let recipient = &listed[0]["recipients"][0];
    assert_eq!((&recipient["address"], &recipient["state"]), (&ANN.into(), &"held".into()));
    let id = listed[0]["id"].as_str().unwrap();
    assert!(reply.to_string().contains(id), "one name everywhere: {reply}");
    assert_eq!(queue(&node, &["summary"]).unwrap()[0]["held"], 1);

    queue(&node, &["freeze", id, "--why", "wait"]).unwrap();
    lab.table
        .sql(&format!(
            "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = '{ANN}'"
        ))
        .unwrap();
    lab.table.settled(ANN).await.unwrap();
    let listed = queue(&node, &["list", "--owner", "new", "--state", "waiting"]).unwrap();
    assert_eq!((listed.len(), &listed[0]["frozen"]), (1, &true.into()), "{listed:?}");
    queue(&node, &["thaw", id]).unwrap();
    until("it is delivered", || (lab.new.inbox(ANN).len() == 1).then_some(())).await.unwrap();
    assert!(lab.old.inbox(ANN).is_empty());
    // Dovecot's file is there before its 250 is.
    until("it has left the queue", || {
        queue(&node, &["list"]).is_ok_and(|listed| listed.is_empty()).then_some(())
    })
    .await
    .unwrap();
    node.stop().unwrap();
}

async fn mail_that_waits_survives_a_crash(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let mut node = lab.node("node1").await.unwrap();
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    for subject in ["one", "two"] {
        assert_eq!(node.send(ANN, subject).await.unwrap().code, 250);
    }
    node.crash().unwrap();
    node.resume().await.unwrap();
    assert_eq!(queue(&node, &["list"]).unwrap().len(), 2);
    lab.table
        .sql(&format!(
            "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = '{ANN}'"
        ))
        .unwrap();
    until("both are delivered", || (lab.new.inbox(ANN).len() == 2).then_some(())).await.unwrap();
    assert!(lab.old.inbox(ANN).is_empty());
}

/// A copy of a node's state, made as an operator makes it.
fn copied(state: &Path, name: &str) -> Result<PathBuf> {
    let copy = state.with_file_name(name);
    let status = Command::new("cp").arg("-a").arg(state).arg(&copy).status()?;
    ensure!(status.success(), "cp -a {} {}: {status}", state.display(), copy.display());
    Ok(copy)
}

async fn mail_of_a_lost_node_is_adopted_from_a_copy_of_its_disk_and_delivered_once(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let (mut lost, node) = (lab.node("node1").await.unwrap(), lab.node("node2").await.unwrap());
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    for subject in ["one", "two"] {
        assert_eq!(lost.send(ANN, subject).await.unwrap().code, 250);
    }
    let state = lost.directory().join("state/mx-gateway");
    let adopt = |directory: &Path| queue(&node, &["adopt", directory.to_str().unwrap()]);
    let alive = adopt(&state).unwrap_err().to_string();
    assert!(alive.contains("in use by another process"), "{alive}");
    lost.crash().unwrap();
    let (disk, again) = (copied(&state, "disk").unwrap(), copied(&state, "again").unwrap());
    std::fs::write(disk.join("spool/messages/broken"), "what a disk has made of it").unwrap();

    let taken = |adopted: &[Value]| {
        ["messages", "recipients", "known", "corrupt", "left"].map(|what| adopted[0][what].as_u64())
    };
    let some = |counts: [u64; 5]| counts.map(Some);
    assert_eq!(taken(&adopt(&disk).unwrap()), some([2, 2, 0, 1, 0]));
    assert_eq!(taken(&adopt(&disk).unwrap()), some([0; 5]), "once");
    assert_eq!(taken(&adopt(&again).unwrap()), some([0, 0, 2, 0, 0]), "by its name it is the same");
    let own = adopt(&node.directory().join("state/mx-gateway")).unwrap_err().to_string();
    assert!(own.contains("the spool of this process itself"), "{own}");
    let none = adopt(node.directory()).unwrap_err().to_string();
    assert!(none.contains("is no spool"), "{none}");

    assert_eq!(queue(&node, &["summary"]).unwrap()[0]["corrupt"], 1);
    lab.table
        .sql(&format!("UPDATE accounts SET state = 'active' WHERE account = '{ANN}'"))
        .unwrap();
    until("both have left the queue", || {
        queue(&node, &["list"]).is_ok_and(|listed| listed.is_empty()).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(lab.old.inbox(ANN).len(), 2);
    assert!(lab.new.inbox(ANN).is_empty());
}

/// Root's copy is what an operator has at first. Nothing of it is moved, and the node goes on keeping mail.
#[tokio::test]
async fn a_copy_that_is_not_the_services_own_is_refused_with_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let user = User::named("nobody").unwrap();
    let lab = Lab::start_for(user).await.unwrap();
    let mut options = lab.options("node1");
    options.run_as = Some(user);
    let mut node = Node::start(&options, &lab.ca).await.unwrap();
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.send(ANN, "one").await.unwrap().code, 250);
    node.crash().unwrap();
    let copy = copied(&node.directory().join("state/mx-gateway"), "copy").unwrap();
    let file = std::fs::read_dir(copy.join("spool/messages")).unwrap().next().unwrap().unwrap();
    chown(file.path(), Some(0), Some(0)).unwrap();
    node.resume().await.unwrap();
    let complaint = queue(&node, &["adopt", copy.to_str().unwrap()]).unwrap_err().to_string();
    assert!(complaint.contains("Permission denied"), "{complaint}");
    assert!(complaint.contains(&format!("chown -R {}:", user.uid)), "{complaint}");
    assert!(file.path().exists());
    assert_eq!(node.send(ANN, "two").await.unwrap().code, 250);
}

#[tokio::test]
async fn an_operator_looks_at_a_message_and_drops_it() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.send(ANN, "unwanted").await.unwrap().code, 250);
    let listed = queue(&node, &["list", "--account", ANN]).unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    assert_eq!(queue(&node, &["show", id]).unwrap(), listed);
    let octets = Command::new(binary("mailshift").unwrap())
        .args(["queue", "cat", id, "--config"])
        .arg(node.configuration())
        .output()
        .unwrap();
    let text = String::from_utf8(octets.stdout).unwrap();
    assert!(text.starts_with("Received: ") && text.contains("Subject: unwanted"), "{text}");
    queue(&node, &["drop", id, "--yes", "--why", "its sender asked for it"]).unwrap();
    assert!(queue(&node, &["list"]).unwrap().is_empty());
    let log = node.gateway.as_ref().unwrap().log();
    assert!(log.contains("message dropped by an operator"), "{log}");
    lab.table
        .sql(&format!("UPDATE accounts SET state = 'active' WHERE account = '{ANN}'"))
        .unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert!(lab.old.inbox(ANN).is_empty());
}

#[tokio::test]
async fn a_sender_of_ours_is_told_when_its_mail_fails_for_good_and_a_stranger_is_not() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let [mail, lookup] = tests::ports::reserve().unwrap();
    let mut options = lab.options("node1");
    options.internal = Some([mail, lookup]);
    let node = Node::start(&options, &lab.ca).await.unwrap();
    lab.table.mailshift(&["hold", ANN, "--for", "10m"]).unwrap();
    lab.table.settled(ANN).await.unwrap();
    // By the internal listener the sender is known to be ours.
    for (address, sender) in [(mail, BOB), (node.smtp(), "stranger@example.com")] {
        let reply = smtp::send(address, sender, &[ANN], &message("lost")).await.unwrap();
        assert_eq!(reply.code, 250, "{reply}");
    }
    let gone = format!(
        "BEGIN;
         UPDATE accounts SET state = 'active' WHERE account = '{ANN}';
         DELETE FROM accounts WHERE account = '{ANN}';
         COMMIT;"
    );
    lab.table.sql(&gone).unwrap();
    until("bob is told", || (lab.old.inbox(BOB).len() == 1).then_some(())).await.unwrap();
    let report = std::fs::read_to_string(&lab.old.inbox(BOB)[0]).unwrap();
    for part in [
        "multipart/report",
        "Final-Recipient: rfc822; ann@example.org",
        "Action: failed",
        "Subject: lost",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    until("the other is a dead letter", || {
        let dead = queue(&node, &["dead", "list"]).ok()?;
        (dead.len() == 1).then_some(())
    })
    .await
    .unwrap();
    assert!(queue(&node, &["list"]).unwrap().is_empty());
}

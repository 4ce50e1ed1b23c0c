//! `make try`: two private mail servers, both services, and an account that moves between them.
//!
//! Everything is shown as it is said. A step that does not come out as it should ends the tour with an
//! error. After it the servers stay up for one's own experiments until Ctrl-C; with `CI` set they do not.

mod narrator;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::imap::Imap;
use tests::lab::Lab;
use tests::node::{IMAP_HOST, Node};
use tests::smtp::{Smtp, message};
use tests::table::Engine;
use tests::test_ca::connector_trusting;
use tokio::signal::unix::{SignalKind, signal};

use narrator::Narrator;

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

#[tokio::main]
async fn main() -> ExitCode {
    let narrator = Narrator::new(std::io::stdout().is_terminal());
    let toured = tokio::select! {
        toured = tour(&narrator) => toured,
        () = interrupted() => {
            narrator.say("\nStopped before the end. Nothing is left running.");
            return ExitCode::from(130);
        }
    };
    match stay(&narrator, toured).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            narrator.failed(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The whole tour. Returns what has to stay up.
async fn tour(narrator: &Narrator) -> Result<(Lab, Node)> {
    narrator.title("Starting two mail servers and Mailshift in front of them");
    let lab = Lab::start(Engine::Sqlite).await?;
    let node = lab.node("node1").await?;
    if let Err(error) = show(narrator, &lab, &node).await {
        for service in [&node.gateway, &node.proxy].into_iter().flatten() {
            narrator.log(&service.end_of_log());
        }
        return Err(error);
    }
    endpoints(narrator, &lab, &node);
    Ok((lab, node))
}

/// Keeps the servers up for the user, but not where nobody watches.
async fn stay(narrator: &Narrator, toured: Result<(Lab, Node)>) -> Result<()> {
    let (lab, node) = toured?;
    if std::env::var_os("CI").is_none() {
        narrator.say("\nEverything stays up until you press Ctrl-C.");
        interrupted().await;
        narrator.say("\nStopping.");
    }
    node.stop().context("the services did not stop well")?;
    drop(lab);
    Ok(())
}

async fn show(narrator: &Narrator, lab: &Lab, node: &Node) -> Result<()> {
    who_is_there(narrator, lab, node)?;
    a_message_to_old(narrator, lab, node).await?;
    let open = a_login_at_old(narrator, node).await?;
    the_flip(narrator, lab)?;
    the_open_session_ends(narrator, open).await?;
    lab.table.settled(ANN).await?;
    the_next_login_is_at_new(narrator, node).await?;
    the_next_message_is_at_new(narrator, lab, node).await?;
    unknown_recipients_are_refused(narrator, node).await
}

fn who_is_there(narrator: &Narrator, lab: &Lab, node: &Node) -> Result<()> {
    for server in [&lab.old, &lab.new] {
        let name = server.name();
        narrator.say(&format!(
            "  {name:<12} Dovecot, LMTP at {}, IMAP at {}",
            server.lmtp(),
            server.imap()
        ));
    }
    narrator
        .say(&format!("  mx-gateway   SMTP at {}: what the domain's MX points at", node.smtp()));
    narrator.say(&format!("  login-proxy  IMAP at {}: what mail programs connect to", node.imap()));
    narrator.say("Both servers know the same accounts. The ownership table says who serves them:");
    let accounts = sql(narrator, lab, "SELECT account, owner FROM accounts WHERE account < 'c'")?;
    ensure!(accounts == format!("{ANN}|old\n{BOB}|old"), "the table is not as expected");
    Ok(())
}

async fn a_message_to_old(narrator: &Narrator, lab: &Lab, node: &Node) -> Result<()> {
    narrator.title("A message to ann arrives at the gateway");
    let mut smtp = Smtp::connect(node.smtp()).await?;
    let reply = smtp.send("sender@example.com", &[ANN], &message("Hello before the move")).await?;
    narrator.conversation(smtp.conversation.said());
    ensure!(reply.code == 250, "the message was not accepted: {reply}");
    ensure!(
        (lab.old.inbox(ANN).len(), lab.new.inbox(ANN).len()) == (1, 0),
        "it is not on old alone"
    );
    narrator.good("the old server has it; the 250 came after its own");
    Ok(())
}

async fn a_login_at_old(narrator: &Narrator, node: &Node) -> Result<Imap> {
    narrator.title("ann reads it through the proxy, and keeps the connection open");
    let mut imap = Imap::connect(node.imap()).await?;
    imap.log_in(ANN, "secret").await?;
    let server = imap.server_name().await?;
    let messages = imap.messages("INBOX").await?;
    imap.idle().await?;
    narrator.conversation(imap.conversation.said());
    ensure!(server == "old", "she is on {server}");
    ensure!(
        messages.iter().any(|message| message.contains("Hello before the move")),
        "it is not there"
    );
    narrator.good("she is on the old server, waiting for new mail (IDLE)");
    Ok(imap)
}

fn the_flip(narrator: &Narrator, lab: &Lab) -> Result<()> {
    narrator.title("The operator moves ann with one SQL update, in the plain sqlite3 shell");
    sql(narrator, lab, &format!("UPDATE accounts SET owner='new' WHERE account='{ANN}'"))?;
    let row =
        sql(narrator, lab, &format!("SELECT account, owner FROM accounts WHERE account='{ANN}'"))?;
    ensure!(row == format!("{ANN}|new"), "the row is {row}");
    Ok(())
}

async fn the_open_session_ends(narrator: &Narrator, mut open: Imap) -> Result<()> {
    narrator.title("Her open session ends by itself, so that her mail program connects again");
    let before = open.conversation.said().len();
    open.ended().await.context("the session was not ended")?;
    narrator.conversation(open.conversation.said().get(before..).unwrap_or_default());
    narrator.good("the connection to the old server is closed");
    Ok(())
}

async fn the_next_login_is_at_new(narrator: &Narrator, node: &Node) -> Result<()> {
    narrator.title("Her next login, now with STARTTLS, is on the new server");
    let mut imap = Imap::connect(node.imap()).await?;
    let tls = connector_trusting(&node.ca_file())?;
    imap.start_tls(&tls, IMAP_HOST).await?;
    imap.log_in(ANN, "secret").await?;
    let server = imap.server_name().await?;
    narrator.conversation(imap.conversation.said());
    ensure!(server == "new", "she is on {server}");
    let bob = node.owner_seen_by_login(BOB).await?;
    ensure!(bob == "old", "bob is on {bob}, too");
    narrator.good("ann is on the new server; bob, whom nobody moved, is still on the old one");
    Ok(())
}

async fn the_next_message_is_at_new(narrator: &Narrator, lab: &Lab, node: &Node) -> Result<()> {
    narrator.title("The next message, to ann and bob at once, is split between the servers");
    let mut smtp = Smtp::connect(node.smtp()).await?;
    let hello = message("Hello after the move");
    let reply = smtp.send("sender@example.com", &[ANN, BOB], &hello).await?;
    narrator.conversation(smtp.conversation.said());
    ensure!(reply.code == 250, "the message was not accepted: {reply}");
    let found = [
        lab.old.inbox(ANN).len(),
        lab.new.inbox(ANN).len(),
        lab.old.inbox(BOB).len(),
        lab.new.inbox(BOB).len(),
    ];
    ensure!(found == [1, 1, 1, 0], "the messages are not where they belong: {found:?}");
    narrator.good("ann's copy is on the new server, bob's on the old one, each exactly once");
    Ok(())
}

async fn unknown_recipients_are_refused(narrator: &Narrator, node: &Node) -> Result<()> {
    narrator.title("Unknown recipients are refused at once, so that nothing bounces later");
    let mut smtp = Smtp::connect(node.smtp()).await?;
    smtp.command("EHLO client.example.com").await?;
    smtp.command("MAIL FROM:<sender@example.com>").await?;
    let before = smtp.conversation.said().len();
    let unknown = smtp.command("RCPT TO:<nobody@example.org>").await?;
    let foreign = smtp.command("RCPT TO:<someone@example.net>").await?;
    narrator.conversation(smtp.conversation.said().get(before..).unwrap_or_default());
    ensure!(unknown.code == 550 && foreign.code == 550, "they were not refused with 550");
    narrator.good("neither an unknown name nor a foreign domain gets in");
    Ok(())
}

fn endpoints(narrator: &Narrator, lab: &Lab, node: &Node) {
    let file = lab.table.file();
    let file = file.display();
    narrator.title("The tour is over. What you can try yourself");
    narrator.say(&format!(
        "  the table     sqlite3 {file} \"UPDATE accounts SET owner='old' WHERE account='{ANN}'\"
  who is where  sqlite3 {file} \"SELECT account, owner FROM accounts\"
  send          printf 'Subject: hi\\r\\n\\r\\nhello\\r\\n' | curl -T - smtp://{smtp} --mail-from me@example.com --mail-rcpt {ANN}
  read          curl -u {ANN}:secret --cacert {ca} --resolve {IMAP_HOST}:{port}:127.0.0.1 'imaps://{IMAP_HOST}:{port}/INBOX;MAILINDEX=1'
  what happens  tail -f {logs}/*.log
  configuration {configuration}
  passwords     every account has the password secret: ann, bob, cat and dan@example.org",
        smtp = node.smtp(),
        port = node.imaps().port(),
        ca = node.ca_file().display(),
        logs = node.directory().display(),
        configuration = node.configuration().display(),
    ));
}

/// Runs a statement in the real shell and shows both.
fn sql(narrator: &Narrator, lab: &Lab, statement: &str) -> Result<String> {
    narrator.command(&format!("sqlite3 {} \"{statement}\"", lab.table.file().display()));
    let printed = lab.table.sql(&format!("{statement};"))?;
    narrator.output(&printed);
    Ok(printed)
}

/// Ctrl-C, or what `kill` sends.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

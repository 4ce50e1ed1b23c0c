//! Who is refused, and in which words: never "wrong password" or "no such user" for a fault of ours (P2).

use tests::lab::Lab;
use tests::patience::until;
use tests::smtp::{self, message};
use tests::table::Engine;

use crate::{ANN, BOB};

tests::in_both! {
    an_unknown_recipient_is_refused_at_rcpt,
    a_row_with_an_unknown_owner_is_refused_for_now,
    a_wrong_password_is_the_owners_word,
    an_owner_that_is_down_is_nobodys_but_its_own_users_trouble,
}

async fn an_unknown_recipient_is_refused_at_rcpt(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    lab.table
        .sql(
            "INSERT INTO accounts (account, owner) VALUES ('ghost@example.org', 'new');
             INSERT INTO domains (domain, default_owner) VALUES ('example.net', 'old');",
        )
        .unwrap();
    let node = lab.node("node1").await.unwrap();
    for (recipient, code, status) in [
        // The owner says so.
        ("ghost@example.org", 550, "5.1.1"),
        ("nobody@example.net", 550, "5.1.1"),
        // Nobody owns it.
        ("nobody@example.org", 550, "5.1.1"),
        // Not ours.
        ("somebody@example.com", 550, "5.7.1"),
    ] {
        let reply = node.recipient(recipient).await.unwrap();
        assert_eq!(reply.code, code, "{recipient}: {reply}");
        assert!(reply.lines[0].starts_with(status), "{recipient}: {reply}");
    }
    assert_eq!(node.recipient(ANN).await.unwrap().code, 250);
}

async fn a_row_with_an_unknown_owner_is_refused_for_now(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    lab.table.flip(ANN, "nowhere").unwrap();
    lab.table.settled(ANN).await.unwrap();
    let reply = node.recipient(ANN).await.unwrap();
    assert_eq!(reply.code, 451, "{reply}");
    let (_, response) = node.login(ANN).await.unwrap();
    assert!(response.tagged.starts_with("NO [UNAVAILABLE]"), "{response:?}");
    assert_eq!(node.recipient(BOB).await.unwrap().code, 250);
    // The right name mends it.
    lab.table.flip(ANN, "new").unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
}

async fn a_wrong_password_is_the_owners_word(engine: Engine) {
    let lab = Lab::start(engine).await.unwrap();
    let node = lab.node("node1").await.unwrap();
    let mut imap = node.connect().await.unwrap();
    for user in [ANN, "nobody@example.org"] {
        let refused = imap.login(user, "wrong").await.unwrap();
        assert!(refused.tagged.starts_with("NO [AUTHENTICATIONFAILED]"), "{user}: {refused:?}");
    }
    // The same connection may try again.
    imap.log_in(ANN, "secret").await.unwrap();
    assert_eq!(imap.server_name().await.unwrap(), "old");
}

async fn an_owner_that_is_down_is_nobodys_but_its_own_users_trouble(engine: Engine) {
    let mut lab = Lab::start(engine).await.unwrap();
    lab.table
        .sql("INSERT INTO domains (domain, default_owner) VALUES ('example.net', 'new');")
        .unwrap();
    let node = lab.node("node1").await.unwrap();
    lab.table.flip(BOB, "new").unwrap();
    lab.table.settled(BOB).await.unwrap();
    lab.new.stop().unwrap();
    let kept = node.send(BOB, "meanwhile").await.unwrap();
    assert!(kept.to_string().contains("queued as "), "{kept}");
    let unknown = node.recipient("nobody@example.net").await.unwrap();
    assert_eq!(unknown.code, 451, "only a row makes a recipient known: {unknown}");
    let (_, response) = node.login(BOB).await.unwrap();
    assert!(response.tagged.starts_with("NO [UNAVAILABLE]"), "{response:?}");
    // Nobody falls back to old, and ann at old notices nothing.
    assert_eq!(lab.old.inbox(BOB).len(), 0);
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "old");
    lab.new.resume().await.unwrap();
    assert_eq!(node.owner_seen_by_login(BOB).await.unwrap(), "new");
    let text = message("back again");
    let reply = smtp::send(node.smtp(), "sender@example.com", &[BOB], &text).await.unwrap();
    assert_eq!(reply.code, 250, "{reply}");
    until("both have arrived", || (lab.new.inbox(BOB).len() == 2).then_some(())).await.unwrap();
}

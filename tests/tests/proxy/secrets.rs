//! A password goes to one backend and nowhere else: not into logs, at no level, not into what is printed
//! of anything (LOG-14).

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;

use anyhow::Result;
use tests::login_backend::Manners;
use tracing::Level;
use tracing_subscriber::fmt;

use crate::Stage;

const PASSWORD: &str = "hunter2-and-more";

thread_local! {
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what a thread logs with that thread. A test's runtime has no other thread than the test's own.
struct ByThread;

impl Write for ByThread {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(octets));
        Ok(octets.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Logs everything from here on, at every level.
pub(crate) fn log_everything() {
    static SET_UP: Once = Once::new();
    SET_UP.call_once(|| {
        let lines = fmt().with_max_level(Level::TRACE).with_ansi(false);
        lines.with_writer(|| ByThread).init();
    });
}

pub(crate) fn logged() -> String {
    LOGGED.with_borrow(|logged| String::from_utf8_lossy(logged).into_owned())
}

#[tokio::test]
async fn a_password_is_in_no_log_line() -> Result<()> {
    log_everything();
    let Stage { old, new: _new, node } =
        Stage::set_with(Manners::default(), Manners::default()).await?;
    node.set_owner("carl", "no-such-backend");
    let mut client = node.connect().await?;
    for name in ["ann@example.org", "nobody@example.org", "carl@example.org", "\"a\u{7f}b\""] {
        client.say(&format!("a LOGIN {name} {PASSWORD}")).await?;
        client.expect("a NO").await?;
    }
    // Said where none belongs.
    for said in [format!("{PASSWORD} x"), format!("a {PASSWORD}"), format!("a LOGIN {PASSWORD}")] {
        client.say(&said).await?;
        let answer = client.line().await?;
        assert!(answer.contains("BAD"), "{answer}");
    }
    drop(client);
    drop(node.log_in("ann").await?);
    let ended = || logged().contains("session ended").then_some(());
    tests::patience::until("the session's line", ended).await?;
    let text = logged();
    assert!(!text.contains(PASSWORD) && !text.contains("secret"), "{text}");
    assert!(!text.contains("aHVudGVyMi"), "nor in base64: {text}");
    assert_eq!(old.logins().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_login_and_a_session_have_one_line_each_with_all_there_is_to_know() -> Result<()> {
    log_everything();
    let Stage { old: _old, new: _new, node } = Stage::set().await?;
    let epoch = node.set_owner("ann", "old");
    let mut client = node.log_in("ann").await?;
    client.say("a NOOP").await?;
    client.expect("a OK").await?;
    node.set_owner("ann", "new");
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    let text = logged();
    let line = |what: &str| {
        let found = text.lines().filter(|line| line.contains("INFO") && line.contains(what));
        let found: Vec<&str> = found.collect();
        assert_eq!(found.len(), 1, "{what}: {text}");
        found[0].to_owned()
    };
    let (login, ended) = (line(": login session="), line(": session ended session="));
    for (line, words) in [
        (
            &login,
            &["protocol=imap", "client=127.0.0.1:", "user=\"ann@example.org\"", "row=true"][..],
        ),
        (
            &ended,
            &["protocol=imap", "client=127.0.0.1:", "octets_in=8", "octets_out=", "ended=Kicked"],
        ),
    ] {
        for word in words.iter().copied().chain(["account=ann@example.org", "owner=old", "ms="]) {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(line.contains(&format!("epoch={epoch}")), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_nobody_configured_is_an_error_for_the_operator() -> Result<()> {
    log_everything();
    let Stage { old: _old, new: _new, node } = Stage::set().await?;
    node.set_owner("carl", "no-such-backend");
    let mut client = node.connect().await?;
    client.say("a LOGIN carl@example.org secret").await?;
    client.expect("a NO [UNAVAILABLE]").await?;
    let text = logged();
    let line = text.lines().find(|line| line.contains("ERROR")).unwrap_or_default();
    assert!(line.contains("no-such-backend") && line.contains("carl@example.org"), "{text}");
    Ok(())
}

//! What a backend says of a wrong password: its client hears it only where that is configured (LOG-16).

use anyhow::Result;
use shared::backend::LoginProtocol;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

/// The backend's no, how a client logs in, and what it hears in the backend's words and in ours.
struct Case {
    protocol: LoginProtocol,
    no: &'static str,
    login: &'static [&'static str],
    theirs: &'static str,
    ours: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        protocol: LoginProtocol::Imap,
        no: "TAG NO [AUTHENTICATIONFAILED] Password \"expired\"\r\n",
        login: &["a LOGIN ann@example.org old"],
        theirs: "a NO [AUTHENTICATIONFAILED] Password ?expired?",
        ours: "a NO [AUTHENTICATIONFAILED] Authentication failed.",
    },
    Case {
        protocol: LoginProtocol::Pop3,
        no: "-ERR [AUTH] Password expired\r\n",
        login: &["USER ann@example.org", "PASS old"],
        theirs: "-ERR [AUTH] Password expired",
        ours: "-ERR [AUTH] Authentication failed.",
    },
    Case {
        protocol: LoginProtocol::Submission,
        no: "535 5.7.8 Password expired\r\n",
        login: &["HELO c", "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBvbGQ="],
        theirs: "535 5.7.8 Password expired",
        ours: "535 5.7.8 Authentication failed",
    },
    Case {
        protocol: LoginProtocol::ManageSieve,
        no: "NO \"Password expired\"\r\n",
        login: &["AUTHENTICATE \"PLAIN\" \"AGFubkBleGFtcGxlLm9yZwBvbGQ=\""],
        theirs: "NO \"Password expired\"",
        ours: "NO \"Authentication failed",
    },
];

async fn heard(case: &Case, hide: bool) -> Result<String> {
    let manners = Manners { verdict: Verdict::Say(case.no), ..Manners::of(case.protocol) };
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.hide_auth_errors = hide);
    let settings = Settings { protocol: case.protocol, ..Settings::default() };
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    for line in case.login {
        client.say(line).await?;
    }
    loop {
        let line = client.line().await?;
        if line.contains("expired") || line.contains("failed") {
            return Ok(line);
        }
    }
}

#[tokio::test]
async fn a_backends_reason_is_heard_only_where_it_may_be() -> Result<()> {
    for case in &CASES {
        let hidden = heard(case, true).await?;
        assert!(hidden.starts_with(case.ours), "{}: {hidden}", case.protocol);
        assert_eq!(heard(case, false).await?, case.theirs, "{}", case.protocol);
    }
    Ok(())
}

//! Filters are put and read by ManageSieve where the account lives.

use super::{HOST, MASTER, PASSWORD, Provider};
use crate::ANN;

pub(super) const FILTER: &str = "require [\"fileinto\"];\r\nfileinto \"Lists\";\r\n";

#[tokio::test]
async fn sieve_connect_puts_a_script_at_the_owner() {
    let provider = Provider::start().await;
    let script = provider.home.write("lists.sieve", FILTER).unwrap();
    let put = ["--localsieve", &script, "--remotesieve", "lists", "--upload"];
    sieve_connect(&provider, &put).await;
    assert_eq!(provider.lab.old.script(ANN, "lists").as_deref(), Some(FILTER));
    assert_eq!(provider.lab.new.script(ANN, "lists"), None);

    provider.flip().await;
    // No script has moved along: that is a mover's work.
    assert!(!sieve_connect(&provider, &["--list"]).await.contains("lists"));
    sieve_connect(&provider, &put).await;
    assert_eq!(provider.lab.new.script(ANN, "lists").as_deref(), Some(FILTER));
    assert!(sieve_connect(&provider, &["--list"]).await.contains("lists"));
}

#[tokio::test]
async fn a_script_that_is_wrong_is_refused_in_the_owners_words() {
    let provider = Provider::start().await;
    let script = provider.home.write("wrong.sieve", "fileinto;\r\n").unwrap();
    let put = ["--localsieve", &script, "--remotesieve", "wrong", "--upload"];
    let said = run_sieve_connect(&provider, &put).await.unwrap_err().to_string();
    assert!(said.contains("line 1") && said.contains("fileinto"), "{said}");
    assert_eq!(provider.lab.old.script(ANN, "wrong"), None);
}

#[tokio::test]
async fn a_session_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    let mut session = provider.python("managesieve", ANN, PASSWORD, "PLAIN").await;
    session.says("put").await.unwrap();
    let scripts =
        || [&provider.lab.old, &provider.lab.new].map(|server| server.script(ANN, "session"));
    assert_eq!(scripts(), [Some("keep;".to_owned()), None]);
    provider.flip().await;
    session.says("put").await.unwrap();
    assert_eq!(scripts(), [const { Some("keep;") }; 2].map(|script| script.map(str::to_owned)));
    session.finished().await.unwrap();
}

#[tokio::test]
async fn managesieve_by_scram_is_relayed() {
    let provider = Provider::start().await;
    let mut session = provider.python("managesieve", ANN, PASSWORD, "SCRAM-SHA-256").await;
    session.says("put").await.unwrap();
    let words = ["managesieve-login: Info: Login", ANN, "method=SCRAM-SHA-256"];
    provider.lab.old.logged(&words).await.unwrap();
}

#[tokio::test]
async fn a_master_user_puts_a_script_where_the_account_lives() {
    let provider = Provider::start().await;
    let login = format!("{ANN}*{}", MASTER.0);
    let mut session = provider.python("managesieve", &login, MASTER.1, "PLAIN").await;
    session.says("put").await.unwrap();
    assert!(provider.lab.old.script(ANN, "session").is_some());
}

pub(super) async fn sieve_connect(provider: &Provider, arguments: &[&str]) -> String {
    run_sieve_connect(provider, arguments).await.unwrap()
}

/// With TLS; it reads the password from its standard input.
async fn run_sieve_connect(provider: &Provider, arguments: &[&str]) -> anyhow::Result<String> {
    let port = provider.port("managesieve").to_string();
    let program = ["sieve-connect", "--server", HOST, "--port", &port, "--tlscafile", &provider.ca];
    let command = [&program[..], &["--user", ANN, "--passwordfd", "0"], arguments].concat();
    provider.home.run(&command, &format!("{PASSWORD}\n")).await
}

//! From Dovecot to Cyrus: programs follow an account to a server of another kind.

use tests::cyrus::Cyrus;
use tests::imap::Imap;
use tests::lab::ACCOUNTS;
use tests::node::{self, Node};

use super::sieve::{FILTER, sieve_connect};
use super::{PASSWORD, Provider, mark};
use crate::ANN;

/// A provider whose new server is a Cyrus.
async fn start() -> (Provider, Cyrus) {
    let mut provider = Provider::start().await;
    let cyrus = Cyrus::start(&ACCOUNTS).await.unwrap();
    mark(cyrus.imap(), "new").await;
    let mut options = provider.lab.options("node2");
    options.backends = node::dovecot("old", &provider.lab.old) + &node::cyrus("new", &cyrus);
    provider.node.stop().unwrap();
    provider.node = Node::start(&options, &provider.lab.ca).await.unwrap();
    (provider, cyrus)
}

#[tokio::test]
async fn an_imap_session_is_moved_to_cyrus() {
    let (provider, _cyrus) = start().await;
    provider.python_follows("imaps", ANN, PASSWORD, "LOGIN").await;
}

#[tokio::test]
async fn an_imap_session_by_scram_is_moved_to_cyrus() {
    let (provider, _cyrus) = start().await;
    provider.python_follows("imaps", ANN, PASSWORD, "SCRAM-SHA-256").await;
}

#[tokio::test]
async fn a_pop3_session_is_moved_to_cyrus() {
    let (provider, _cyrus) = start().await;
    provider.python_follows("pop3s", ANN, PASSWORD, "USER").await;
}

#[tokio::test]
async fn a_filter_is_put_at_cyrus() {
    let (provider, _cyrus) = start().await;
    let script = provider.home.write("lists.sieve", FILTER).unwrap();
    let put = ["--localsieve", &script, "--remotesieve", "lists", "--upload"];
    sieve_connect(&provider, &put).await;
    assert!(provider.lab.old.script(ANN, "lists").is_some());
    provider.flip().await;
    assert!(!sieve_connect(&provider, &["--list"]).await.contains("lists"));
    sieve_connect(&provider, &put).await;
    assert!(sieve_connect(&provider, &["--list"]).await.contains("lists"));
}

#[tokio::test]
async fn mail_is_delivered_to_cyrus() {
    let (provider, cyrus) = start().await;
    provider.flip().await;
    assert_eq!(provider.node.send(ANN, "after the move").await.unwrap().code, 250);
    let mut imap = Imap::connect(cyrus.imap()).await.unwrap();
    imap.log_in(ANN, PASSWORD).await.unwrap();
    let messages = imap.messages("INBOX").await.unwrap();
    assert_eq!(messages.len(), 2);
    assert!(messages[1].contains("Subject: after the move"), "{messages:?}");
}

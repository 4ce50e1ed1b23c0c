//! Mechanisms and master users: what proves who somebody is reaches the owner as the program sends it.

use tests::dovecot::token;

use super::{MASTER, PASSWORD, Provider};
use crate::ANN;

#[tokio::test]
async fn imap_by_scram_sha_256_is_relayed_and_the_server_proves_itself() {
    let provider = Provider::start().await;
    provider.python_follows("imaps", ANN, PASSWORD, "SCRAM-SHA-256").await;
    provider
        .lab
        .new
        .logged(&["imap-login: Info: Login", ANN, "method=SCRAM-SHA-256"])
        .await
        .unwrap();
}

#[tokio::test]
async fn imap_by_scram_sha_1_is_relayed_and_the_server_proves_itself() {
    let provider = Provider::start().await;
    provider.python_follows("imap", ANN, PASSWORD, "SCRAM-SHA-1").await;
    provider.lab.new.logged(&["imap-login: Info: Login", ANN, "method=SCRAM-SHA-1"]).await.unwrap();
}

#[tokio::test]
async fn imap_by_xoauth2_is_believed_by_the_owner() {
    let provider = Provider::start().await;
    provider.python_follows("imaps", ANN, &token(ANN), "XOAUTH2").await;
    provider.lab.new.logged(&["imap-login: Info: Login", ANN, "method=XOAUTH2"]).await.unwrap();
}

#[tokio::test]
async fn imap_by_oauthbearer_is_believed_by_the_owner() {
    let provider = Provider::start().await;
    provider.python_follows("imaps", ANN, &token(ANN), "OAUTHBEARER").await;
    provider.lab.new.logged(&["imap-login: Info: Login", ANN, "method=OAUTHBEARER"]).await.unwrap();
}

#[tokio::test]
async fn a_master_user_opens_the_mailbox_where_it_lives() {
    let provider = Provider::start().await;
    let login = format!("{ANN}*{}", MASTER.0);
    provider.python_follows("imaps", &login, MASTER.1, "LOGIN").await;
    provider.python("imaps", &login, MASTER.1, "PLAIN").await.says("at new").await.unwrap();
    provider.lab.new.logged(&["imap-login: Info: Login", ANN]).await.unwrap();
}

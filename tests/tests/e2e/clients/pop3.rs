//! Programs that fetch mail by POP3.

use std::fs;

use tests::dovecot::token;

use super::{HOST, MASTER, PASSWORD, Provider};
use crate::ANN;

#[tokio::test]
async fn poplib_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("pop3s", ANN, PASSWORD, "USER").await;
}

#[tokio::test]
async fn poplib_with_stls_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("pop3", "ann", PASSWORD, "USER").await;
}

#[tokio::test]
async fn a_master_user_fetches_where_the_mailbox_lives() {
    let provider = Provider::start().await;
    let login = format!("{ANN}*{}", MASTER.0);
    provider.python_follows("pop3s", &login, MASTER.1, "USER").await;
}

#[tokio::test]
async fn curl_fetches_a_message_by_pop3s_at_the_owner() {
    let provider = Provider::start().await;
    let url = format!("pop3s://{HOST}:{}/1", provider.port("pop3s"));
    curl_follows(&provider, &["--user", &format!("{ANN}:{PASSWORD}"), &url]).await;
}

#[tokio::test]
async fn curl_with_stls_and_a_token_fetches_a_message_at_the_owner() {
    let provider = Provider::start().await;
    let url = format!("pop3://{HOST}:{}/1", provider.port("pop3"));
    let token = token(ANN);
    curl_follows(&provider, &["--user", &format!("{ANN}:"), "--oauth2-bearer", &token, &url]).await;
    let words = ["pop3-login: Info: Login", ANN, "method=OAUTHBEARER"];
    provider.lab.new.logged(&words).await.unwrap();
}

async fn curl_follows(provider: &Provider, arguments: &[&str]) {
    let tls = ["curl", "-sS", "--ssl-reqd", "--cacert", &provider.ca];
    let command = [&tls[..], arguments].concat();
    assert!(provider.run(&command).await.contains("Subject: at old"));
    provider.flip().await;
    assert!(provider.run(&command).await.contains("Subject: at new"));
}

#[tokio::test]
async fn fetchmail_fetches_from_the_owner() {
    let provider = Provider::start().await;
    let got = provider.home.path("got");
    let settings = format!(
        "set no bouncemail
poll {HOST} protocol pop3 service {port}
    user \"{ANN}\" password \"{PASSWORD}\" is me here ssl sslcertfile \"{ca}\" fetchall keep
    mda \"cat >>{got}\"
",
        port = provider.port("pop3s"),
        ca = provider.ca,
        got = got.display(),
    );
    let settings = provider.home.write("fetchmailrc", &settings).unwrap();
    let command = ["fetchmail", "--nosyslog", "-v", "-f", &settings];
    let arrived = |subject: &str| fs::read_to_string(&got).unwrap().contains(subject);
    provider.run(&command).await;
    assert!(arrived("Subject: at old") && !arrived("Subject: at new"));
    provider.flip().await;
    provider.run(&command).await;
    assert!(arrived("Subject: at new"));
}

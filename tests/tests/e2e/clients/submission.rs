//! Programs that submit mail: it leaves by the server where the account lives.

use tests::dovecot::token;
use tests::lab::ACCOUNTS;
use tests::node::{self, Node};
use tests::postfix::{self, Delivery, Postfix};

use super::{HOST, MASTER, PASSWORD, Provider};
use crate::{ANN, BOB};

impl Provider {
    /// The subjects that each server has relayed so far, old first.
    fn relayed(&self) -> [Vec<String>; 2] {
        let subject = |text: String| {
            text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or("").to_owned()
        };
        self.relays.each_ref().map(|relay| {
            relay.messages().into_iter().map(|message| subject(message.text())).collect()
        })
    }
}

#[tokio::test]
async fn smtplib_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("submissions", ANN, PASSWORD, "PLAIN").await;
    assert_eq!(provider.relayed(), [["by smtplib"], ["by smtplib"]]);
}

#[tokio::test]
async fn smtplib_with_starttls_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("submission", "ann", PASSWORD, "LOGIN").await;
    assert_eq!(provider.relayed(), [["by smtplib"], ["by smtplib"]]);
}

#[tokio::test]
async fn submission_by_scram_is_relayed_and_the_server_proves_itself() {
    let provider = Provider::start().await;
    provider.python_follows("submissions", ANN, PASSWORD, "SCRAM-SHA-256").await;
    let words = ["submission-login: Info: Login", ANN, "method=SCRAM-SHA-256"];
    provider.lab.new.logged(&words).await.unwrap();
}

#[tokio::test]
async fn submission_by_a_token_is_believed_by_the_owner() {
    let provider = Provider::start().await;
    provider.python_follows("submissions", ANN, &token(ANN), "XOAUTH2").await;
    let words = ["submission-login: Info: Login", ANN, "method=XOAUTH2"];
    provider.lab.new.logged(&words).await.unwrap();
}

#[tokio::test]
async fn a_master_user_submits_where_the_account_lives() {
    let provider = Provider::start().await;
    let login = format!("{ANN}*{}", MASTER.0);
    provider.python_follows("submissions", &login, MASTER.1, "PLAIN").await;
}

#[tokio::test]
async fn curl_submits_at_the_owner() {
    let provider = Provider::start().await;
    let url = format!("smtps://{HOST}:{}", provider.port("submissions"));
    let user = format!("{ANN}:{PASSWORD}");
    let tls = ["curl", "-sS", "--cacert", &provider.ca, "--user", &user, &url];
    let mail = ["--mail-from", ANN, "--mail-rcpt", BOB, "--upload-file", "-"];
    submits_at_the_owner(&provider, &[&tls[..], &mail].concat()).await;
}

#[tokio::test]
async fn msmtp_submits_at_the_owner() {
    let provider = Provider::start().await;
    msmtp_submits(&provider, "plain", "off", "submissions").await;
}

#[tokio::test]
async fn msmtp_submits_with_starttls_by_scram() {
    let provider = Provider::start().await;
    msmtp_submits(&provider, "scram-sha-256", "on", "submission").await;
    let words = ["submission-login: Info: Login", ANN, "method=SCRAM-SHA-256"];
    provider.lab.new.logged(&words).await.unwrap();
}

async fn msmtp_submits(provider: &Provider, mechanism: &str, starttls: &str, listener: &str) {
    let settings = format!(
        "account default
host {HOST}
port {port}
tls on
tls_starttls {starttls}
tls_trust_file {ca}
auth {mechanism}
user {ANN}
password {PASSWORD}
from {ANN}
",
        port = provider.port(listener),
        ca = provider.ca,
    );
    let settings = provider.home.write("msmtprc", &settings).unwrap();
    submits_at_the_owner(provider, &["msmtp", "-C", &settings, BOB]).await;
}

#[tokio::test]
async fn swaks_submits_at_the_owner() {
    let provider = Provider::start().await;
    let port = provider.port("submission").to_string();
    let command = swaks(&provider, &port, "LOGIN");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    provider.run(&command).await;
    assert_eq!(provider.relayed(), [vec!["by swaks"], vec![]]);
    provider.flip().await;
    provider.run(&command).await;
    assert_eq!(provider.relayed(), [["by swaks"], ["by swaks"]]);
}

fn swaks(provider: &Provider, port: &str, mechanism: &str) -> Vec<String> {
    let tls = ["swaks", "--server", HOST, "--port", port, "--tls", "--tls-verify"];
    let login = ["--auth", mechanism, "--auth-user", ANN, "--auth-password", PASSWORD];
    let mail = ["--from", ANN, "--to", BOB, "--header", "Subject: by swaks"];
    let words = [&tls[..], &["--tls-ca-path", &provider.ca], &login, &mail].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// A program that sends what it reads, before and after a flip.
async fn submits_at_the_owner(provider: &Provider, command: &[&str]) {
    let send = async |subject: &str| {
        let text = format!("From: <{ANN}>\r\nTo: <{BOB}>\r\nSubject: {subject}\r\n\r\nText\r\n");
        provider.home.run(command, &text).await.unwrap();
    };
    send("before").await;
    assert_eq!(provider.relayed(), [vec!["before"], vec![]]);
    provider.flip().await;
    send("after").await;
    assert_eq!(provider.relayed(), [["before"], ["after"]]);
}

/// As on most mail servers: Postfix takes the mail and asks Dovecot about the password.
#[tokio::test]
async fn a_postfix_with_dovecots_authentication_takes_a_moved_accounts_mail() {
    let mut provider = Provider::start().await;
    let postfix = Postfix::start(postfix::Options {
        domain: "example.org".to_owned(),
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        delivery: Delivery::Lmtp(provider.lab.new.lmtp()),
        wants_names: false,
        sasl: Some(provider.lab.new.sasl()),
        ..postfix::Options::default()
    })
    .await
    .unwrap();
    let mut options = provider.lab.options("node2");
    let (dovecot, by_postfix) = (provider.lab.new.submission(), postfix.smtp());
    options.backends = options.backends.replace(
        &node::login("new", "submission", dovecot),
        &node::login("new", "submission", by_postfix),
    );
    provider.node = Node::start(&options, &provider.lab.ca).await.unwrap();
    provider.flip().await;
    let port = provider.port("submission").to_string();
    let command = swaks(&provider, &port, "PLAIN");
    provider.run(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
    postfix.logged(&["sasl_method=PLAIN", &format!("sasl_username={ANN}")]).await.unwrap();
    postfix.logged(&["status=sent"]).await.unwrap();
    assert_eq!(provider.lab.new.inbox(BOB).len(), 1);
    assert_eq!(provider.relayed(), [const { Vec::<String>::new() }; 2]);
}

//! Programs that read mail by IMAP.

use std::fs;

use tests::dovecot::{inbox, token};
use tests::patience::until;

use super::{HOST, PASSWORD, Provider};
use crate::ANN;

#[tokio::test]
async fn imaplib_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("imaps", ANN, PASSWORD, "LOGIN").await;
}

#[tokio::test]
async fn imaplib_with_starttls_is_moved_while_it_is_connected() {
    let provider = Provider::start().await;
    provider.python_follows("imap", "ann", PASSWORD, "PLAIN").await;
}

#[tokio::test]
async fn curl_reads_a_message_by_imaps_at_the_owner() {
    let provider = Provider::start().await;
    let url = format!("imaps://{HOST}:{}/INBOX;MAILINDEX=1", provider.port("imaps"));
    let user = format!("{ANN}:{PASSWORD}");
    let command = ["curl", "-sS", "--cacert", &provider.ca, "--user", &user, &url];
    assert!(provider.run(&command).await.contains("Subject: at old"));
    provider.flip().await;
    assert!(provider.run(&command).await.contains("Subject: at new"));
}

#[tokio::test]
async fn curl_with_starttls_and_a_token_reads_a_message_at_the_owner() {
    let provider = Provider::start().await;
    let url = format!("imap://{HOST}:{}/INBOX;MAILINDEX=1", provider.port("imap"));
    let (user, token) = (format!("{ANN}:"), token(ANN));
    let tls = ["curl", "-sS", "--ssl-reqd", "--cacert", &provider.ca];
    let command = [&tls[..], &["--user", &user, "--oauth2-bearer", &token, &url]].concat();
    assert!(provider.run(&command).await.contains("Subject: at old"));
    provider.flip().await;
    assert!(provider.run(&command).await.contains("Subject: at new"));
    provider.lab.new.logged(&["imap-login: Info: Login", ANN, "method=OAUTHBEARER"]).await.unwrap();
}

#[tokio::test]
async fn mbsync_fetches_from_the_owner() {
    let provider = Provider::start().await;
    let mail = provider.home.path("mail");
    fs::create_dir(&mail).unwrap();
    let settings = format!(
        "IMAPAccount work
Host {HOST}
Port {port}
User {ANN}
Pass {PASSWORD}
SSLType IMAPS
CertificateFile {ca}
SystemCertificates no

IMAPStore far
Account work

MaildirStore near
Inbox {mail}/INBOX
Path {mail}/

Channel inbox
Far :far:
Near :near:
Patterns INBOX
Create Near
SyncState *
",
        port = provider.port("imaps"),
        ca = provider.ca,
        mail = mail.display(),
    );
    let settings = provider.home.write("mbsyncrc", &settings).unwrap();
    let command = ["mbsync", "-c", &settings, "-a"];
    provider.run(&command).await;
    assert_eq!(fetched(&mail), ["at old"]);
    // The new server's mailbox is another one to this program: a mover keeps UIDs, this test does not.
    fs::remove_dir_all(&mail).unwrap();
    fs::create_dir(&mail).unwrap();
    provider.flip().await;
    provider.run(&command).await;
    assert_eq!(fetched(&mail), ["at new"]);
}

/// The subjects in a Maildir.
fn fetched(mail: &std::path::Path) -> Vec<String> {
    inbox(&mail.join("INBOX"))
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("Subject: ")).map(str::to_owned)
        })
        .collect()
}

#[tokio::test]
async fn fetchmail_in_idle_is_moved_and_comes_back_by_itself() {
    let provider = Provider::start().await;
    let got = provider.home.path("got");
    let settings = format!(
        "set daemon 1
set no bouncemail
poll {HOST} protocol imap service {port}
    user \"{ANN}\" password \"{PASSWORD}\" is me here ssl sslcertfile \"{ca}\" idle fetchall keep
    mda \"cat >>{got}\"
",
        port = provider.port("imaps"),
        ca = provider.ca,
        got = got.display(),
    );
    let settings = provider.home.write("fetchmailrc", &settings).unwrap();
    let command = ["fetchmail", "--nodetach", "--nosyslog", "-v", "-f", &settings];
    let fetchmail = provider.home.start(&command, "").await.unwrap();
    let arrived = async |subject: &str| {
        let subject = format!("Subject: {subject}\n");
        until(&subject, || {
            let text = fs::read_to_string(&got).unwrap_or_default().replace('\r', "");
            text.contains(&subject).then_some(())
        })
        .await
        .unwrap();
    };
    arrived("at old").await;
    assert_eq!(provider.node.send(ANN, "while idle").await.unwrap().code, 250);
    arrived("while idle").await;
    provider.flip().await;
    arrived("at new").await;
    assert_eq!(provider.node.send(ANN, "after the move").await.unwrap().code, 250);
    arrived("after the move").await;
    assert_eq!(provider.lab.new.inbox(ANN).len(), 2);
    drop(fetchmail);
}

#[tokio::test]
async fn neomutt_saves_a_message_of_the_owner() {
    let provider = Provider::start().await;
    neomutt_saves(&provider, "old").await;
    provider.flip().await;
    neomutt_saves(&provider, "new").await;
}

/// Opens the inbox on a terminal, saves its message to a file, which must be the one of `server`.
async fn neomutt_saves(provider: &Provider, server: &str) {
    let saved = provider.home.path(&format!("saved-{server}"));
    let url = format!("imaps://{HOST}:{}/", provider.port("imaps"));
    let settings = format!(
        "set imap_user='{ANN}'
set imap_pass='{PASSWORD}'
set imap_authenticators='login'
set folder='{url}'
set spoolfile='{url}INBOX'
set ssl_usesystemcerts=no
set ssl_ca_certificates_file='{ca}'
set ssl_force_tls=yes
set mbox_type=mbox
set header_cache=''
set confirmappend=no
set confirmcreate=no
set quit=yes
set wait_key=no
push '<first-entry><copy-message><kill-line>{saved}<enter><exit>'
",
        ca = provider.ca,
        saved = saved.display(),
    );
    let settings = provider.home.write("neomuttrc", &settings).unwrap();
    // It wants a terminal, which `script` is.
    let neomutt = format!("neomutt -n -F {settings}");
    let shown = provider.run(&["script", "-qec", &neomutt, "/dev/null"]).await;
    let text = fs::read_to_string(&saved).unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert!(text.contains(&format!("Subject: at {server}")), "{text}");
}

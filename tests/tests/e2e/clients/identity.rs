//! The owner's log has who somebody is, and our name of the session (FWD-1, FWD-2, FWD-5).

use super::{HOST, PASSWORD, Provider};
use crate::ANN;

/// Not the address that the services connect from.
const CLIENT: &str = "127.0.0.9";

#[tokio::test]
async fn the_owners_log_has_our_session_and_the_clients_address_of_imap() {
    let provider = Provider::start().await;
    let url = format!("imaps://{HOST}:{}/INBOX;MAILINDEX=1", provider.port("imaps"));
    curl(&provider, &[&url]).await;
    provider.old_has_our_session("imap").await;
}

#[tokio::test]
async fn the_owners_log_has_our_session_and_the_clients_address_of_pop3() {
    let provider = Provider::start().await;
    curl(&provider, &[&format!("pop3s://{HOST}:{}/1", provider.port("pop3s"))]).await;
    provider.old_has_our_session("pop3").await;
}

#[tokio::test]
async fn the_owners_log_has_our_session_and_the_clients_address_of_submission() {
    let provider = Provider::start().await;
    let url = format!("smtps://{HOST}:{}", provider.port("submissions"));
    curl(&provider, &[&url, "--mail-from", ANN, "--mail-rcpt", ANN, "--upload-file", "-"]).await;
    provider.old_has_our_session("submission").await;
}

#[tokio::test]
async fn the_owners_log_has_our_session_and_the_clients_address_of_managesieve() {
    let provider = Provider::start().await;
    let mut session = provider.python("managesieve", ANN, PASSWORD, "PLAIN").await;
    session.says("put").await.unwrap();
    drop(session);
    provider.old_has_our_session("managesieve").await;
}

async fn curl(provider: &Provider, arguments: &[&str]) {
    let user = format!("{ANN}:{PASSWORD}");
    let common = ["curl", "-sS", "--interface", CLIENT, "--cacert", &provider.ca, "--user", &user];
    provider.run(&[&common[..], arguments].concat()).await;
}

impl Provider {
    /// Waits for the end of a session in our log, and for its login in the old server's.
    async fn old_has_our_session(&self, protocol: &str) {
        let proxy = self.node.proxy.as_ref().unwrap();
        let of_protocol = format!("\"protocol\":\"{protocol}\"");
        let line = proxy.logged(&[&of_protocol, "session ended"]).await.unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["account"], &line["owner"]), (&ANN.into(), &"old".into()));
        let session = format!("session=<{}>", line["session"].as_str().unwrap());
        let (service, client) = (format!("{protocol}-login:"), format!("rip={CLIENT},"));
        self.lab.old.logged(&[&service, "Login:", ANN, &client, &session]).await.unwrap();
    }
}

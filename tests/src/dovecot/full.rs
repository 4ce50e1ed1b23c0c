//! What a mail provider's Dovecot has beyond IMAP and LMTP: POP3, ManageSieve (Pigeonhole), submission, an
//! authentication service for Postfix, master users, tokens and SCRAM.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Dovecot;
use super::dialect::{DOMAIN, Version};
use crate::place::Place;

/// The key by which every server believes tokens: JWTs with HS256 and the account in `email`.
pub const TOKEN_KEY: &str = "a key that everybody may know";

/// Processes that are locked in before a login.
pub(super) const LOGIN_SERVICES: &[&str] =
    &["pop3-login", "managesieve-login", "submission-login", "submission"];

/// What a server is to have beyond IMAP and LMTP.
#[derive(Debug, Clone)]
pub struct Full {
    /// Where it relays what its users submit.
    pub relay: SocketAddr,
    /// Who may open every mailbox (`ann@example.org*name`), and their passwords.
    pub masters: Vec<(String, String)>,
}

impl Full {
    pub(super) fn set_up(&self, place: &Place) -> Result<()> {
        let mut masters = String::new();
        for (name, password) in &self.masters {
            // They get the default domain like everybody who comes without one.
            writeln!(masters, "{name}@{DOMAIN}:{{PLAIN}}{password}")?;
        }
        place.write("masters", &masters, 0o644, None)?;
        // A key is looked for under issuer, algorithm and its own name.
        place.directory("keys/default/HS256", 0o755, None)?;
        let key = BASE64_STANDARD.encode(TOKEN_KEY);
        place.write("keys/default/HS256/default", &key, 0o644, None)?;
        let tokens = format!(
            "introspection_mode = local
local_validation_key_dict = fs:posix:prefix={}/keys/
username_attribute = email
",
            place.path().display()
        );
        place.write("tokens", &tokens, 0o644, None).map(drop)
    }

    pub(super) fn write(
        &self,
        text: &mut String,
        server: &Dovecot,
        version: Version,
    ) -> Result<()> {
        self.services(text, server)?;
        if version >= (2, 4) { words_of_2_4(text, server) } else { words_of_2_3(text, server) }
    }

    fn services(&self, text: &mut String, server: &Dovecot) -> Result<()> {
        let super::Addresses { pop3, managesieve, submission, sasl, .. } = server.addresses;
        write!(
            text,
            "auth_mechanisms = plain login xoauth2 oauthbearer scram-sha-1 scram-sha-256
auth_master_user_separator = *
hostname = {name}.example.org
managesieve_implementation_string = {name}
submission_relay_host = {relay_host}
submission_relay_port = {relay_port}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service managesieve-login {{
  inet_listener sieve {{
    port = {managesieve}
  }}
}}
service submission-login {{
  inet_listener submission {{
    port = {submission}
  }}
  inet_listener submissions {{
    port = 0
  }}
}}
service auth {{
  inet_listener sasl {{
    port = {sasl}
  }}
}}
",
            name = server.name,
            relay_host = self.relay.ip(),
            relay_port = self.relay.port(),
            pop3 = pop3.port(),
            managesieve = managesieve.port(),
            submission = submission.port(),
            sasl = sasl.port(),
        )?;
        Ok(())
    }
}

fn words_of_2_3(text: &mut String, server: &Dovecot) -> Result<()> {
    let place = server.place.path().display();
    write!(
        text,
        "protocols = imap lmtp pop3 sieve submission
passdb {{
  driver = passwd-file
  args = {place}/masters
  master = yes
}}
passdb {{
  driver = oauth2
  args = {place}/tokens
  mechanisms = xoauth2 oauthbearer
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
}}
"
    )?;
    Ok(())
}

fn words_of_2_4(text: &mut String, server: &Dovecot) -> Result<()> {
    let place = server.place.path().display();
    write!(
        text,
        "protocols {{
  pop3 = yes
  sieve = yes
  submission = yes
}}
passdb masters {{
  driver = passwd-file
  passwd_file_path = {place}/masters
  master = yes
}}
oauth2 {{
  introspection_mode = local
  username_attribute = email
  oauth2_local_validation {{
    dict fs {{
      fs posix {{
        prefix = {place}/keys/
      }}
    }}
  }}
}}
sieve_script personal {{
  path = ~/sieve
  active_path = ~/.dovecot.sieve
}}
"
    )?;
    Ok(())
}

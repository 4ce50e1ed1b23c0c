//! Dovecot's configuration, in the words of 2.3 and of 2.4.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Dovecot, LOG, full, gate, output};
use crate::user::is_root;

/// The domain of a login without one.
pub(super) const DOMAIN: &str = "example.org";

/// Major and minor version.
pub(super) type Version = (u32, u32);

/// The version of a Dovecot program.
///
/// # Errors
///
/// It does not run, or says something else.
pub(super) fn version(program: &str) -> Result<Version> {
    let text = output(Command::new(program).arg("--version"))?;
    parse_version(&text).with_context(|| format!("{text:?} is no version"))
}

fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.split(['.', ' ', '-', '\n']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether this version still asks a checkpassword program, which [`gate`] is.
pub(super) fn has_gate(version: Version) -> bool {
    version < (2, 4)
}

/// The whole configuration of a server.
pub(super) fn configuration(server: &Dovecot, version: Version) -> Result<String> {
    let mut text = String::new();
    if version >= (2, 4) {
        words_of_2_4(&mut text, server)?;
    } else {
        words_of_2_3(&mut text, server)?;
    }
    common(&mut text, server)?;
    if let Some(full) = &server.options.full {
        full.write(&mut text, server, version)?;
    }
    if !is_root() {
        without_root(&mut text, server, version)?;
    }
    Ok(text)
}

fn common(text: &mut String, server: &Dovecot) -> Result<()> {
    let place = server.place.path().display();
    let super::Addresses { imap, imaps, lmtp, .. } = server.addresses;
    let imaps_port = if server.options.tls.is_some() { imaps.port() } else { 0 };
    write!(
        text,
        "
base_dir = {place}/run
state_dir = {place}/run
log_path = {place}/{LOG}
listen = 127.0.0.1
instance_name = {name}
login_greeting = {name} ready
login_trusted_networks = 127.0.0.0/8
mail_max_userip_connections = 0
first_valid_uid = 1
first_valid_gid = 1
auth_verbose = yes
auth_failure_delay = 0 secs
recipient_delimiter = +
# Wrong passwords are not punished by waiting: all clients have one address.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps_port}
  }}
  process_min_avail = 1
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
namespace inbox {{
  inbox = yes
}}
",
        name = server.name,
        imap = imap.port(),
        lmtp = lmtp.port(),
    )?;
    Ok(())
}

/// As an ordinary user nothing can be locked in or run as somebody else.
fn without_root(text: &mut String, server: &Dovecot, version: Version) -> Result<()> {
    let name = |which: &str| output(Command::new("id").arg(which));
    let (user, group) = (name("-un")?, name("-gn")?);
    write!(text, "default_internal_user = {user}default_login_user = {user}")?;
    write!(text, "default_internal_group = {group}")?;
    let more = if server.is_full() { full::LOGIN_SERVICES } else { &[] };
    let gone: &[&str] = if version < (2, 4) { &["aggregator", "ipc"] } else { &[] };
    for service in ["anvil", "imap-login", "stats"].iter().chain(gone).chain(more) {
        writeln!(text, "service {service} {{\n  chroot =\n}}")?;
    }
    Ok(())
}

fn words_of_2_3(text: &mut String, server: &Dovecot) -> Result<()> {
    let place = server.place.path().display();
    write!(
        text,
        "protocols = imap lmtp
mail_location = maildir:~/Maildir
disable_plaintext_auth = no
lmtp_save_to_detail_mailbox = no
imap_id_send = name {name}
service imap-login {{
  service_count = 0
}}
auth_default_realm = {DOMAIN}
userdb {{
  driver = passwd-file
  args = {place}/users
}}
",
        name = server.name
    )?;
    if server.options.gate {
        write!(
            text,
            "passdb {{\n  driver = checkpassword\n  args = {}\n  mechanisms = plain login\n}}\n",
            gate::script(&server.place)
        )?;
    }
    // Tokens are no passwords.
    write!(
        text,
        "passdb {{
  driver = passwd-file
  args = {place}/users
  mechanisms = plain login scram-sha-1 scram-sha-256
}}
"
    )?;
    match &server.options.tls {
        None => writeln!(text, "ssl = no")?,
        Some(identity) => write!(
            text,
            "ssl = yes\nssl_cert = <{}\nssl_key = <{}\n",
            shown(&identity.cert_file),
            shown(&identity.key_file)
        )?,
    }
    Ok(())
}

fn words_of_2_4(text: &mut String, server: &Dovecot) -> Result<()> {
    let place = server.place.path().display();
    write!(
        text,
        "dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols {{
  imap = yes
  lmtp = yes
}}
mail_driver = maildir
mail_path = ~/Maildir
auth_allow_cleartext = yes
auth_default_domain = {DOMAIN}
imap_id_send {{
  name = {name}
}}
service imap-login {{
  restart_request_count = unlimited
}}
userdb passwd-file {{
  passwd_file_path = {place}/users
}}
",
        name = server.name
    )?;
    write!(text, "passdb passwd-file {{\n  passwd_file_path = {place}/users\n}}\n")?;
    match &server.options.tls {
        None => writeln!(text, "ssl = no")?,
        Some(identity) => write!(
            text,
            "ssl = yes\nssl_server_cert_file = {}\nssl_server_key_file = {}\n",
            shown(&identity.cert_file),
            shown(&identity.key_file)
        )?,
    }
    Ok(())
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_dovecot_prints_them() {
        assert_eq!(parse_version("2.3.19.1 (9b53102964)\n"), Some((2, 3)));
        assert_eq!(parse_version("2.4.1-4 (7d8c0e5759)\n"), Some((2, 4)));
    }
}

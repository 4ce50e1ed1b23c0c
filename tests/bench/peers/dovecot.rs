//! Dovecot, whose login processes pass every login on to one backend.

use tests::place::Place;

use super::{Peer, Who};
use crate::tls::Tls;

pub async fn start(tls: &Tls, backend: u16, backend_tls: bool) -> anyhow::Result<Peer> {
    let place = Place::new()?;
    place.directory("run", 0o755, None)?;
    let port = tests::ports::reserve_one()?.port();
    let leg = if backend_tls { "ssl=any-cert" } else { "" };
    let place_path = place.path().display();
    let text = format!(
        "base_dir = {place_path}/run\nlog_path = {place_path}/log\nprotocols = imap\nssl = yes\n\
         ssl_cert = <{cert}\nssl_key = <{key}\nssl_client_ca_file = {ca}\n\
         service imap-login {{\n inet_listener imap {{\n port = 0\n }}\n inet_listener imaps {{\n \
         address = 127.0.0.1\n port = {port}\n ssl = yes\n }}\n service_count = 0\n \
         process_min_avail = 2\n process_limit = 2\n client_limit = 10000\n vsz_limit = 0\n}}\n\
         service anvil {{\n client_limit = 20000\n}}\nservice auth {{\n client_limit = 20000\n}}\n\
         login_trusted_networks =\nmail_max_userip_connections = 0\nauth_mechanisms = plain\n\
         auth_failure_delay = 0\n\
         passdb {{\n driver = static\n args = proxy=y nopassword=y host=127.0.0.1 port={backend} {leg}\n}}\n\
         userdb {{\n driver = static\n args = uid=65534 gid=65534 home=/nonexistent\n}}\n",
        cert = tls.cert_file.display(),
        key = tls.key_file.display(),
        ca = tls.ca_file.display(),
    );
    let file = place.write("dovecot.conf", &text, 0o644, None)?;
    let file = file.to_string_lossy().into_owned();
    Peer::start(Who::Dovecot, &["/usr/sbin/dovecot", "-F", "-c", &file], place, port).await
}

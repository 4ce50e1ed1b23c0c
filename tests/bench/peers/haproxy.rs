//! HAProxy in TCP mode: it ends the client's TLS and knows nothing of what is said. And in HTTP mode.

use std::path::PathBuf;

use tests::place::Place;

use super::{Peer, Who};
use crate::tls::{HOST, Tls};

pub async fn start(tls: &Tls, backend: u16, backend_tls: bool) -> anyhow::Result<Peer> {
    let place = Place::new()?;
    let port = tests::ports::reserve_one()?.port();
    let leg = if backend_tls {
        let ca = tls.ca_file.display();
        format!("ssl verify required ca-file {ca} sni str({HOST}) verifyhost {HOST} no-ssl-reuse")
    } else {
        String::new()
    };
    let pem = both(tls, &place)?;
    let text = format!(
        "global\n nbthread 2\n maxconn 8000\n\
         ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n\
         defaults\n mode tcp\n maxconn 8000\n timeout connect 10s\n timeout client 1h\n \
         timeout server 1h\n\
         listen imaps\n bind 127.0.0.1:{port} ssl crt {pem}\n server old 127.0.0.1:{backend} {leg}\n",
        pem = pem.display(),
    );
    let file = place.write("haproxy.cfg", &text, 0o644, None)?;
    let file = file.to_string_lossy().into_owned();
    Peer::start(Who::HaProxy, &["/usr/sbin/haproxy", "-db", "-f", &file], place, port).await
}

/// A reverse proxy that sends every request to one server, over connections that it keeps.
pub async fn web(tls: &Tls, backend: u16) -> anyhow::Result<Peer> {
    let place = Place::new()?;
    let port = tests::ports::reserve_one()?.port();
    let pem = both(tls, &place)?;
    let text = format!(
        "global\n nbthread 2\n maxconn 8000\n ssl-default-bind-options ssl-min-ver TLSv1.3\n\
         defaults\n mode http\n maxconn 8000\n timeout connect 10s\n timeout client 1h\n timeout server 1h\n \
         timeout http-keep-alive 1h\n option forwardfor\n http-reuse always\n\
         listen web\n bind 127.0.0.1:{port} ssl crt {pem} alpn h2,http/1.1\n server old 127.0.0.1:{backend}\n",
        pem = pem.display(),
    );
    let file = place.write("haproxy.cfg", &text, 0o644, None)?;
    let file = file.to_string_lossy().into_owned();
    Peer::start(Who::HaProxy, &["/usr/sbin/haproxy", "-db", "-f", &file], place, port).await
}

/// It wants certificate and key in one file.
fn both(tls: &Tls, place: &Place) -> anyhow::Result<PathBuf> {
    let [cert, key] = [&tls.cert_file, &tls.key_file].map(std::fs::read_to_string);
    place.write("both.pem", &format!("{}{}", cert?, key?), 0o600, None)
}

//! nginx's mail module, and the service of HTTP that tells it where a login goes. And nginx as it is known.

use anyhow::ensure;
use tests::place::Place;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Peer, Who};
use crate::tls::{HOST, Tls};

pub async fn start(tls: &Tls, backend: u16, backend_tls: bool) -> anyhow::Result<Peer> {
    ensure!(!backend_tls, "it speaks no TLS to backends");
    let place = Place::new()?;
    let port = tests::ports::reserve_one()?.port();
    let directory = directory(backend).await?;
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_mail_module.so;\n\
         daemon off;\nworker_processes 2;\nuser nobody nogroup;\npid {place}/pid;\n\
         error_log {place}/log warn;\nevents {{ worker_connections 12000; }}\n\
         mail {{\n server_name {HOST};\n auth_http 127.0.0.1:{directory}/;\n timeout 1h;\n \
         imap_capabilities IMAP4rev1 SASL-IR LITERAL+ ID IDLE;\n \
         ssl_certificate {cert};\n ssl_certificate_key {key};\n ssl_protocols TLSv1.3;\n \
         server {{ listen 127.0.0.1:{port} ssl; protocol imap; }}\n}}\n",
        place = place.path().display(),
        cert = tls.cert_file.display(),
        key = tls.key_file.display(),
    );
    let file = place.write("nginx.conf", &text, 0o644, None)?;
    let file = file.to_string_lossy().into_owned();
    let log = place.join("log").to_string_lossy().into_owned();
    let command = ["/usr/sbin/nginx", "-e", &log, "-c", &file];
    Peer::start(Who::Nginx, &command, place, port).await
}

/// A reverse proxy that sends every request to one server, over connections that it keeps.
pub async fn web(tls: &Tls, backend: u16) -> anyhow::Result<Peer> {
    let place = Place::new()?;
    let port = tests::ports::reserve_one()?.port();
    let text = format!(
        "daemon off;\nworker_processes 2;\nuser nobody nogroup;\npid {place}/pid;\n\
         error_log {place}/log warn;\nevents {{ worker_connections 12000; }}\n\
         http {{\n access_log off;\n keepalive_timeout 1h;\n keepalive_requests 10000000;\n \
         client_body_temp_path {place}/body;\n proxy_temp_path {place}/proxy;\n \
         fastcgi_temp_path {place}/fastcgi;\n uwsgi_temp_path {place}/uwsgi;\n scgi_temp_path {place}/scgi;\n \
         upstream old {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 10000000; }}\n \
         server {{\n  listen 127.0.0.1:{port} ssl http2;\n  server_name {HOST};\n  \
         ssl_certificate {cert};\n  ssl_certificate_key {key};\n  ssl_protocols TLSv1.3;\n  \
         location / {{\n   proxy_pass http://old;\n   proxy_http_version 1.1;\n   \
         proxy_set_header Connection \"\";\n   proxy_set_header Host $host;\n   \
         proxy_set_header X-Forwarded-For $remote_addr;\n   proxy_buffering off;\n   proxy_read_timeout 1h;\n  \
         }}\n }}\n}}\n",
        place = place.path().display(),
        cert = tls.cert_file.display(),
        key = tls.key_file.display(),
    );
    let file = place.write("nginx.conf", &text, 0o644, None)?;
    let file = file.to_string_lossy().into_owned();
    let log = place.join("log").to_string_lossy().into_owned();
    let command = ["/usr/sbin/nginx", "-e", &log, "-c", &file];
    Peer::start(Who::Nginx, &command, place, port).await
}

/// Says of every login that it is right and lives at `backend`. Returns the port it listens on.
async fn directory(backend: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(authorize(socket, backend));
        }
    });
    Ok(port)
}

async fn authorize(socket: TcpStream, backend: u16) -> anyhow::Result<()> {
    let mut stream = BufReader::with_capacity(1024, socket);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let answer = format!(
        "HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {backend}\r\n\r\n"
    );
    Ok(stream.write_all(answer.as_bytes()).await?)
}

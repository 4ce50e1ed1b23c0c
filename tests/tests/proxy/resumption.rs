//! TLS sessions are resumed on both legs (NET-3), and by clients at any node with the same ticket keys.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tests::login_backend::{LoginBackend, Manners, Tls};
use tests::node::{IMAP_HOST, Node, Options};
use tests::patience::PATIENCE;
use tests::table::{Engine, Table};
use tests::test_ca::{TestCa, server_name};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, RootCertStore};

/// How a client that remembers its sessions shakes hands.
async fn greeted(client: &TlsConnector, to: SocketAddr) -> Result<HandshakeKind> {
    let socket = TcpStream::connect(to).await?;
    let stream = timeout(PATIENCE, client.connect(server_name(IMAP_HOST)?, socket)).await??;
    let mut stream = BufReader::new(stream);
    // The tickets come with it.
    timeout(PATIENCE, stream.read_line(&mut String::new())).await??;
    stream.get_ref().get_ref().1.handshake_kind().context("no handshake")
}

fn who_resumes(ca: &TestCa) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.file())?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[tokio::test]
async fn a_client_resumes_at_every_node_with_the_same_ticket_keys_and_each_node_at_the_backend()
-> Result<()> {
    let (ca, table) = (TestCa::new()?, Table::create(Engine::Sqlite)?);
    table.sql(
        "INSERT INTO domains (domain) VALUES ('example.org');
         INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old');",
    )?;
    let tls = Some(Tls::Implicit(ca.issue("localhost")?.acceptor()?));
    let old = LoginBackend::start("old", Manners { tls, ..Manners::default() }).await?;
    let keys = tempfile::tempdir()?;
    let mut nodes = Vec::new();
    for (name, secret) in [("first", 1), ("second", 1), ("other", 2)] {
        let file = keys.path().join(format!("{secret}.key"));
        std::fs::write(&file, [secret; 48])?;
        let options = Options {
            name: name.into(),
            url: table.url(),
            tls: format!("ticket_key_file = {file:?}\n"),
            backends: format!(
                "[backends.old.imap]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"implicit\"\n\
                 server_name = \"localhost\"\nca_file = {:?}\n",
                old.address.port(),
                ca.file()
            ),
            ..Options::default()
        };
        nodes.push(Node::start(&options, &ca).await?);
    }
    let client = who_resumes(&ca)?;
    for (node, expected) in [
        (0, HandshakeKind::Full),
        (1, HandshakeKind::Resumed),
        (0, HandshakeKind::Resumed),
        (2, HandshakeKind::Full),
    ] {
        assert_eq!(greeted(&client, nodes[node].imaps()).await?, expected, "{node}");
    }
    for _ in 0..2 {
        let imap = nodes[0].log_in("ann@example.org").await?;
        drop(imap);
    }
    let sessions = old.connections();
    let last = sessions.iter().rfind(|connection| connection.logged_in).context("a session")?;
    assert!(last.resumed, "the backend leg is resumed");
    Ok(())
}

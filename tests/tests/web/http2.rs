//! HTTP/2 (RFC 9113), as clients agree on it by ALPN.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tests::login_backend::PASSWORD;
use tests::test_ca::TestCa;
use tests::web_backend::{Manners, WebBackend};
use tests::web_node::{WebNode, basic, rules};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

struct Secured {
    old: WebBackend,
    new: WebBackend,
    node: WebNode,
    ca: TestCa,
}

async fn secured() -> Result<Secured> {
    let old = WebBackend::start("old", Manners::default()).await?;
    let new = WebBackend::start("new", Manners::default()).await?;
    let ca = TestCa::new()?;
    let identity = ca.issue("localhost")?;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_file(&identity.cert_file)?];
    let key = PrivateKeyDer::from_pem_file(&identity.key_file)?;
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let node = WebNode::start([old.configured(), new.configured()], rules(), Some(&tls))?;
    node.set_owner("ann", "old");
    node.set_owner("bob", "new");
    Ok(Secured { old, new, node, ca })
}

impl Secured {
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        use rustls_pki_types::pem::PemObject as _;
        let mut roots = RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_file(self.ca.file())?)?;
        let mut config =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(self.node.address).await?;
        let name = rustls_pki_types::ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    path: &str,
    local: &str,
) -> Result<Response<Incoming>> {
    let authorization = basic(local, PASSWORD);
    let (_, value) = authorization.split_once(": ").context("a field")?;
    let request = Request::get(format!("https://localhost{path}"))
        .header("authorization", value)
        .body(Full::default())?;
    sender.ready().await?;
    Ok(sender.send_request(request).await?)
}

async fn text(response: Response<Incoming>) -> Result<String> {
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
}

#[tokio::test]
async fn requests_for_both_owners_run_side_by_side_on_one_connection() {
    let stage = secured().await.unwrap();
    let mut client = stage.connect().await.unwrap();
    let (mut one, mut two) = (client.clone(), client.clone());
    let (slow, other) = tokio::join!(ask(&mut one, "/slow", "ann"), async {
        let other = ask(&mut two, "/echo", "bob").await;
        stage.old.go_on();
        other
    });
    assert_eq!(text(other.unwrap()).await.unwrap(), "new:");
    assert_eq!(text(slow.unwrap()).await.unwrap(), "old slow");
    stage.node.set_owner("ann", "new");
    let moved = ask(&mut client, "/echo", "ann").await.unwrap();
    assert_eq!(text(moved).await.unwrap(), "new:");
    let seen = stage.new.seen().pop().unwrap();
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("host"), Some("localhost"));
    assert!(seen.head.contains(" HTTP/1.1"));
}

#[tokio::test]
async fn a_stream_whose_window_stays_shut_keeps_up_no_fence() {
    let stage = secured().await.unwrap();
    let mut client = stage.connect().await.unwrap();
    // Nothing of it is taken, so its window stays as it is.
    let _answer = ask(&mut client, "/endless", "ann").await.unwrap();
    tests::web_node::a_moment().await;
    stage.node.set_owner("ann", "new");
    let applied = stage.node.applied();
    tokio::time::timeout(std::time::Duration::from_secs(10), applied)
        .await
        .expect("in time")
        .unwrap();
    stage.old.left_alone().await.unwrap();
    let other = ask(&mut client, "/echo", "bob").await.unwrap();
    assert_eq!(text(other).await.unwrap(), "new:", "the connection goes on");
}

#[tokio::test]
async fn cookies_in_pieces_and_a_stream_go_through() {
    let stage = secured().await.unwrap();
    let mut client = stage.connect().await.unwrap();
    let authorization = basic("ann", PASSWORD);
    let request = Request::get("https://localhost/echo")
        .header("authorization", authorization.split_once(": ").unwrap().1)
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::default())
        .unwrap();
    client.ready().await.unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    assert_eq!(stage.old.seen()[0].field("cookie"), Some("a=1; b=2"));
}

#[tokio::test]
async fn a_flip_resets_the_stream_of_its_account_and_no_other() {
    let stage = secured().await.unwrap();
    let mut client = stage.connect().await.unwrap();
    let mut events = ask(&mut client, "/sse", "ann").await.unwrap().into_body();
    let mut others = ask(&mut client, "/sse", "bob").await.unwrap().into_body();
    assert!(events.frame().await.unwrap().is_ok());
    stage.node.set_owner("ann", "new");
    stage.node.applied().await.unwrap();
    let ended = loop {
        match events.frame().await {
            Some(Ok(_)) => {}
            ended => break ended,
        }
    };
    assert!(ended.is_some_and(|ended| ended.is_err()), "it is no end of its own");
    assert!(others.frame().await.unwrap().is_ok());
    stage.old.left_alone().await.unwrap();
}

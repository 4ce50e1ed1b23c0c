//! Listeners on real sockets: limits, PROXY headers, panics, stopping.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use shared::config::{Bind, ListenerConfig, ListenerTls, ProxyMode};
use shared::lifecycle::Lifecycle;
use shared::listener::{Accepted, Listener, Refused};
use shared::proxy_protocol::{self, Extensions};
use shared::wire::Proxied;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn config(binds: Vec<Bind>) -> ListenerConfig {
    ListenerConfig {
        binds,
        tls: ListenerTls::None,
        proxy: ProxyMode::Off,
        proxy_trusted: vec!["127.0.0.0/8".parse().unwrap()],
        max_connections: 100,
        max_per_address: 100,
    }
}

fn loopback() -> Vec<Bind> {
    vec![Bind::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
}

/// A listener that greets with the client's address and says what it hears back.
fn serve(config: &ListenerConfig) -> (SocketAddr, Lifecycle) {
    let listener = Listener::bind(config).unwrap();
    let address = listener.addresses()[0];
    let lifecycle = Lifecycle::default();
    let refusal = |refused| match refused {
        Refused::TooMany => b"* BYE too many\r\n".to_vec(),
        Refused::TooManyFromAddress => b"* BYE too many of yours\r\n".to_vec(),
    };
    listener.serve(&lifecycle, refusal, |accepted: Accepted| async move {
        let Accepted { mut socket, client, seat, .. } = accepted;
        let _seat = seat;
        if socket.write_all(format!("* OK {client}\r\n").as_bytes()).await.is_err() {
            return;
        }
        let mut heard = [0; 100];
        while let Ok(count @ 1..) = socket.read(&mut heard).await {
            assert!(!heard.starts_with(b"panic"), "as told");
            let _ = socket.write_all(&heard[..count]).await;
        }
    });
    (address, lifecycle)
}

async fn read_line(socket: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match socket.read_u8().await {
            Ok(octet) => line.push(octet),
            Err(_) => break,
        }
    }
    String::from_utf8(line).unwrap()
}

async fn connect(address: SocketAddr) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let greeting = read_line(&mut socket).await;
    (socket, greeting)
}

fn header(client: &str) -> Vec<u8> {
    let local = "192.0.2.1:143".parse().unwrap();
    let proxied = Proxied { client: client.parse().unwrap(), local };
    proxy_protocol::encode(Some(proxied), Extensions::default())
}

#[tokio::test]
async fn a_port_alone_takes_both_families_and_names_ipv4_clients_as_such() {
    let (address, _lifecycle) = serve(&config(vec![Bind::Port(0)]));
    let (_socket, greeting) = connect((Ipv4Addr::LOCALHOST, address.port()).into()).await;
    assert!(greeting.starts_with("* OK 127.0.0.1:"), "{greeting}");
    if address.is_ipv6() {
        let (_socket, greeting) = connect((Ipv6Addr::LOCALHOST, address.port()).into()).await;
        assert!(greeting.starts_with("* OK [::1]:"), "{greeting}");
    }
}

#[tokio::test]
async fn connections_over_the_limits_are_told_so() {
    let (address, _lifecycle) = serve(&ListenerConfig { max_connections: 2, ..config(loopback()) });
    let (first, _) = connect(address).await;
    let (_second, greeting) = connect(address).await;
    assert!(greeting.starts_with("* OK"));
    assert_eq!(connect(address).await.1, "* BYE too many\r\n");
    drop(first);
    // Its seat is given back when its session has ended.
    while connect(address).await.1 == "* BYE too many\r\n" {
        tokio::task::yield_now().await;
    }

    let (address, _lifecycle) = serve(&ListenerConfig { max_per_address: 1, ..config(loopback()) });
    let (_first, _) = connect(address).await;
    assert_eq!(connect(address).await.1, "* BYE too many of yours\r\n");
}

#[tokio::test]
async fn a_panic_ends_one_session_only() {
    let (address, _lifecycle) = serve(&config(loopback()));
    let (mut other, _) = connect(address).await;
    let (mut first, _) = connect(address).await;
    first.write_all(b"panic").await.unwrap();
    assert_eq!(read_line(&mut first).await, "");
    other.write_all(b"still here\n").await.unwrap();
    assert_eq!(read_line(&mut other).await, "still here\n");
    assert!(connect(address).await.1.starts_with("* OK"));
}

#[tokio::test]
async fn nothing_is_accepted_after_stop_and_sessions_go_on() {
    let (address, lifecycle) = serve(&config(loopback()));
    let (mut socket, _) = connect(address).await;
    lifecycle.stop().cancel();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    socket.write_all(b"still here\n").await.unwrap();
    assert_eq!(read_line(&mut socket).await, "still here\n");
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client() {
    for proxy in [ProxyMode::Optional, ProxyMode::Required] {
        let (address, _lifecycle) = serve(&ListenerConfig { proxy, ..config(loopback()) });
        for client in ["203.0.113.9:5000", "[2001:db8::9]:5000"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(&[&header(client)[..], b"a1 NOOP\r\n"].concat()).await.unwrap();
            assert_eq!(read_line(&mut socket).await, format!("* OK {client}\r\n"));
            // What follows the header stays for the session.
            assert_eq!(read_line(&mut socket).await, "a1 NOOP\r\n");
        }
        let mut socket = TcpStream::connect(address).await.unwrap();
        for octet in b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 143\r\n" {
            socket.write_all(&[*octet]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(read_line(&mut socket).await, "* OK 203.0.113.9:5000\r\n");
    }
}

#[tokio::test]
async fn limits_count_the_client_that_a_proxy_names() {
    let required =
        ListenerConfig { proxy: ProxyMode::Required, max_per_address: 1, ..config(loopback()) };
    let (address, _lifecycle) = serve(&required);
    let mut kept = Vec::new();
    for (client, expected) in [
        ("203.0.113.9:5000", "* OK 203.0.113.9:5000\r\n"),
        ("203.0.113.9:5001", "* BYE too many of yours\r\n"),
        ("203.0.113.10:5000", "* OK 203.0.113.10:5000\r\n"),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&header(client)).await.unwrap();
        assert_eq!(read_line(&mut socket).await, expected);
        kept.push(socket);
    }
}

#[tokio::test]
async fn a_proxys_own_connection_is_its_own() {
    let required = ListenerConfig { proxy: ProxyMode::Required, ..config(loopback()) };
    let (address, _lifecycle) = serve(&required);
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&proxy_protocol::encode(None, Extensions::default())).await.unwrap();
    let own = socket.local_addr().unwrap();
    assert_eq!(read_line(&mut socket).await, format!("* OK {own}\r\n"));
}

#[tokio::test]
async fn where_the_header_is_optional_a_silent_client_is_greeted() {
    let optional = ListenerConfig { proxy: ProxyMode::Optional, ..config(loopback()) };
    let (address, _lifecycle) = serve(&optional);
    let (socket, greeting) = connect(address).await;
    assert_eq!(greeting, format!("* OK {}\r\n", socket.local_addr().unwrap()));
    // And one that speaks first is heard.
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"EHLO a\r\n").await.unwrap();
    assert_eq!(read_line(&mut socket).await, format!("* OK {}\r\n", socket.local_addr().unwrap()));
    assert_eq!(read_line(&mut socket).await, "EHLO a\r\n");
}

#[tokio::test]
async fn where_the_header_is_required_nobody_comes_in_without() {
    let required = ListenerConfig { proxy: ProxyMode::Required, ..config(loopback()) };
    let (address, _lifecycle) = serve(&required);
    for octets in [&b"EHLO a\r\n"[..], b"PROXY TCP4 nonsense\r\n", b"PROXY TC"] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(octets).await.unwrap();
        socket.shutdown().await.unwrap();
        assert_eq!(read_line(&mut socket).await, "");
    }
    let strangers = ListenerConfig { proxy_trusted: Vec::new(), ..required };
    let (address, _lifecycle) = serve(&strangers);
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&header("203.0.113.9:5000")).await.unwrap();
    assert_eq!(read_line(&mut socket).await, "");
}

#[tokio::test]
async fn a_header_from_elsewhere_is_not_believed() {
    let strangers = ListenerConfig {
        proxy: ProxyMode::Optional,
        proxy_trusted: vec!["192.0.2.0/24".parse().unwrap()],
        ..config(loopback())
    };
    let (address, _lifecycle) = serve(&strangers);
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 143\r\n").await.unwrap();
    assert_eq!(read_line(&mut socket).await, format!("* OK {}\r\n", socket.local_addr().unwrap()));
    assert!(read_line(&mut socket).await.starts_with("PROXY"));
}

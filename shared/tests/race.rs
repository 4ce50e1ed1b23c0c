//! Which address of a backend is connected to, and from where (NET-8).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt;
use shared::backend::{Endpoint, Host, Identity, SourceAddresses};
use shared::proxy_protocol::{self, Extensions};
use shared::wire::{ConnectError, Deadlines, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

fn patient() -> Deadlines {
    let long = Duration::from_mins(1);
    Deadlines { read: long, write: long, until: None }
}

fn endpoint(addresses: &[SocketAddr]) -> Endpoint {
    let host = |address: &SocketAddr| Host::new(&address.ip().to_string(), address.port());
    let mut endpoint = Endpoint::plain(Host::new("localhost", 1));
    endpoint.hosts = addresses.iter().map(host).collect();
    endpoint.connect_timeout = Duration::from_mins(1);
    endpoint
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Takes a connection and speaks first, as every server does that is connected to here.
async fn greet(listener: &TcpListener) -> TcpStream {
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"* OK\r\n").await.unwrap();
    socket
}

/// A listener whose queue is full, so that connections to it hang. They do as long as what is returned lives.
async fn dead() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        kept.push(connected.unwrap());
    }
    (listener, address, kept)
}

#[tokio::test]
async fn a_dead_address_does_not_eat_the_time_of_the_next() {
    let (dead, address, mut kept) = dead().await;
    let (good, second) = listen().await;
    let mut endpoint = endpoint(&[address, second]);
    endpoint.identity = Identity::Proxy;
    let (connected, mut won) =
        tokio::join!(Wire::connect(&endpoint, None, patient()), greet(&good));
    let connected = connected.unwrap();
    assert_eq!(connected.wire.peer(), second);
    // Said to the winner alone.
    let header = proxy_protocol::encode(None, Extensions::default());
    let mut said = vec![0; header.len()];
    won.read_exact(&mut said).await.unwrap();
    assert_eq!(said, header);
    // Who lost is gone: once the queue has room, what is in it is what the test itself has put there.
    let ours = kept.drain(..).count();
    for _ in 0..ours {
        let (mut queued, _) = dead.accept().await.unwrap();
        let mut said = Vec::new();
        queued.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, Vec::<u8>::new());
    }
    // A server that was only overtaken is not down.
    connected.trial.succeed();
    assert!(endpoint.reach.is_up(address) && endpoint.reach.is_up(second));
}

#[tokio::test]
async fn the_first_host_is_preferred_and_the_others_are_left_alone() {
    let (first, address) = listen().await;
    let (second, other) = listen().await;
    let endpoint = endpoint(&[address, other]);
    for _ in 0..3 {
        let (connected, _greeted) =
            tokio::join!(Wire::connect(&endpoint, None, patient()), greet(&first));
        let connected = connected.unwrap();
        assert_eq!(connected.wire.peer(), address);
        connected.trial.succeed();
    }
    assert!(second.accept().now_or_never().is_none());
}

#[tokio::test]
async fn who_is_slow_to_speak_gets_all_the_time_where_nobody_else_is_there() {
    let (_dead, address, _kept) = dead().await;
    let (slow, second) = listen().await;
    let mut endpoint = endpoint(&[second, address]);
    endpoint.connect_timeout = Duration::from_millis(600);
    // It has not spoken in half of that, and the other does not even take the connection.
    let connected = Wire::connect(&endpoint, None, patient()).await.unwrap();
    assert_eq!(connected.wire.peer(), second);
    let (mut passed_over, _) = slow.accept().await.unwrap();
    assert_eq!(passed_over.read(&mut [0; 8]).await.unwrap(), 0);
    slow.accept().await.unwrap();
}

#[tokio::test]
async fn when_every_address_is_down_it_is_said_at_once_and_nobody_is_connected_to() {
    let (first, one) = listen().await;
    let (second, other) = listen().await;
    let endpoint = endpoint(&[one, other]);
    for address in [one, other] {
        while let Ok(trial) = endpoint.reach.admit(address, Duration::MAX) {
            trial.fail(&"reset");
        }
    }
    let error = Wire::connect(&endpoint, None, patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Down { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains(&one.to_string()) && said.contains(&other.to_string()), "{said}");
    assert!(first.accept().now_or_never().is_none());
    assert!(second.accept().now_or_never().is_none());
    // With one of them up again only that one is used.
    let trial = loop {
        match endpoint.reach.admit(other, Duration::MAX) {
            Ok(trial) => break trial,
            Err(until) => tokio::time::sleep_until(until).await,
        }
    };
    trial.succeed();
    let busy = endpoint.reach.admit(one, Duration::MAX);
    let connected = Wire::connect(&endpoint, None, patient()).await.unwrap();
    assert_eq!(connected.wire.peer(), other);
    drop(busy);
}

#[tokio::test]
async fn a_connection_comes_from_the_address_that_is_configured() {
    let (listener, address) = listen().await;
    let mut endpoint = endpoint(&[address]);
    endpoint.source =
        SourceAddresses { v4: Some([127, 0, 0, 5].into()), v6: "2001:db8::1".parse().ok() };
    let connected = Wire::connect(&endpoint, None, patient()).await.unwrap();
    let (_socket, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 5]));
    connected.trial.succeed();
    // One that is not ours is this host's fault, and not the backend's.
    endpoint.source.v4 = Some([192, 0, 2, 1].into());
    for _ in 0..5 {
        let error = Wire::connect(&endpoint, None, patient()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Connect { .. }), "{error}");
    }
    assert!(endpoint.reach.is_up(address));
}

#[tokio::test]
async fn an_address_that_never_answers_is_down_after_three_times() {
    let (_dead, address, _kept) = dead().await;
    let mut endpoint = endpoint(&[address]);
    endpoint.connect_timeout = Duration::from_millis(200);
    for _ in 0..3 {
        let error = Wire::connect(&endpoint, None, patient()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Timeout(_)), "{error}");
    }
    let error = Wire::connect(&endpoint, None, patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Down { .. }), "{error}");
}

#[tokio::test]
async fn a_client_whose_own_time_is_over_takes_nobody_down() {
    let (_dead, address, _kept) = dead().await;
    let endpoint = endpoint(&[address]);
    for _ in 0..5 {
        let until = Some(tokio::time::Instant::now() + Duration::from_millis(50));
        let error = Wire::connect(&endpoint, None, Deadlines { until, ..patient() }).await;
        assert!(matches!(error, Err(ConnectError::Timeout(_))));
    }
    assert!(endpoint.reach.is_up(address));
    assert_eq!(endpoint.reach.worth_a_look(), None);
}

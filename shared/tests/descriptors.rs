//! A listener without file descriptors left. Alone in its process, whose limit it lowers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use shared::config::{Bind, ListenerConfig, ListenerTls, ProxyMode};
use shared::lifecycle::Lifecycle;
use shared::listener::{Accepted, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// The limit under which `count` descriptors are free: descriptors are numbers below it.
fn limit_with_free(count: usize) -> u64 {
    let taken = std::fs::read_dir("/proc/self/fd").unwrap();
    let taken: Vec<u64> = taken
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    // The directory's own descriptor is closed by now.
    let is_free = |fd: &u64| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_err();
    let free = (0..).filter(|fd| !taken.contains(fd) || is_free(fd));
    free.take(count).last().unwrap() + 1
}

#[tokio::test]
async fn out_of_descriptors_a_listener_waits_without_spinning_and_goes_on() {
    let listener = Listener::bind(&ListenerConfig {
        binds: vec![Bind::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))],
        tls: ListenerTls::None,
        proxy: ProxyMode::Off,
        proxy_trusted: Vec::new(),
        max_connections: 100,
        max_per_address: 100,
    })
    .unwrap();
    let address = listener.addresses().first().copied().unwrap();
    let lifecycle = Lifecycle::default();
    listener.serve(
        &lifecycle,
        |_| Vec::new(),
        |mut accepted: Accepted| async move {
            let _ = accepted.socket.write_all(b"+").await;
            let _ = accepted.socket.read(&mut [0]).await;
        },
    );

    // The clients' descriptors exist before there are few.
    let sockets = (0..6).map(|_| TcpSocket::new_v4().unwrap()).collect::<Vec<_>>();
    let before = getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(limit_with_free(3)), maximum: before.maximum };
    setrlimit(Resource::Nofile, few).unwrap();
    let mut clients = Vec::new();
    for socket in sockets {
        clients.push(socket.connect(address).await.unwrap());
    }

    let mut rest = clients.split_off(3);
    for client in &mut clients {
        assert_eq!(client.read_u8().await.unwrap(), b'+');
    }
    let used = cpu_time();
    let waiting = rest.first_mut().unwrap();
    let early = tokio::time::timeout(Duration::from_secs(1), waiting.read_u8()).await;
    assert!(early.is_err(), "there was a descriptor for it");
    let used = cpu_time().saturating_sub(used);
    assert!(used < Duration::from_millis(300), "{used:?} of CPU time in a second of waiting");

    for mut client in rest {
        // One goes, and the next is served.
        drop(clients.pop());
        assert_eq!(client.read_u8().await.unwrap(), b'+');
        clients.push(client);
    }
    setrlimit(Resource::Nofile, before).unwrap();
}

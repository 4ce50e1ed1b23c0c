use std::net::{Ipv4Addr, SocketAddr};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
use tokio::net::UdpSocket;

use super::*;

const HOST: &str = "mail.example.org";

type Asked = Result<(Vec<IpAddr>, Duration), ResolveError>;

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn found(last: u8) -> (Vec<IpAddr>, Duration) {
    (vec![address(last)], Duration::from_mins(1))
}

fn failed() -> ResolveError {
    ResolveError::Failed("nobody answers".into())
}

/// Lets the answer expire.
fn expire(known: &Known) {
    known.answer.lock().unwrap().as_mut().unwrap().until = Instant::now();
}

#[tokio::test]
async fn an_answer_is_kept_and_not_asked_for_again() {
    let known = Known::default();
    let said = known.addresses(HOST, async || Ok(found(1))).await.unwrap();
    assert_eq!(*said, [address(1)]);
    let kept = known.addresses(HOST, async || panic!("asked again")).await;
    assert_eq!(*kept.unwrap(), [address(1)]);
    expire(&known);
    let newer = known.addresses(HOST, async || Ok(found(2))).await.unwrap();
    assert_eq!(*newer, [address(2)]);
}

#[tokio::test]
async fn an_expired_answer_stays_in_use_while_nobody_answers() {
    let known = Known::default();
    known.addresses(HOST, async || Ok(found(1))).await.unwrap();
    for _ in 0..3 {
        expire(&known);
        let kept = known.addresses(HOST, async || Err(failed())).await.unwrap();
        assert_eq!(*kept, [address(1)]);
    }
    // A resolver that hangs holds up one connection, for a moment.
    expire(&known);
    let hanging = known.addresses(HOST, async || std::future::pending::<Asked>().await);
    tokio::pin!(hanging);
    let other = async { known.addresses(HOST, async || panic!("asked as well")).await };
    tokio::select! {
        biased;
        _ = &mut hanging => panic!("it has not hung"),
        kept = other => assert_eq!(*kept.unwrap(), [address(1)]),
    }
    assert_eq!(*hanging.await.unwrap(), [address(1)]);
}

#[tokio::test]
async fn a_name_that_does_not_exist_any_more_is_not_used() {
    let known = Known::default();
    known.addresses(HOST, async || Ok(found(1))).await.unwrap();
    expire(&known);
    let gone = known.addresses(HOST, async || Err(ResolveError::NoSuchName)).await;
    assert_eq!(gone, Err(ResolveError::NoSuchName));
}

#[tokio::test]
async fn a_failure_is_not_asked_for_by_everybody() {
    let known = Known::default();
    assert!(known.addresses(HOST, async || Err(failed())).await.is_err());
    assert!(known.addresses(HOST, async || panic!("asked again")).await.is_err());
    expire(&known);
    assert!(known.addresses(HOST, async || Ok(found(1))).await.is_ok());
}

#[tokio::test]
async fn names_and_addresses_kept_are_bounded() {
    let resolver = Resolver::default();
    for number in 0..MAX_NAMES + 10 {
        resolver.known(&format!("{number}.example.org"));
    }
    assert_eq!(resolver.names.lock().unwrap().len(), MAX_NAMES);
    let many = (0..100).map(address).collect();
    let known = Known::default();
    let said = known.addresses(HOST, async || Ok((many, Duration::MAX))).await.unwrap();
    assert_eq!(said.len(), MAX_ADDRESSES);
}

#[tokio::test]
async fn an_address_is_its_own_and_localhost_needs_no_name_server() {
    let resolver = Resolver::default();
    let ip = "2001:db8::1".parse::<IpAddr>().unwrap();
    assert_eq!(*resolver.addresses("2001:db8::1").await.unwrap(), [ip]);
    let local = resolver.addresses("localhost").await.unwrap();
    assert!(local.iter().all(IpAddr::is_loopback), "{local:?}");
    let none = resolver.addresses("no-such-host.invalid").await;
    assert_eq!(none, Err(ResolveError::NoSuchName));
}

/// The system's names without a name server.
#[tokio::test]
async fn names_in_etc_hosts_are_found() {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let resolver = Resolver::default();
    for line in hosts.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words.take_while(|word| !word.starts_with('#')) {
            let found = resolver.addresses(name).await.unwrap();
            assert!(found.contains(&address), "{line}: {found:?}");
        }
    }
}

/// A name server that knows three names.
async fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((_, peer)) = socket.recv_from(&mut packet).await {
            let name = packet[12..].iter().position(|octet| *octet == 0).unwrap();
            let question = &packet[12..12 + name + 5];
            let wants_v6 = packet[12 + name + 2] == 28;
            let (code, answer): (u8, Option<&[u8]>) = match (question[1], wants_v6) {
                (b'b', false) => (0, Some(&[192, 0, 2, 1])),
                (b'b', true) => {
                    (0, Some(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
                }
                // SERVFAIL, NXDOMAIN.
                (b's', _) => (2, None),
                _ => (3, None),
            };
            let count = u8::from(answer.is_some());
            let mut reply =
                vec![packet[0], packet[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
            reply.extend_from_slice(question);
            if let Some(octets) = answer {
                // The name again, its type, IN, 77 seconds.
                reply.extend([0xc0, 12, 0, packet[12 + name + 2], 0, 1, 0, 0, 0, 77]);
                reply.extend([0, u8::try_from(octets.len()).unwrap()]);
                reply.extend_from_slice(octets);
            }
            socket.send_to(&reply, peer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn what_a_name_server_says_is_told_apart() {
    let server = name_server().await;
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let asked = NameServerConfig::new(server.ip(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![asked]);
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider);
    set(builder.options_mut());
    let resolver = builder.build().unwrap();
    let (mut addresses, kept) = ask_of(&resolver, "both.example.org.").await.unwrap();
    addresses.sort();
    assert_eq!(addresses, [address(1), "2001:db8::1".parse().unwrap()]);
    assert!((70..=77).contains(&kept.as_secs()), "{kept:?}");
    let gone = ask_of(&resolver, "none.example.org.").await;
    assert_eq!(gone, Err(ResolveError::NoSuchName));
    let broken = ask_of(&resolver, "servfail.example.org.").await;
    assert!(matches!(broken, Err(ResolveError::Failed(_))), "{broken:?}");
}

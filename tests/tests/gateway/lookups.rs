//! Where an address lives, asked as Postfix asks (MX-17): by its own `postmap`, over every kind of socket.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mx_gateway::lookup::protocol::Protocol;
use mx_gateway::lookup::server::Server;
use shared::address::Domain;
use shared::backend::{Backend, BackendName};
use shared::config::{Bind, ListenerConfig, ListenerTls, LookupConfig, ProxyMode};
use shared::lifecycle::Lifecycle;
use shared::listener::Sockets;
use shared::ownership::RoutingDomains;
use tests::conversation::Conversation;
use tests::place::Place;
use tests::postfix::postmap;
use tests::rows::Rows;

const HOP: &str = "smtp:[192.0.2.1]:2526";

/// A look-up server for `old` and `new`, on a table that the test writes to.
struct Directory {
    rows: Rows,
    server: Server,
    lifecycle: Lifecycle,
    socketmap: SocketAddr,
    tcp_table: SocketAddr,
    socket: PathBuf,
    config: LookupConfig,
    _place: Place,
}

impl Directory {
    fn open(trusted: &str) -> Result<Self> {
        let place = Place::new()?;
        let socket = place.join("lookup");
        let name = |name| BackendName::parse(name).expect("a backend's name");
        let config = LookupConfig {
            socketmap: Some(listener()),
            socket: Some(socket.clone()),
            tcp_tables: vec![(name("old"), listener())],
            trusted_networks: vec![trusted.parse()?],
            next_hop: HOP.into(),
        };
        let rows = Rows::new(["old", "new"].map(|backend| Backend::new(name(backend))));
        let lifecycle = Lifecycle::default();
        let server = Server::bind(&config, &rows.ownership, &Sockets::default())?;
        let addresses = server.addresses();
        let bound = |table: bool| {
            let is = |protocol: &Protocol| table == matches!(protocol, Protocol::TcpTable(_));
            addresses.iter().find(|(protocol, _)| is(protocol)).map(|(_, address)| *address)
        };
        let socketmap = bound(false).context("it has a socketmap")?;
        let tcp_table = bound(true).context("it has a tcp_table")?;
        server.serve(&lifecycle);
        rows.set_owner("ann", "old");
        rows.set_owner("ned", "new");
        Ok(Self { rows, server, lifecycle, socketmap, tcp_table, socket, config, _place: place })
    }

    /// What `backend` is told by all ways that it may ask.
    async fn told(&self, backend: &str, key: &str) -> Result<Option<String>> {
        let by_tcp = postmap(&format!("socketmap:inet:{}:{backend}", self.socketmap), key).await?;
        let path = self.socket.display();
        let local = postmap(&format!("socketmap:unix:{path}:{backend}"), key).await?;
        assert_eq!(by_tcp, local, "{backend} {key}");
        if backend == "old" {
            let table = postmap(&format!("tcp:{}", self.tcp_table), key).await?;
            assert_eq!(table, local, "{backend} {key}");
        }
        Ok(local)
    }

    async fn complaint(&self, backend: &str, key: &str) -> String {
        let table = format!("socketmap:inet:{}:{backend}", self.socketmap);
        let error = postmap(&table, key).await.expect_err("nobody may know");
        format!("{error:#}")
    }
}

fn listener() -> ListenerConfig {
    ListenerConfig {
        binds: vec![Bind::Address(SocketAddr::from(([127, 0, 0, 1], 0)))],
        tls: ListenerTls::None,
        proxy: ProxyMode::Off,
        proxy_trusted: Vec::new(),
        max_connections: 100,
        max_per_address: 100,
    }
}

fn hop() -> Option<String> {
    Some(HOP.to_owned())
}

#[tokio::test]
async fn a_backend_is_told_to_hand_on_what_is_not_its_own() -> Result<()> {
    let directory = Directory::open("127.0.0.0/8")?;
    for (backend, own, other) in [
        ("old", "ann@example.org", "ned@example.org"),
        ("new", "ned@example.org", "ann@example.org"),
    ] {
        assert_eq!(directory.told(backend, own).await?, None);
        assert_eq!(directory.told(backend, other).await?, hop());
    }
    directory.rows.set_owner("ann", "new");
    assert_eq!(directory.told("old", "ann@example.org").await?, hop(), "with the flip");
    assert_eq!(directory.told("new", "ann@example.org").await?, None);
    directory.rows.hold("ann", "new");
    for backend in ["old", "new"] {
        let told = directory.told(backend, "ann@example.org").await?;
        assert_eq!(told, hop(), "held, it is nobody's own");
    }
    Ok(())
}

#[tokio::test]
async fn a_look_up_resolves_names_as_deliveries_do() -> Result<()> {
    let directory = Directory::open("127.0.0.0/8")?;
    let Directory { rows, .. } = &directory;
    rows.set_alias("lee@example.org", "ned");
    rows.set_owner("odd name", "new");
    let domain = |text| Domain::parse(text).expect("a domain");
    let domains = [(domain("moved.example.org"), domain("example.org"))];
    rows.ownership.map().set_routing_domains(RoutingDomains::new(domains)?);
    for address in [
        "NED@Example.ORG",
        "lee@example.org",
        "ned+list@example.org",
        "ned@moved.example.org",
        "odd name@example.org",
        "\"odd name\"@example.org",
    ] {
        assert_eq!(directory.told("old", address).await?, hop(), "{address}");
    }
    // What Postfix asks besides, what is nobody's, and what is not ours.
    for key in
        ["example.org", ".org", "*", "ned", "@example.org", "x@elsewhere.example", "x@example.org"]
    {
        assert_eq!(directory.told("old", key).await?, None, "{key}");
    }
    rows.set_domain(Some("new"));
    assert_eq!(directory.told("old", "x@example.org").await?, hop(), "the domain's default");
    Ok(())
}

#[tokio::test]
async fn who_does_not_know_says_wait_and_never_that_it_is_your_own() -> Result<()> {
    let directory = Directory::open("127.0.0.0/8")?;
    let said = directory.complaint("odl", "ann@example.org").await;
    assert!(said.contains("no backend has this name"), "{said}");
    directory.rows.set_owner("ann", "attic");
    assert!(directory.complaint("old", "ann@example.org").await.contains("not configured"));
    directory.rows.set_owner("ann", "old");
    directory.rows.end_lease();
    for key in ["ann@example.org", "ned@example.org", "x@elsewhere.example"] {
        let said = directory.complaint("old", key).await;
        assert!(said.contains("the table is not at hand"), "{said}");
    }
    // Postfix would ask this one again and again, so it is not asked by postmap.
    let mut asking = Conversation::connect(directory.tcp_table).await?;
    asking.send(b"get ann@example.org\n").await?;
    let expected = "400 the%20table%20is%20not%20at%20hand\n";
    assert_eq!(asking.octets(expected.len()).await?, expected.as_bytes());
    Ok(())
}

#[tokio::test]
async fn strangers_are_told_nothing() -> Result<()> {
    let directory = Directory::open("192.0.2.0/24")?;
    let mut stranger = Conversation::connect(directory.socketmap).await?;
    assert_eq!(stranger.next_line().await?, None);
    // Over the Unix socket it is the directory that decides.
    let table = format!("socketmap:unix:{}:old", directory.socket.display());
    assert_eq!(postmap(&table, "ned@example.org").await?, hop());
    // Another configuration counts from the next question on.
    let networks = vec!["127.0.0.0/8".parse()?];
    let config =
        LookupConfig { trusted_networks: networks, next_hop: "lmtp:x".into(), ..directory.config };
    directory.server.reload(&config, &directory.rows.ownership);
    let table = format!("socketmap:inet:{}:old", directory.socketmap);
    assert_eq!(postmap(&table, "ned@example.org").await?.as_deref(), Some("lmtp:x"));
    Ok(())
}

#[tokio::test]
async fn questions_may_come_in_a_row_and_nonsense_ends_them() -> Result<()> {
    let directory = Directory::open("127.0.0.0/8")?;
    let mut asking = Conversation::connect(directory.tcp_table).await?;
    asking.send(b"get ann@example.org\nget ned@exa").await?;
    asking.send(b"mple.org\nput x y\nget ned@example.org\n").await?;
    let expected = format!("500 not%20found\n200 {HOP}\n");
    let answers = asking.octets(expected.len()).await?;
    assert_eq!(String::from_utf8(answers)?, expected);
    assert!(asking.closed().await?.is_empty(), "a line that is no question");
    let mut endless = Conversation::connect(directory.socketmap).await?;
    endless.send(b"9999999999:").await?;
    assert!(endless.closed().await?.is_empty());
    directory.lifecycle.shut_down(std::time::Duration::ZERO).await;
    Ok(())
}

//! Backends that are down, slow, or in several places: only those are tried that may be there (HLT-1, NET-8,
//! NET-9).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::{join_all, try_join_all};
use login_proxy::offer::watch;
use login_proxy::protocol;
use shared::backend::{Backend, BackendName, BackendTls, Backends, Endpoint, Host, LoginProtocol};
use shared::config::{Advertised, Bind};
use shared::lifecycle::Lifecycle;
use shared::reach::Reach;
use tests::login_backend::{LoginBackend, Manners, Then, Tls, Verdict};
use tests::login_node::{LoginNode, Settings};
use tests::patience::until;
use tests::ports::reserve_one;
use tests::test_ca::TestCa;

use super::secrets::{log_everything, logged};
use super::{alone, two};

/// Short, where it must be waited for.
const SHORT: Duration = Duration::from_millis(500);
/// Logins at once.
const MANY: usize = 300;

/// What a login as this account is answered.
async fn answer(node: &LoginNode, local: &str) -> Result<String> {
    let mut client = node.connect().await?;
    client.say(&format!("a LOGIN {local}@example.org secret")).await?;
    client.line().await
}

async fn is_unavailable(node: &LoginNode, local: &str) -> Result<()> {
    let said = answer(node, local).await?;
    anyhow::ensure!(said.starts_with("a NO [UNAVAILABLE]"), "{said}");
    Ok(())
}

fn open(backend: &LoginBackend) -> usize {
    backend.connections().iter().filter(|connection| !connection.closed).count()
}

fn of(backend: &Backend) -> Endpoint {
    backend.imap.clone().expect("an endpoint")
}

fn host(address: SocketAddr) -> Host {
    Host::new(&address.ip().to_string(), address.port())
}

/// One that takes connections and never speaks; a wait of [`SHORT`] is too long for it.
async fn silent() -> Result<(LoginBackend, Backend)> {
    let manners = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.reply_timeout = SHORT);
    Ok((old, backend))
}

#[tokio::test]
async fn a_slow_old_server_does_not_slow_logins_to_new() -> Result<()> {
    let (old, slow) = silent().await?;
    let new = LoginBackend::start("new", Manners::default()).await?;
    let node = LoginNode::start([slow, new.configured()])?;
    node.set_owner("ann", "old");
    node.set_owner("bob", "new");
    let waiting = try_join_all((0..MANY).map(|_| async {
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        anyhow::Ok(client)
    }));
    let mut waiting = waiting.await?;
    // Meanwhile the others log in: each session is joined while hundreds wait for the other server.
    for _ in 0..20 {
        let mut client = node.log_in("bob").await?;
        client.say("b NOOP").await?;
        client.expect("b OK done at new").await?;
    }
    for answered in join_all(waiting.iter_mut().map(|client| client.line())).await {
        let said = answered?;
        assert!(said.starts_with("a NO [UNAVAILABLE]"), "{said}");
    }
    // Now it is known to be down: nobody waits for it but one at a time who tries it.
    old.until("all are closed", |all| all.iter().all(|c| c.closed)).await?;
    let before = old.connections().len();
    assert!(before <= MANY, "{before} connections for {MANY} logins");
    let (refused, most_open) =
        (try_join_all((0..MANY).map(|_| is_unavailable(&node, "ann"))), async {
            let mut most = 0;
            loop {
                most = most.max(open(&old));
                tokio::task::yield_now().await;
                if most > 1 {
                    return most;
                }
            }
        });
    tokio::select! {
        refused = refused => drop(refused?),
        most = most_open => panic!("{most} connections at once to an address that is down"),
    }
    let more = old.connections().len() - before;
    assert!(more < MANY / 10, "{more} connections for {MANY} logins to what is down");
    node.log_in("bob").await?;
    Ok(())
}

/// When enough logins wait for it, others fail there.
async fn goes_down<T>(
    backend: &LoginBackend,
    reach: &Arc<Reach>,
    enough: impl Future<Output = Result<T>>,
) -> Result<()> {
    enough.await?;
    while let Ok(trial) = reach.admit(backend.address, Duration::MAX) {
        trial.fail(&"reset");
    }
    Ok(())
}

#[tokio::test]
async fn logins_that_wait_for_a_backend_that_goes_down_wait_no_longer() -> Result<()> {
    let manners = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let (old, node) = alone(manners).await?;
    let reach = Arc::clone(&of(node.ownership.backends().iter().next().context("one")?).reach);
    let waiting = try_join_all((0..MANY).map(|_| is_unavailable(&node, "ann")));
    let enough = old.until("all of them wait", |all| all.len() == MANY);
    tokio::try_join!(waiting, goes_down(&old, &reach, enough))?;
    assert_eq!(old.connections().len(), MANY);
    Ok(())
}

#[tokio::test]
async fn logins_that_wait_for_a_host_that_goes_down_are_taken_by_the_next() -> Result<()> {
    let manners = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let (hangs, next) = two(manners, Manners::default()).await?;
    let hosts = vec![host(hangs.address), host(next.address)];
    let backend = hangs.configured_as(|endpoint| endpoint.hosts = hosts);
    let reach = Arc::clone(&of(&backend).reach);
    let node = LoginNode::start([backend])?;
    node.set_owner("ann", "old");
    let taken = try_join_all((0..20).map(|_| node.log_in("ann")));
    // All wait there, but for whom it was slower to connect to, by chance, than the next.
    let enough = until("logins wait for it", || {
        (hangs.connections().len() + next.logins().len() >= 20).then_some(())
    });
    tokio::try_join!(taken, goes_down(&hangs, &reach, enough))?;
    assert_eq!(next.logins().len(), 20);
    Ok(())
}

#[tokio::test]
async fn a_backend_that_was_down_is_used_again_when_it_is_back() -> Result<()> {
    let address = reserve_one()?;
    let gone = LoginBackend::start("old", Manners::default()).await?;
    let backend = gone.configured_as(|endpoint| endpoint.hosts = vec![host(address)]);
    let reach = Arc::clone(&of(&backend).reach);
    let node = LoginNode::start([backend])?;
    node.set_owner("ann", "old");
    for _ in 0..3 {
        is_unavailable(&node, "ann").await?;
    }
    assert!(!reach.is_up(address));
    let _back = LoginBackend::start_at(address, "old", Manners::default()).await?;
    loop {
        let said = answer(&node, "ann").await?;
        if said.starts_with("a OK") {
            break;
        }
        assert!(said.starts_with("a NO [UNAVAILABLE]"), "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(reach.is_up(address));
    assert_eq!(reach.worth_a_look(), None);
    Ok(())
}

#[tokio::test]
async fn each_change_is_logged_once_with_its_reason_and_what_is_next() -> Result<()> {
    log_everything();
    let address = reserve_one()?;
    let gone = LoginBackend::start("old", Manners::default()).await?;
    let name = BackendName::parse("old").map_err(anyhow::Error::msg)?;
    let reach = Arc::new(Reach::new(&name, "imap", Arc::default(), Arc::default()));
    let node = LoginNode::start([gone.configured_as(|endpoint| {
        endpoint.hosts = vec![host(address)];
        endpoint.reach = Arc::clone(&reach);
    })])?;
    node.set_owner("ann", "old");
    for _ in 0..10 {
        is_unavailable(&node, "ann").await?;
    }
    let _back = LoginBackend::start_at(address, "old", Manners::default()).await?;
    while !answer(&node, "ann").await?.starts_with("a OK") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.log_in("ann").await?;
    let lines = logged();
    let of = |words: &str| lines.lines().filter(|line| line.contains(words)).collect::<Vec<_>>();
    let (down, up) = (of("an address of the backend is down"), of("is up again"));
    assert_eq!((down.len(), up.len()), (1, 1), "{down:?} {up:?}");
    for words in [
        "WARN",
        "backend=old",
        "protocol=\"imap\"",
        &format!("address={address}"),
        "refused",
        "try_in_ms=",
    ] {
        assert!(down[0].contains(words), "{words}: {}", down[0]);
    }
    // Who is refused is told why in their own line.
    assert!(!of("login refused").is_empty());
    assert!(of("every address of").iter().all(|line| line.contains("is down; one is tried again")));
    Ok(())
}

/// `attach_timeout` ends it, and not the backend's own; but it had its time.
#[tokio::test]
async fn a_server_that_is_silent_until_the_attempt_ends_is_down() -> Result<()> {
    let manners = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.connect_timeout = SHORT);
    let reach = Arc::clone(&of(&backend).reach);
    let mut settings = Settings::default();
    settings.rules.attach_timeout = SHORT * 2;
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    try_join_all((0..3).map(|_| is_unavailable(&node, "ann"))).await?;
    assert!(!reach.is_up(old.address));
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_is_not_the_one_takes_its_address_down() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(Tls::Implicit(ca.issue("b.example.org")?.acceptor()?));
    let old = LoginBackend::start("old", Manners { tls, ..Manners::default() }).await?;
    let name = "a.example.org".to_owned().try_into().context("a name")?;
    let config = Arc::clone(ca.connector()?.config());
    let backend = old.configured_as(|e| e.tls = BackendTls::Implicit(config, name));
    let reach = Arc::clone(&of(&backend).reach);
    let node = LoginNode::start([backend])?;
    node.set_owner("ann", "old");
    for _ in 0..3 {
        is_unavailable(&node, "ann").await?;
    }
    assert!(!reach.is_up(old.address));
    Ok(())
}

#[tokio::test]
async fn a_clients_failures_are_not_its_backends() -> Result<()> {
    let (old, node) = alone(Manners { verdict: Verdict::Ask, ..Manners::default() }).await?;
    let reach = Arc::clone(&of(node.ownership.backends().iter().next().context("one")?).reach);
    let mut old = old;
    for _ in 0..4 {
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org wrong").await?;
        old.asked().await?.say("TAG NO [AUTHENTICATIONFAILED] wrong\r\n");
        client.expect("a NO").await?;
        client.say("b LOGIN ann@example.org secret").await?;
        old.asked().await?.say("TAG NO [UNAVAILABLE] this user's mailbox is broken\r\n");
        client.expect("b NO").await?;
        // Gone before it has its answer.
        client.say("c LOGIN ann@example.org secret").await?;
        let asked = old.asked().await?;
        drop(client);
        old.until("the attempt is closed", |all| all.iter().all(|c| c.closed)).await?;
        assert!(!asked.say("TAG OK too late\r\n"));
    }
    assert!(reach.is_up(old.address));
    assert_eq!(reach.worth_a_look(), None);
    Ok(())
}

#[tokio::test]
async fn clients_that_leave_before_the_greeting_do_not_take_a_server_down() -> Result<()> {
    let manners = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let (old, node) = alone(manners).await?;
    let reach = Arc::clone(&of(node.ownership.backends().iter().next().context("one")?).reach);
    for number in 1..=4 {
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        old.until("it is connected to", |all| all.len() == number).await?;
        drop(client);
        old.until("the attempt is closed", |all| all.iter().all(|c| c.closed)).await?;
    }
    assert_eq!(reach.worth_a_look(), None);
    Ok(())
}

#[tokio::test]
async fn the_next_host_takes_what_the_preferred_one_does_not() -> Result<()> {
    let (first, second) = two(Manners::default(), Manners::default()).await?;
    let nowhere = reserve_one()?;
    for (hosts, expected) in [
        (vec![host(first.address), host(second.address)], "old"),
        (vec![host(second.address), host(first.address)], "new"),
        (vec![host(nowhere), host(second.address), host(first.address)], "new"),
        (vec![Host::new("no-such-host.invalid", 143), host(first.address)], "old"),
    ] {
        let node = LoginNode::start([first.configured_as(|endpoint| endpoint.hosts = hosts)])?;
        node.set_owner("ann", "old");
        let mut client = node.log_in("ann").await?;
        client.say("b NOOP").await?;
        client.expect(&format!("b OK done at {expected}")).await?;
    }
    // Whoever was not needed was not connected to.
    assert_eq!((first.connections().len(), second.connections().len()), (2, 2));
    Ok(())
}

#[tokio::test]
async fn a_host_that_takes_the_connection_and_is_silent_or_hangs_up_is_passed_over() -> Result<()> {
    for then in [Then::Hang, Then::HangUp] {
        let manners = Manners { greeting: "", then, ..Manners::default() };
        let (silent, next) = two(manners, Manners::default()).await?;
        let hosts = vec![host(silent.address), host(next.address)];
        let backend = silent.configured_as(|endpoint| {
            endpoint.hosts = hosts;
            endpoint.connect_timeout = 2 * SHORT;
        });
        let reach = Arc::clone(&of(&backend).reach);
        let node = LoginNode::start([backend])?;
        node.set_owner("ann", "old");
        // Nobody is refused, neither before it is down nor when it is tried again.
        for _ in 0..5 {
            node.log_in("ann").await?;
        }
        assert!(!reach.is_up(silent.address));
        assert_eq!(next.logins().len(), 5);
        assert!(silent.logins().is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn each_host_proves_itself_by_its_own_name() -> Result<()> {
    let ca = TestCa::new()?;
    let name = |name: &str| name.to_owned().try_into().context("a name");
    let tls = |host: &str| anyhow::Ok(Some(Tls::StartTls(ca.issue(host)?.acceptor()?)));
    let manners = Manners {
        capabilities: "IMAP4rev1 SASL-IR STARTTLS AUTH=PLAIN",
        tls: tls("b.example.org")?,
        ..Manners::default()
    };
    let b = LoginBackend::start("old", manners).await?;
    let nowhere = reserve_one()?;
    let config = Arc::clone(ca.connector()?.config());
    for (of_b, is_taken) in [("b.example.org", true), ("a.example.org", false)] {
        let (a_name, b_name) = (name("a.example.org")?, name(of_b)?);
        let node = LoginNode::start([b.configured_as(|endpoint| {
            endpoint.tls = BackendTls::StartTls(Arc::clone(&config), a_name);
            let place = Host { server_name: Some(b_name), ..host(b.address) };
            endpoint.hosts = vec![host(nowhere), place];
        })])?;
        node.set_owner("ann", "old");
        assert_eq!(answer(&node, "ann").await?.starts_with("a OK"), is_taken, "{of_b}");
    }
    Ok(())
}

#[tokio::test]
async fn probes_look_at_every_address_and_bring_back_what_was_down() -> Result<()> {
    let good = LoginBackend::start("old", Manners::default()).await?;
    let away = reserve_one()?;
    let hosts = vec![host(away), host(good.address)];
    let backend = good.configured_as(|endpoint| endpoint.hosts = hosts);
    let reach = Arc::clone(&of(&backend).reach);
    let lifecycle = Lifecycle::default();
    let backends: Backends = [backend].into_iter().collect();
    let protocol = protocol::of(LoginProtocol::Imap);
    let _offers = watch(&lifecycle, &backends, &Advertised::default(), [protocol]);
    until("the one that is away is down", || (!reach.is_up(away)).then_some(())).await?;
    assert!(reach.is_up(good.address));
    let _back = LoginBackend::start_at(away, "old", Manners::default()).await?;
    until("it is up again, without a login", || reach.is_up(away).then_some(())).await?;
    lifecycle.stop().cancel();
    Ok(())
}

#[tokio::test]
async fn probes_find_a_server_that_takes_connections_and_never_speaks() -> Result<()> {
    let (old, backend) = silent().await?;
    let reach = Arc::clone(&of(&backend).reach);
    let lifecycle = Lifecycle::default();
    let backends: Backends = [backend].into_iter().collect();
    let protocol = protocol::of(LoginProtocol::Imap);
    let _offers = watch(&lifecycle, &backends, &Advertised::default(), [protocol]);
    until("it is down", || (!reach.is_up(old.address)).then_some(())).await?;
    lifecycle.stop().cancel();
    Ok(())
}

#[tokio::test]
async fn a_backend_that_is_our_own_listener_is_refused_and_never_connected_to() -> Result<()> {
    let ours = LoginBackend::start("old", Manners::default()).await?;
    let port = ours.address.port();
    for own in [Bind::Address(ours.address), Bind::Port(port)] {
        let name = BackendName::parse("old").map_err(anyhow::Error::msg)?;
        let reach = Arc::new(Reach::new(&name, "imap", Arc::default(), [own].into()));
        let backend = ours.configured_as(|endpoint| endpoint.reach = reach);
        let node = LoginNode::start([backend])?;
        node.set_owner("ann", "old");
        let said = answer(&node, "ann").await?;
        assert!(said.starts_with("a NO [SERVERBUG]"), "{own}: {said}");
    }
    assert_eq!(ours.connections().len(), 0);
    Ok(())
}

/// A loop through two proxies is ended by the hops that each login has left, in every protocol.
#[tokio::test]
async fn a_login_by_xclient_that_goes_round_in_circles_ends() -> Result<()> {
    for (ttl, is_asked) in [("2", true), ("1", false)] {
        let old = LoginBackend::start("old", Manners::of(LoginProtocol::Pop3)).await?;
        let mut settings = Settings { protocol: LoginProtocol::Pop3, ..Settings::default() };
        settings.rules.trusted_networks = vec!["127.0.0.0/8".parse()?];
        let node = LoginNode::start_with([old.configured()], settings)?;
        node.set_owner("ann", "old");
        let mut client = node.connect().await?;
        client.say(&format!("XCLIENT ADDR=198.51.100.7 TTL={ttl}")).await?;
        client.expect("+OK").await?;
        client.say("USER ann@example.org").await?;
        client.expect("+OK").await?;
        client.say("PASS secret").await?;
        let said = client.line().await?;
        assert_eq!(said.starts_with("+OK"), is_asked, "TTL={ttl}: {said}");
        assert_eq!(!old.connections().is_empty(), is_asked, "TTL={ttl}");
    }
    Ok(())
}

/// Both, so that a name with two families is one.
#[tokio::test]
async fn a_backend_on_either_family_of_localhost_is_found() -> Result<()> {
    for ip in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(ip.parse::<IpAddr>()?, reserve_one()?.port());
        let Ok(old) = LoginBackend::start_at(address, "old", Manners::default()).await else {
            eprintln!("no IPv6 here");
            continue;
        };
        let by_name = vec![Host::new("localhost", address.port())];
        let node = LoginNode::start([old.configured_as(|endpoint| endpoint.hosts = by_name)])?;
        node.set_owner("ann", "old");
        node.log_in("ann").await?;
    }
    Ok(())
}

//! A changed configuration is taken in without a restart (CFG-3).

use rustix::process::Signal;
use shared::backend::LoginProtocol;
use tests::conversation::Conversation;
use tests::dns_zone::DnsZone;
use tests::login_backend::{LoginBackend, Manners};
use tests::node::login;
use tests::patience::until;
use tests::smtp::{self, Smtp};
use tests::table::Engine;
use tests::test_ca::{Identity, TestCa};

use crate::{ANN, BOB, Host, log_in};

tests::in_both! {
    an_account_is_flipped_to_a_backend_that_was_added_by_a_reload,
}

async fn an_account_is_flipped_to_a_backend_that_was_added_by_a_reload(engine: Engine) {
    let host = Host::new(engine).await;
    let proxy = host.start("login-proxy").await;
    let mut session = host.session(BOB).await;
    let third = LoginBackend::start("third", Manners::default()).await.unwrap();
    let refused = format!("{:#}", host.move_to_third().unwrap_err());
    assert!(refused.contains("third") && refused.contains("node1"), "{refused}");

    host.configure(&(host.configuration() + &login("third", "imap", third.address)));
    proxy.signal(Signal::HUP);
    proxy.said("the configuration was reloaded", 1).await;
    // The table is told with the next lease.
    until("the table to know", || host.move_to_third().ok()).await.unwrap();
    let mut moved = host.session(ANN).await;
    moved.say("n NOOP").await.unwrap();
    moved.expect("n OK done at third").await.unwrap();
    session.say("n NOOP").await.unwrap();
    session.expect("n OK done at old").await.unwrap();
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_every_problem_is_said() {
    let host = Host::new(Engine::Sqlite).await;
    let proxy = host.start("login-proxy").await;
    let wrong = host
        .configuration()
        .replace("failure_delay = \"0s\"", "hostnam = \"x\"\nfailure_delay = \"soon\"")
        .replace("imap.example.org", "changed.example.org");
    host.configure(&wrong);
    proxy.signal(Signal::HUP);
    proxy.said("nothing has changed", 1).await;
    let log = proxy.child.log();
    assert!(log.contains("login.hostnam") && log.contains("login.failure_delay"), "{log}");
    let mut client = Conversation::connect(host.logins[2]).await.unwrap();
    client.expect("220 imap.example.org").await.unwrap();
    assert_eq!(proxy.count("the configuration was reloaded"), 0);
}

#[tokio::test]
async fn connections_from_a_reload_on_go_by_it_and_those_before_as_they_began() {
    let host = Host::new(Engine::Sqlite).await;
    let proxy = host.start("login-proxy").await;
    let mut before = Conversation::connect(host.logins[2]).await.unwrap();
    before.expect("220 imap.example.org").await.unwrap();
    let mut session = host.session(ANN).await;
    let changed = host
        .configuration()
        .replace("imap.example.org", "changed.example.org")
        .replace("tls = \"none\" }\n", "tls = \"none\", max_connections = 3 }\n")
        .replace(
            "[log]\n",
            "[login.advertise]\nimap = [\"IMAP4rev1\", \"X-NEW\"]\n[log]\nlevel = \"debug\"\n",
        );
    host.configure(&changed);
    proxy.signal(Signal::HUP);
    proxy.said("the configuration was reloaded", 1).await;

    let mut after = Conversation::connect(host.logins[2]).await.unwrap();
    after.expect("220 changed.example.org").await.unwrap();
    before.say("EHLO client.example.com").await.unwrap();
    before.expect("250-imap.example.org").await.unwrap();
    session.say("n NOOP").await.unwrap();
    session.expect("n OK").await.unwrap();
    let mut second = Conversation::connect(host.logins[0]).await.unwrap();
    assert!(second.expect("* OK").await.unwrap().contains("X-NEW"));
    let _third = host.session(BOB).await;
    let mut one_too_many = Conversation::connect(host.logins[0]).await.unwrap();
    one_too_many.expect("* BYE").await.unwrap();
    drop(after);
    proxy.said("\"level\":\"DEBUG\"", 1).await;
}

#[tokio::test]
async fn what_needs_a_restart_is_named_key_by_key() {
    let host = Host::new(Engine::Sqlite).await;
    let mut proxy = host.start("login-proxy").await;
    let elsewhere = tests::ports::reserve_one().unwrap();
    let changed = host
        .configuration()
        .replace(&host.logins[0].to_string(), &elsewhere.to_string())
        .replace("name = \"node1\"", "name = \"renamed\"")
        .replace("imap.example.org", "changed.example.org");
    host.configure(&changed);
    proxy.signal(Signal::HUP);
    proxy.said("the configuration was reloaded", 1).await;
    proxy.said("\"key\":\"login.imap.listen\"", 1).await;
    proxy.said("\"key\":\"node.name\"", 1).await;
    assert_eq!(proxy.count("\"key\":"), 2);
    // All the rest counts, and the old address still does.
    let mut client = Conversation::connect(host.logins[2]).await.unwrap();
    client.expect("220 changed.example.org").await.unwrap();
    drop(client);
    drop(host.session(ANN).await);
    // What was said to help helps.
    proxy.upgrade().await;
    let mut client = Conversation::connect(elsewhere).await.unwrap();
    client.expect("* OK").await.unwrap();
    until("the node to be renamed", || (host.nodes("login-proxy") == "renamed.2").then_some(()))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_account_whose_owner_left_the_configuration_is_refused_and_its_session_stays() {
    let host = Host::new(Engine::Sqlite).await;
    host.table.flip(ANN, "new").unwrap();
    let proxy = host.start("login-proxy").await;
    let mut session = host.session(ANN).await;
    let without: String = host
        .configuration()
        .split_inclusive('\n')
        .collect::<Vec<_>>()
        .join("")
        .replace("[backends.new.", "[backends.other.");
    host.configure(&without);
    proxy.signal(Signal::HUP);
    proxy.said("the configuration was reloaded", 1).await;
    // Before anybody is refused.
    proxy.said("live at a backend that is not configured", 1).await;
    let mut client = Conversation::connect(host.logins[0]).await.unwrap();
    client.expect("* OK").await.unwrap();
    client.say(&format!("a LOGIN {ANN} secret")).await.unwrap();
    client.expect("a NO [UNAVAILABLE]").await.unwrap();
    proxy.said("unknown backend", 1).await;
    session.say("n NOOP").await.unwrap();
    session.expect("n OK done at new").await.unwrap();
}

#[tokio::test]
async fn changed_certificates_are_shown_and_sessions_under_the_old_ones_live_on() {
    let host = Host::new(Engine::Sqlite).await;
    let ca = TestCa::new().unwrap();
    let tls = ca.connector().unwrap();
    let [old, new] = ["old.example.org", "new.example.org"].map(|name| ca.issue(name).unwrap());
    let address = tests::ports::reserve_one().unwrap();
    let (cert, key) = (host.place.join("cert.pem"), host.place.join("key.pem"));
    let show = |identity: &Identity| {
        std::fs::copy(&identity.cert_file, &cert).unwrap();
        std::fs::copy(&identity.key_file, &key).unwrap();
    };
    show(&old);
    let certificates = format!(
        "[tls]\ncertificates = [{{ cert_file = {cert:?}, key_file = {key:?} }}]\n\
         [login]\nimaps = {{ listen = [\"{address}\"] }}\n"
    );
    host.configure(&host.configuration().replace("[login]\n", &certificates));
    let proxy = host.start("login-proxy").await;
    let mut session = Conversation::connect_tls(address, &tls, "old.example.org").await.unwrap();
    log_in(&mut session, LoginProtocol::Imap, ANN).await.unwrap();

    // What cannot be used changes nothing.
    std::fs::write(&cert, "nothing").unwrap();
    proxy.signal(Signal::HUP);
    proxy.said("nothing has changed", 1).await;
    drop(Conversation::connect_tls(address, &tls, "old.example.org").await.unwrap());

    show(&new);
    proxy.signal(Signal::HUP);
    proxy.said("the configuration was reloaded", 1).await;
    drop(Conversation::connect_tls(address, &tls, "new.example.org").await.unwrap());
    assert!(Conversation::connect_tls(address, &tls, "old.example.org").await.is_err());
    session.say("n NOOP").await.unwrap();
    session.expect("n OK").await.unwrap();
}

#[tokio::test]
async fn the_gateway_takes_its_rules_and_owners_in_and_a_session_keeps_what_it_began_with() {
    let host = Host::new(Engine::Sqlite).await;
    let gateway = host.start("mx-gateway").await;
    let message = smtp::message("before");
    assert_eq!(smtp::send(host.smtp, "", &[ANN], &message).await.unwrap().code, 250);
    let mut before = Smtp::connect(host.smtp).await.unwrap();
    let elsewhere = tests::sink::Sink::start("old", tests::sink::Manners::lmtp()).await.unwrap();
    let (old, new) = (host.mail.address.port(), elsewhere.address.port());
    let changed = host
        .configuration()
        .replace(&format!("port = {old}"), &format!("port = {new}"))
        .replace("mx.example.org", "changed.example.org");
    host.configure(&changed);
    gateway.signal(Signal::HUP);
    gateway.said("the configuration was reloaded", 1).await;
    let reply = before.command("EHLO client.example.com").await.unwrap();
    assert!(format!("{reply:?}").contains("mx.example.org"), "{reply:?}");
    // A connection that was kept leads where the owner was.
    let message = smtp::message("after");
    assert_eq!(smtp::send(host.smtp, "", &[ANN], &message).await.unwrap().code, 250);
    assert_eq!((host.mail.messages().len(), elsewhere.messages().len()), (1, 1));
}

#[tokio::test]
async fn senders_are_judged_by_what_a_reload_says_and_as_before_if_it_cannot_be_done() {
    let host = Host::new(Engine::Sqlite).await;
    let zone = DnsZone::start().await.unwrap();
    zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    let with = |more: &str| {
        let asked = format!("authentication = {{ dns = [\"{}\"]{more} }}", zone.address);
        host.configuration().replace("authentication.enabled = false", &asked)
    };
    host.configure(&with(""));
    let gateway = host.start("mx-gateway").await;
    let send = async || {
        let message = smtp::message("hello");
        smtp::send(host.smtp, "bob@example.net", &[ANN], &message).await.unwrap().code
    };
    assert_eq!(send().await, 250);
    let got = host.mail.messages().pop().unwrap().text();
    assert!(got.contains("\r\nAuthentication-Results: mx.example.org;\r\n"), "{got}");
    assert!(got.contains("dmarc=fail header.from=example.com"), "{got}");

    host.configure(&with(", enforce = { \"*\" = \"reject\" }"));
    gateway.signal(Signal::HUP);
    gateway.said("the configuration was reloaded", 1).await;
    assert_eq!(send().await, 550);

    let seal = "{ domain = \"example.org\", selector = \"s\", key_file = \"/nowhere\" }";
    host.configure(&with(&format!(", arc_seal = {seal}")));
    gateway.signal(Signal::HUP);
    gateway.said("senders are looked at as they were before", 1).await;
    gateway.said("the configuration was reloaded", 2).await;
    assert_eq!(send().await, 550);
    assert_eq!(host.mail.messages().len(), 1);
}

//! What is advertised before login is what all backends have (LOG-10, HLT-3).

use anyhow::Result;
use login_proxy::offer::{Offer, watch};
use login_proxy::protocol;
use shared::backend::{Backend, Backends, Identity, LoginProtocol};
use shared::config::Advertised;
use shared::lifecycle::Lifecycle;
use shared::sasl::{Mechanism, Mechanisms};
use tests::login_backend::{LoginBackend, Manners, Then};

use super::two;

/// What is offered once the backends have answered, or have had their time.
async fn offered(protocol: LoginProtocol, backends: Vec<Backend>, said: &Advertised) -> Offer {
    let (protocol, backends) = (protocol::of(protocol), backends.into_iter().collect::<Backends>());
    let lifecycle = Lifecycle::default();
    let offers = watch(&lifecycle, &backends, said, [protocol, protocol]);
    let current = offers.of(protocol);
    offers.known().await;
    lifecycle.stop().cancel();
    (*current.load_full()).clone()
}

fn words(offer: &Offer) -> String {
    offer.capabilities.join(" | ")
}

#[tokio::test]
async fn what_all_backends_have_is_advertised() -> Result<()> {
    for (protocol, old, new, expected) in [
        (
            LoginProtocol::Imap,
            "IMAP4rev1 ID IDLE MOVE LITERAL+ AUTH=PLAIN AUTH=XOAUTH2",
            "IMAP4rev1 IDLE ENABLE AUTH=PLAIN UNAUTHENTICATE",
            "IMAP4rev1 | SASL-IR | LITERAL- | ID | IDLE",
        ),
        (
            LoginProtocol::Submission,
            "PIPELINING, SIZE 1000, 8BITMIME, DSN, AUTH PLAIN LOGIN",
            "SIZE 2000, 8BITMIME, CHUNKING, AUTH LOGIN",
            "SIZE 1000 | 8BITMIME",
        ),
    ] {
        let speaking = |capabilities| Manners { capabilities, ..Manners::of(protocol) };
        let (old, new) = two(speaking(old), speaking(new)).await?;
        let backends = vec![old.configured(), new.configured()];
        let offer = offered(protocol, backends, &Advertised::default()).await;
        let shown = words(&offer);
        for word in expected.split(" | ") {
            assert!(shown.split(" | ").any(|other| other == word), "{protocol}: {word}: {shown}");
        }
        for word in ["MOVE", "XOAUTH2", "DSN", "CHUNKING", "UNAUTHENTICATE", "PIPELINING"] {
            assert!(!shown.contains(word), "{protocol}: {word}: {shown}");
        }
        assert_eq!(offer.mechanisms, [Mechanism::Plain].into_iter().collect());
        // Each was asked once, though two listeners share the protocol.
        assert_eq!((old.connections().len(), new.connections().len()), (1, 1));
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_says_nothing_does_not_count_and_holds_up_nobody() -> Result<()> {
    let silent = Manners { greeting: "", then: Then::Hang, ..Manners::default() };
    let (old, new) = two(Manners::default(), silent).await?;
    let backends = vec![old.configured(), new.configured()];
    let offer = offered(LoginProtocol::Imap, backends, &Advertised::default()).await;
    assert_eq!(words(&offer), "IMAP4rev1 | SASL-IR | LITERAL- | ID");
    Ok(())
}

#[tokio::test]
async fn while_nobody_has_said_anything_little_is_advertised() -> Result<()> {
    for protocol in LoginProtocol::ALL {
        let offer = offered(protocol, Vec::new(), &Advertised::default()).await;
        assert_eq!(offer, (protocol::of(protocol).modest)());
        assert!(offer.mechanisms.contains(Mechanism::Plain));
    }
    Ok(())
}

#[tokio::test]
async fn what_is_configured_wins() -> Result<()> {
    let old = LoginBackend::start("old", Manners::default()).await?;
    let said = Advertised {
        mechanisms: Some(Mechanisms::of_words(["LOGIN", "SCRAM-SHA-256"])),
        imap: Some(vec!["IMAP4rev1".into(), "ENABLE".into()]),
        ..Advertised::default()
    };
    let offer = offered(LoginProtocol::Imap, vec![old.configured()], &said).await;
    assert_eq!(words(&offer), "IMAP4rev1 | ENABLE");
    assert_eq!(offer.mechanisms, Mechanisms::of_words(["LOGIN", "SCRAM-SHA-256"]));
    Ok(())
}

#[tokio::test]
async fn a_probe_is_a_connection_of_our_own() -> Result<()> {
    let manners = Manners { proxied: true, ..Manners::default() };
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = Identity::Proxy);
    // The fake wants an address in the header, and a probe names nobody.
    offered(LoginProtocol::Imap, vec![backend], &Advertised::default()).await;
    let seen = old.until("the probe is over", |all| all.first().is_some_and(|c| c.closed)).await?;
    assert_eq!(seen[0].proxied_for, None);
    Ok(())
}

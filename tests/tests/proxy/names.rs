//! From a login to its account: master users, tokens, contradictions (NAM-3, NAM-4, NAM-8).

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use login_proxy::offer::Offer;
use shared::address::Domain;
use shared::backend::Backend;
use shared::config::NamesConfig;
use shared::ownership::RoutingDomains;
use shared::sasl::{Mechanism, Mechanisms};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};
use tests::patience::PATIENCE;

use super::two;

fn jwt(payload: &str) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
}

fn node(backends: impl IntoIterator<Item = Backend>) -> Result<LoginNode> {
    let offer = Offer {
        capabilities: ["IMAP4rev1".into(), "SASL-IR".into()].into(),
        mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)),
    };
    let names = NamesConfig {
        master_separators: "*%".into(),
        token_claims: ["email".into(), "upn".into()].into(),
        ..NamesConfig::default()
    };
    let mut settings = Settings { offer: Some(offer), names, ..Settings::default() };
    settings.rules.hold_wait = PATIENCE;
    LoginNode::start_with(backends, settings)
}

async fn stage() -> Result<(LoginBackend, LoginBackend, LoginNode)> {
    let manners = Manners {
        capabilities: "IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER",
        verdict: Verdict::Say("TAG OK in\r\n"),
        ..Manners::default()
    };
    let (old, new) = two(manners.clone(), manners).await?;
    let node = node([old.configured(), new.configured()])?;
    for (name, owner) in [("ann", "old"), ("bob", "new"), ("cat", "old")] {
        node.set_owner(name, owner);
    }
    Ok((old, new, node))
}

async fn bearer(node: &LoginNode, user: &str, token: &str) -> Result<Conversation> {
    let response = STANDARD.encode(format!("user={user}\x01auth=Bearer {token}\x01\x01"));
    let mut client = node.connect().await?;
    client.say(&format!("a AUTHENTICATE XOAUTH2 {response}")).await?;
    Ok(client)
}

#[tokio::test]
async fn the_mailbox_of_a_master_user_decides_and_the_login_goes_on_unchanged() -> Result<()> {
    let (old, new, node) = stage().await?;
    for login in ["bob@example.org*admin", "BOB@example.org%admin@example.org"] {
        let mut client = node.connect().await?;
        client.say(&format!("a LOGIN \"{login}\" secret")).await?;
        client.expect("a OK").await?;
    }
    assert!(old.connections().is_empty());
    assert_eq!(new.logins(), ["bob@example.org*admin", "BOB@example.org%admin@example.org"]);
    Ok(())
}

#[tokio::test]
async fn a_token_without_a_user_name_goes_where_its_own_account_lives() -> Result<()> {
    let (old, new, node) = stage().await?;
    let stalwart = format!("sw1.c2VhbGVk.{}", URL_SAFE_NO_PAD.encode("bob@example.org"));
    for token in
        [jwt(r#"{"email":"bob@example.org"}"#), jwt(r#"{"upn":"Bob@example.org"}"#), stalwart]
    {
        let mut client = bearer(&node, "", &token).await?;
        client.expect("a OK").await?;
    }
    assert_eq!((old.connections().len(), new.connections().len()), (0, 3));
    Ok(())
}

#[tokio::test]
async fn a_token_that_names_nobody_is_no_wrong_password() -> Result<()> {
    let (old, new, node) = stage().await?;
    let mut client = bearer(&node, "", "opaque").await?;
    client.expect("a NO [SERVERBUG]").await?;
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_user_and_a_token_of_two_owners_are_refused() -> Result<()> {
    let (old, new, node) = stage().await?;
    let mut client =
        bearer(&node, "ann@example.org", &jwt(r#"{"email":"bob@example.org"}"#)).await?;
    client.expect("a NO [AUTHENTICATIONFAILED]").await?;
    assert!(old.connections().is_empty() && new.connections().is_empty());
    // Somebody whom we do not know says nothing.
    let mut client = bearer(&node, "ann@example.org", &jwt(r#"{"email":"x@example.net"}"#)).await?;
    client.expect("a OK").await?;
    Ok(())
}

#[tokio::test]
async fn a_session_of_two_accounts_at_one_owner_ends_when_either_moves() -> Result<()> {
    for moved in ["ann", "cat"] {
        let (old, _new, node) = stage().await?;
        let token = jwt(r#"{"email":"cat@example.org"}"#);
        let mut client = bearer(&node, "ann@example.org", &token).await?;
        client.expect("a OK").await?;
        node.set_owner(moved, "new");
        assert!(client.closed().await?.is_empty(), "{moved}");
        old.until("the session is over", |all| all.iter().all(|c| c.closed)).await?;
        node.applied().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_login_waits_for_the_account_that_its_token_names() -> Result<()> {
    let (old, new, node) = stage().await?;
    node.hold("cat", "old");
    let mut client =
        bearer(&node, "ann@example.org", &jwt(r#"{"email":"cat@example.org"}"#)).await?;
    node.until_held(1).await?;
    let registry = node.ownership.registry();
    assert_eq!(registry.counts(), (1, 0));
    // A change of the other account waits for nobody.
    node.set_owner("ann", "new");
    assert!(registry.busy().is_empty());
    node.set_owner("cat", "new");
    client.expect("a OK").await?;
    assert_eq!((old.connections().len(), new.connections().len()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_session_ends_when_its_tokens_name_comes_to_mean_another_account() -> Result<()> {
    let (old, _new, node) = stage().await?;
    node.set_alias("annie@example.org", "ann");
    let token = jwt(r#"{"email":"annie@example.org"}"#);
    let mut client = bearer(&node, "ann@example.org", &token).await?;
    client.expect("a OK").await?;
    node.set_alias("annie@example.org", "bob");
    assert!(client.closed().await?.is_empty());
    old.until("the session is over", |all| all.iter().all(|c| c.closed)).await?;
    node.applied().await?;
    Ok(())
}

#[tokio::test]
async fn a_login_by_a_routing_domain_goes_to_the_accounts_owner_unchanged() -> Result<()> {
    let (old, new, node) = stage().await?;
    let pair = (Domain::parse("moved.example.org")?, Domain::parse("example.org")?);
    node.ownership.map().set_routing_domains(RoutingDomains::new([pair])?);
    let mut client = node.connect().await?;
    client.say("a LOGIN Bob@moved.example.org secret").await?;
    client.expect("a OK").await?;
    assert!(old.connections().is_empty());
    assert_eq!(new.logins(), ["Bob@moved.example.org"]);
    // It is the account's session: a flip ends it.
    node.set_owner("bob", "old");
    assert!(client.closed().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_ambiguous_name_is_no_wrong_password() -> Result<()> {
    let (old, new, node) = stage().await?;
    let pair = (Domain::parse("moved.example.org")?, Domain::parse("example.org")?);
    node.ownership.map().set_routing_domains(RoutingDomains::new([pair])?);
    node.set_alias("bob@moved.example.org", "ann");
    let mut client = node.connect().await?;
    client.say("a LOGIN bob@moved.example.org secret").await?;
    client.expect("a NO [UNAVAILABLE]").await?;
    assert!(old.connections().is_empty() && new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn names_without_a_row_are_noted_and_passwords_are_not() -> Result<()> {
    let (_old, _new, node) = stage().await?;
    node.ownership.map().set_default_domain(Some(Domain::parse("example.org")?));
    for user in ["eve", "hunter2!", "9LiveCats", "zoe@elsewhere.example"] {
        let mut client = node.connect().await?;
        client.say(&format!("a LOGIN {user} secret")).await?;
        client.expect("a NO [AUTHENTICATIONFAILED]").await?;
    }
    node.set_domain(Some("old"));
    let mut client = node.connect().await?;
    client.say("a LOGIN dan+x@example.org secret").await?;
    client.expect("a OK").await?;
    let mut noted = node.ownership.unknown().take();
    noted.sort_by(|a, b| a.name.cmp(&b.name));
    let noted: Vec<_> = noted.iter().map(|s| (&*s.name, s.outcome.as_str())).collect();
    assert_eq!(
        noted,
        [
            ("dan@example.org", "default"),
            ("eve@example.org", "refused"),
            ("zoe@elsewhere.example", "refused"),
        ]
    );
    Ok(())
}

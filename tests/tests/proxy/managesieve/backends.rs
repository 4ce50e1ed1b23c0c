//! What a backend is told in which form, and what becomes of one that does not behave (LOG-5, LOG-11, FWD-2).

use std::net::SocketAddr;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use login_proxy::offer::Offer;
use login_proxy::protocol;
use shared::backend::{Identity, LoginProtocol};
use shared::sasl::{Mechanism, Mechanisms};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, PASSWORD, Then, Verdict};
use tests::login_node::{LoginNode, Settings};
use tokio::time::Instant;

use super::{BROKEN, LATER, SHORT, SYNC, WRONG, alone, asking, at, connect, good, is_at, log_in};
use super::{plain, plain_as, saying, settings};

const XCLIENT: &str = "\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\"XCLIENT\"";

fn listing(capabilities: &'static str) -> Manners {
    Manners { capabilities, ..good() }
}

async fn refused(node: &LoginNode) -> Result<String> {
    let mut client = connect(node).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    let said = client.line().await?;
    client.say("NOOP \"still here\"").await?;
    client.expect("OK (TAG \"still here\")").await?;
    Ok(said)
}

/// What a client hears of a backend with such manners, and that the connection there is closed.
async fn heard_of(manners: Manners) -> Result<String> {
    let (old, node) = alone(manners).await?;
    let said = refused(&node).await?;
    let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
    assert_eq!(connections.len(), 1, "one attempt, one connection");
    assert_eq!(node.ownership.registry().counts(), (0, 0));
    Ok(said)
}

#[tokio::test]
async fn each_refusal_of_a_backend_is_passed_on_by_its_cause() -> Result<()> {
    let many = "NO (TRYLATER) \"Too many connections of this user.\"";
    for (verdict, expected) in [
        ("NO\r\n", WRONG),
        ("NO \"wrong\"\r\n", WRONG),
        ("NO {9}\r\nOK \"in\"\r\n\r\n", WRONG),
        ("NO (TRYLATER) \"later\"\r\n", LATER),
        ("NO (TRYLATER/NORETRY) \"later\"\r\n", LATER),
        ("NO (TRYLATER) \"Maximum number of connections from user+IP exceeded\"\r\n", many),
        ("BYE (TRYLATER) \"going\"\r\n", LATER),
        ("BYE\r\n", LATER),
        ("BYE (REFERRAL \"sieve://ann@elsewhere.example.org\") \"there\"\r\n", BROKEN),
        ("NO (REFERRAL \"sieve://elsewhere.example.org\")\r\n", BROKEN),
        ("NO (AUTH-TOO-WEAK) \"no\"\r\n", BROKEN),
        ("NO (ENCRYPT-NEEDED) \"no\"\r\n", BROKEN),
        ("\"\"\r\n", BROKEN),
        ("\"SIEVE\" \"fileinto\"\r\n", BROKEN),
        ("+OK in\r\n", BROKEN),
        ("\r\n", BROKEN),
        ("OK (SASL \"!\")\r\n", BROKEN),
        ("OK \"in\r\n", BROKEN),
    ] {
        assert_eq!(heard_of(saying(verdict)).await?, expected, "{verdict:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_greeting_that_is_none_is_judged_by_its_code() -> Result<()> {
    for (greeting, expected) in [
        ("BYE (TRYLATER) \"too many\"\r\n", LATER),
        ("BYE \"too many\"\r\n", LATER),
        ("NO (TRYLATER) \"later\"\r\n", LATER),
        ("NO \"never\"\r\n", BROKEN),
        ("BYE (REFERRAL \"sieve://elsewhere.example.org\")\r\n", BROKEN),
        ("HTTP/1.1 400 Bad Request\r\n", BROKEN),
        ("* OK IMAP4rev1 ready\r\n", BROKEN),
        ("OK \"no capabilities\"\r\n", BROKEN),
        // Said before it was asked, which would pass for its yes.
        ("CAPS\r\nOK \"ready\"\r\nOK \"in\"\r\n", BROKEN),
        ("CAPS\r\nOK \"ready\"\r\nNO", BROKEN),
    ] {
        assert_eq!(heard_of(Manners { greeting, ..good() }).await?, expected, "{greeting:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_unavailable() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Hang, ..good() },
        Manners { greeting: "CAPS\r\n", then: Then::Hang, ..good() },
        Manners { then: Then::Hang, ..good() },
        saying(""),
        saying("\"SIE"),
        // Nothing but the NOOP's OK behind a list that it ends.
        saying("OK\r\n\"SIEVE\" \"x\"\r\n"),
    ] {
        let old = LoginBackend::start("old", manners).await?;
        let node = at(old.configured_as(|endpoint| endpoint.reply_timeout = SHORT))?;
        assert_eq!(refused(&node).await?, LATER);
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_speaks_and_never_comes_to_the_point_is_cut_off() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Flood("x"), ..good() },
        Manners { greeting: "", then: Then::Flood("\"SIEVE\" \"x\"\r\n"), ..good() },
        Manners { greeting: "\"SIEVE\" {9000}\r\n", ..good() },
        Manners { verdict: Verdict::Flood("x"), ..good() },
        Manners { verdict: Verdict::Flood("\"x\" \"y\"\r\n"), ..good() },
        saying("OK {99999999999999999999}\r\n"),
    ] {
        assert_eq!(heard_of(manners).await?, BROKEN);
    }
    // A list behind the yes that has no end.
    let long: &str = Box::leak("\"A\"\r\n".repeat(200).into_boxed_str());
    let endless: &str = Box::leak(format!("OK\r\n{long}").into_boxed_str());
    assert_eq!(heard_of(saying(endless)).await?, BROKEN);
    Ok(())
}

/// Cyrus tells its capabilities there (`sieve_sasl_send_unsolicited_capability`).
#[tokio::test]
async fn capabilities_that_a_backend_tells_behind_its_yes_reach_no_client() -> Result<()> {
    for verdict in [
        "OK \"in\"\r\n\"IMPLEMENTATION\" \"Cyrus timsieved\"\r\n\"SASL\" \"\"\r\n\"SIEVE\" {8}\r\nfileinto\r\nOK\r\n",
        "OK (SASL \"\")\r\n\"SIEVE\" \"x\"\r\n\"UNAUTHENTICATE\"\r\nOK \"listed\"\r\n",
        "OK\r\n",
    ] {
        let (old, node) = alone(saying(verdict)).await?;
        let mut client = connect(&node).await?;
        client.send(format!("{}\r\nLISTSCRIPTS\r\n", plain("ann", PASSWORD)).as_bytes()).await?;
        client.expect("OK \"Logged in.\"").await?;
        client.expect("OK \"done at old\"").await?;
        is_at(&mut client, "old").await?;
        assert_eq!(old.connections()[0].lines[1], SYNC);
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_does_not_know_noop_is_joined_all_the_same() -> Result<()> {
    let capabilities = "\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"";
    for verdict in ["OK\r\n", "OK\r\n\"SIEVE\" \"x\"\r\nOK\r\n"] {
        let (_old, node) = alone(Manners { capabilities, ..saying(verdict) }).await?;
        is_at(&mut log_in(&node, "ann").await?, "old").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_says_goodbye_behind_its_yes_is_not_joined() -> Result<()> {
    for verdict in ["OK\r\nBYE\r\n", "OK\r\n\"SIEVE\" \"x\"\r\nBYE (TRYLATER)\r\n"] {
        assert_eq!(heard_of(saying(verdict)).await?, LATER);
    }
    Ok(())
}

#[tokio::test]
async fn a_long_response_goes_as_a_literal() -> Result<()> {
    let (mut old, node) = alone(asking()).await?;
    let mut client = connect(&node).await?;
    let password = "p".repeat(16 * 1024 - 20);
    client.say(&plain("ann", &password)).await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, password);
    asked.say("OK\r\n");
    client.expect("OK").await?;
    let octets = STANDARD.encode(format!("\0ann@example.org\0{password}")).len();
    let first = format!("AUTHENTICATE \"PLAIN\" {{{octets}+}}");
    assert_eq!(old.connections()[0].lines[0], first);
    Ok(())
}

#[tokio::test]
async fn a_backend_that_takes_no_such_credentials_is_a_fault_of_ours() -> Result<()> {
    for (capabilities, login) in [
        ("\"SASL\" \"\"\r\n\"SIEVE\" \"x\"", plain("ann", PASSWORD)),
        ("\"SIEVE\" \"x\"", plain("ann", PASSWORD)),
        ("\"SASL\" \"CRAM-MD5\"", plain("ann", PASSWORD)),
        // LOGIN cannot say as whom an administrator acts.
        ("\"SASL\" \"LOGIN\"", plain_as("ann@example.org", "admin", PASSWORD)),
    ] {
        let (old, node) = alone(listing(capabilities)).await?;
        let mut client = connect(&node).await?;
        client.say(&login).await?;
        client.expect(BROKEN).await?;
        assert!(old.connections()[0].lines.is_empty(), "no secret was said");
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_may_write_its_capabilities_as_literals_and_in_any_case() -> Result<()> {
    let manners = listing("\"implementation\" {7}\r\na\r\n\"b\r\n\r\n\"sasl\" {11}\r\nlogin plain");
    let (_old, node) = alone(manners).await?;
    is_at(&mut log_in(&node, "ann").await?, "old").await
}

/// A node that offers every mechanism.
async fn offering(manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", manners).await?;
    let mechanisms = Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str));
    let offer = Offer { mechanisms, ..(protocol::of(LoginProtocol::ManageSieve).modest)() };
    let settings = Settings { offer: Some(offer), ..settings() };
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

#[tokio::test]
async fn a_failed_tokens_challenge_is_relayed_and_answered_by_the_client() -> Result<()> {
    let (mut old, node) = offering(asking()).await?;
    let mut client = connect(&node).await?;
    let token = STANDARD.encode("user=ann@example.org\x01auth=Bearer t\x01\x01");
    for (answer, heard) in [("", ""), ("AQ==", "\x01"), ("*", "*")] {
        client.say(&format!("AUTHENTICATE \"XOAUTH2\" \"{token}\"")).await?;
        let asked = old.asked().await?;
        assert_eq!(asked.login.password, "user=ann@example.org\x01auth=Bearer t\x01\x01");
        asked.say("\"eyJzdGF0dXMiOiI0MDEifQ==\"\r\n");
        client.expect("\"eyJzdGF0dXMiOiI0MDEifQ==\"").await?;
        client.say(&format!("\"{answer}\"")).await?;
        let answered = old.asked().await?;
        assert_eq!(answered.login.password, heard);
        answered.say("NO \"expired\"\r\n");
        let refused = client.line().await?;
        let expected =
            if answer == "*" { "NO \"Authentication exchange cancelled.\"" } else { WRONG };
        assert_eq!(refused, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_challenge_that_is_not_base64_or_comes_again_is_no_challenge() -> Result<()> {
    let (old, node) = offering(saying("\"!!\"\r\n")).await?;
    let token = STANDARD.encode("user=ann@example.org\x01auth=Bearer t\x01\x01");
    let mut client = connect(&node).await?;
    client.say(&format!("AUTHENTICATE \"XOAUTH2\" \"{token}\"")).await?;
    client.expect(BROKEN).await?;
    old.until("the attempt is closed", |all| all[0].closed).await?;
    Ok(())
}

/// RFC 5804 §2.1: the server's last words may come with its yes; a client of SCRAM wants to see them.
#[tokio::test]
async fn scram_is_relayed_with_its_last_words() -> Result<()> {
    let manners = Manners { capabilities: "\"SASL\" \"SCRAM-SHA-256\"", ..asking() };
    let (mut old, node) = offering(manners).await?;
    let mut client = connect(&node).await?;
    let first = STANDARD.encode("n,,n=ann@example.org,r=abc");
    client.say(&format!("AUTHENTICATE \"SCRAM-SHA-256\" \"{first}\"")).await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, "n,,n=ann@example.org,r=abc");
    let challenge = STANDARD.encode("r=abcdef,s=c2FsdA==,i=4096");
    asked.say(&format!("\"{challenge}\"\r\n"));
    client.expect(&format!("\"{challenge}\"")).await?;
    client.say(&format!("\"{}\"", STANDARD.encode("c=biws,r=abcdef,p=cHJvb2Y="))).await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, "c=biws,r=abcdef,p=cHJvb2Y=");
    let last = STANDARD.encode("v=c2lnbmF0dXJl");
    asked.say(&format!("OK (SASL \"{last}\") \"in\"\r\n"));
    client.expect(&format!("OK (SASL \"{last}\") \"Logged in.\"")).await?;
    is_at(&mut client, "old").await
}

async fn told(manners: Manners, identity: Identity) -> Result<Vec<String>> {
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = identity);
    let mut settings = Settings { proxied: true, ..settings() };
    settings.rules.allow_plaintext = true;
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 4190\r\n").await?;
    super::listed(&mut client).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    client.expect("OK \"Logged in.\"").await?;
    let connection = old.connections()[0].clone();
    let proxied_for = Some(SocketAddr::from(([192, 0, 2, 7], 40000)));
    assert_eq!(connection.proxied_for, proxied_for.filter(|_| identity == Identity::Proxy));
    Ok(connection.lines)
}

#[tokio::test]
async fn a_backend_that_offers_xclient_is_told_who_the_client_is() -> Result<()> {
    let lines = told(listing(XCLIENT), Identity::Xclient).await?;
    let (before, after) = lines[0].split_once(" SESSION=").unwrap();
    assert_eq!(before, "XCLIENT ADDR=192.0.2.7 PORT=40000");
    let (session, after) = after.split_once(' ').unwrap();
    assert!((1..=64).contains(&session.len()), "{session}");
    assert_eq!(after, "TTL=5 CLIENT-TRANSPORT=insecure DESTADDR=192.0.2.1 DESTPORT=4190");
    assert!(lines[1].starts_with("AUTHENTICATE \"PLAIN\" \""), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_backend_that_does_not_believe_us_lets_the_user_in_all_the_same() -> Result<()> {
    let capabilities = "\"SASL\" \"PLAIN\"\r\n\"XCLIENT\" \"in vain\"\r\n\"VERSION\" \"1.0\"";
    let lines = told(listing(capabilities), Identity::Xclient).await?;
    assert!(lines[0].starts_with("XCLIENT ") && lines[1].starts_with("AUTHENTICATE"), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn the_client_is_told_of_only_where_that_is_offered_and_wanted() -> Result<()> {
    for (manners, identity) in [
        (good(), Identity::Xclient),
        (listing(XCLIENT), Identity::None),
        (listing(XCLIENT), Identity::DovecotId),
        (Manners { proxied: true, ..listing(XCLIENT) }, Identity::Proxy),
    ] {
        let lines = told(manners, identity).await?;
        assert!(lines[0].starts_with("AUTHENTICATE \"PLAIN\" \""), "{lines:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_probe_tells_what_a_backend_can_and_nothing_of_one_connection() -> Result<()> {
    let capabilities = "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN OAUTHBEARER X\"\r\n\
         \"sieve\" {8}\r\nfileinto\r\n\"OWNER\" \"ann\"\r\n\"XCLIENT\"\r\n\"UNAUTHENTICATE\"\r\n\
         \"STARTTLS\"\r\n\"RENAME\"\r\n\"VERSION\" \"1.0\"";
    let old = LoginBackend::start("old", listing(capabilities)).await?;
    let backend = old.configured();
    let endpoint = backend.managesieve.as_ref().unwrap();
    let until = Instant::now() + tests::patience::PATIENCE;
    let abilities = (protocol::of(LoginProtocol::ManageSieve).probe)(endpoint, until).await?;
    let said: Vec<&str> = abilities.capabilities.iter().map(|line| &**line).collect();
    assert_eq!(said, ["\"SIEVE\" \"fileinto\"", "\"RENAME\"", "\"VERSION\" \"1.0\""]);
    assert_eq!(abilities.mechanisms, Mechanisms::of_words(["PLAIN", "OAUTHBEARER"]));
    let connections = old.until("it takes its leave", |all| all[0].closed).await?;
    assert_eq!(connections[0].lines, ["LOGOUT"]);
    Ok(())
}

//! Logins for held accounts (KIK-2, P6): they wait without a word, unjoined, and are routed by the row that
//! comes after the hold. No fence waits for them, and they are bounded in time and number.

use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shared::backend::LoginProtocol;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{DOMAIN, LoginNode, Settings};
use tests::patience::PATIENCE;

/// A limit that a test waits for.
const SHORT: Duration = Duration::from_millis(200);

/// Makes of each scenario, a function of the protocol, one test in each.
macro_rules! in_all {
    ($($scenario:ident),+ $(,)?) => {
        in_all!(@ imap, Imap, $($scenario),+);
        in_all!(@ pop3, Pop3, $($scenario),+);
        in_all!(@ submission, Submission, $($scenario),+);
        in_all!(@ managesieve, ManageSieve, $($scenario),+);
    };
    (@ $module:ident, $protocol:ident, $($scenario:ident),+) => {
        mod $module {
            $(#[tokio::test]
            async fn $scenario() -> anyhow::Result<()> {
                super::$scenario(shared::backend::LoginProtocol::$protocol).await
            })+
        }
    };
}

in_all! {
    a_login_waits_out_a_hold_and_is_joined_at_the_new_owner,
    a_login_that_waited_is_joined_at_the_same_owner_when_the_hold_just_ends,
    a_login_that_has_waited_too_long_is_refused_for_now,
    a_hold_between_the_credentials_and_the_yes_is_waited_out,
    a_client_that_leaves_frees_its_place,
    many_logins_wait_and_are_all_joined_at_the_new_owner,
    more_logins_than_may_wait_are_refused_for_now,
    a_hold_ends_joined_sessions_and_the_next_login_waits,
}

/// Two backends, and a node at which `ann` and `bob` live on `old`.
struct Stage {
    old: LoginBackend,
    new: LoginBackend,
    node: LoginNode,
    protocol: LoginProtocol,
}

fn patient(protocol: LoginProtocol) -> Settings {
    let mut settings = Settings { protocol, ..Settings::default() };
    settings.rules.hold_wait = PATIENCE;
    settings
}

impl Stage {
    async fn set(protocol: LoginProtocol) -> Result<Self> {
        Self::set_with(patient(protocol), Verdict::ByPassword).await
    }

    async fn set_with(settings: Settings, verdict: Verdict) -> Result<Self> {
        let protocol = settings.protocol;
        let asked = Manners { verdict, ..Manners::of(protocol) };
        let (old, new) = crate::two(asked, Manners::of(protocol)).await?;
        let node = LoginNode::start_with(crate::configured(&old, &new), settings)?;
        node.set_owner("ann", "old");
        node.set_owner("bob", "old");
        Ok(Self { old, new, node, protocol })
    }

    /// A client that has given an account's credentials and has not read what comes.
    async fn log_in(&self, local: &str) -> Result<Conversation> {
        let mut client = Conversation::connect(self.node.address).await?;
        greeted(&mut client, self.protocol).await?;
        give(&mut client, self.protocol, local).await?;
        Ok(client)
    }

    /// The next that a client hears is that it is logged in; then it is at that backend.
    async fn is_joined(&self, client: &mut Conversation, backend: &str) -> Result<()> {
        let (yes, ask, done) = match self.protocol {
            LoginProtocol::Imap => ("a OK", "n NOOP", "n OK done at "),
            LoginProtocol::Pop3 => ("+OK Logged in.", "STAT", "+OK done at "),
            LoginProtocol::Submission => ("235 2.7.0", "NOOP", "250 2.0.0 done at "),
            LoginProtocol::ManageSieve => ("OK \"Logged in.\"", "LISTSCRIPTS", "OK \"done at "),
        };
        client.expect(yes).await?;
        client.say(ask).await?;
        client.expect(&format!("{done}{backend}")).await.map(drop)
    }

    /// The next that a client hears is that it may come again.
    async fn is_put_off(&self, client: &mut Conversation) -> Result<()> {
        client
            .expect(match self.protocol {
                LoginProtocol::Imap => "a NO [UNAVAILABLE] ",
                LoginProtocol::Pop3 => "-ERR [SYS/TEMP] ",
                LoginProtocol::Submission => "454 4.7.0 Account is temporarily unavailable",
                LoginProtocol::ManageSieve => "NO (TRYLATER) ",
            })
            .await
            .map(drop)
    }
}

async fn greeted(client: &mut Conversation, protocol: LoginProtocol) -> Result<()> {
    match protocol {
        LoginProtocol::Imap => client.expect("* OK").await.map(drop),
        LoginProtocol::Pop3 => client.expect("+OK").await.map(drop),
        LoginProtocol::Submission => {
            client.expect("220 ").await?;
            client.say("EHLO client.example.org").await?;
            while !client.line().await?.starts_with("250 ") {}
            Ok(())
        }
        LoginProtocol::ManageSieve => {
            while !client.line().await?.starts_with("OK") {}
            Ok(())
        }
    }
}

async fn give(client: &mut Conversation, protocol: LoginProtocol, local: &str) -> Result<()> {
    let response = STANDARD.encode(format!("\0{local}@{DOMAIN}\0secret"));
    let line = match protocol {
        LoginProtocol::Imap => format!("a AUTHENTICATE PLAIN {response}"),
        LoginProtocol::Pop3 | LoginProtocol::Submission => format!("AUTH PLAIN {response}"),
        LoginProtocol::ManageSieve => format!("AUTHENTICATE \"PLAIN\" \"{response}\""),
    };
    client.say(&line).await
}

async fn a_login_waits_out_a_hold_and_is_joined_at_the_new_owner(
    protocol: LoginProtocol,
) -> Result<()> {
    let stage = Stage::set(protocol).await?;
    let node = &stage.node;
    node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    node.until_held(1).await?;
    let registry = node.ownership.registry();
    assert_eq!(registry.counts(), (1, 0), "whatever comes next finds it");
    assert!(registry.busy().is_empty(), "no fence waits for it");
    node.set_owner("ann", "new");
    stage.is_joined(&mut client, "new").await?;
    node.applied().await?;
    assert!(stage.old.connections().is_empty(), "{:?}", stage.old.connections());
    assert_eq!((stage.new.sessions(), node.held.taken()), (1, 0));
    Ok(())
}

/// Released by its holder, or ended by `expire_holds`: the row says the same.
async fn a_login_that_waited_is_joined_at_the_same_owner_when_the_hold_just_ends(
    protocol: LoginProtocol,
) -> Result<()> {
    let stage = Stage::set(protocol).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    stage.node.set_owner("ann", "old");
    stage.is_joined(&mut client, "old").await?;
    assert!(stage.new.connections().is_empty());
    Ok(())
}

async fn a_login_that_has_waited_too_long_is_refused_for_now(
    protocol: LoginProtocol,
) -> Result<()> {
    let mut settings = patient(protocol);
    settings.rules.hold_wait = SHORT;
    let stage = Stage::set_with(settings, Verdict::ByPassword).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.is_put_off(&mut client).await?;
    assert_eq!(stage.node.held.taken(), 0);
    assert_eq!(stage.node.ownership.registry().counts(), (0, 0));
    // The same connection may come again.
    stage.node.set_owner("ann", "new");
    give(&mut client, protocol, "ann").await?;
    stage.is_joined(&mut client, "new").await?;
    assert!(stage.old.connections().is_empty());
    Ok(())
}

async fn a_hold_between_the_credentials_and_the_yes_is_waited_out(
    protocol: LoginProtocol,
) -> Result<()> {
    let mut stage = Stage::set_with(patient(protocol), Verdict::Ask).await?;
    let mut client = stage.log_in("ann").await?;
    let asked = stage.old.asked().await?;
    stage.node.hold("ann", "old");
    // Settled while it waits: it has left the former owner.
    stage.node.applied().await?;
    stage.node.until_held(1).await?;
    stage.old.until("the attempt is closed", |all| all[0].closed).await?;
    stage.node.set_owner("ann", "new");
    stage.is_joined(&mut client, "new").await?;
    assert!(!asked.say("+OK too late\r\n"), "nobody waits for the former owner's word");
    assert_eq!(stage.old.connections().len(), 1);
    Ok(())
}

async fn a_client_that_leaves_frees_its_place(protocol: LoginProtocol) -> Result<()> {
    let mut settings = patient(protocol);
    settings.rules.max_held_per_account = 1;
    let stage = Stage::set_with(settings, Verdict::ByPassword).await?;
    stage.node.hold("ann", "old");
    let leaving = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    drop(leaving);
    stage.node.until_held(0).await?;
    assert_eq!(stage.node.ownership.registry().counts(), (0, 0));
    let mut client = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    stage.node.set_owner("ann", "new");
    stage.is_joined(&mut client, "new").await
}

async fn many_logins_wait_and_are_all_joined_at_the_new_owner(
    protocol: LoginProtocol,
) -> Result<()> {
    let stage = Stage::set(protocol).await?;
    stage.node.hold("ann", "old");
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(stage.log_in("ann").await?);
    }
    stage.node.until_held(20).await?;
    assert!(stage.node.ownership.registry().busy().is_empty());
    stage.node.set_owner("ann", "new");
    for client in &mut clients {
        stage.is_joined(client, "new").await?;
    }
    stage.node.applied().await?;
    assert!(stage.old.connections().is_empty());
    assert_eq!((stage.new.sessions(), stage.node.held.taken()), (20, 0));
    Ok(())
}

async fn more_logins_than_may_wait_are_refused_for_now(protocol: LoginProtocol) -> Result<()> {
    let mut settings = patient(protocol);
    settings.rules.max_held_per_account = 2;
    settings.rules.max_held = 3;
    let stage = Stage::set_with(settings, Verdict::ByPassword).await?;
    stage.node.hold("ann", "old");
    stage.node.hold("bob", "old");
    let mut waiting = Vec::new();
    for local in ["ann", "ann", "bob"] {
        waiting.push(stage.log_in(local).await?);
        stage.node.until_held(waiting.len()).await?;
        // Too many of this account, then too many in all.
        if waiting.len() > 1 {
            stage.is_put_off(&mut stage.log_in(local).await?).await?;
        }
    }
    stage.node.set_owner("ann", "new");
    stage.node.set_owner("bob", "new");
    for client in &mut waiting {
        stage.is_joined(client, "new").await?;
    }
    assert!(stage.old.connections().is_empty());
    Ok(())
}

async fn a_hold_ends_joined_sessions_and_the_next_login_waits(
    protocol: LoginProtocol,
) -> Result<()> {
    let stage = Stage::set(protocol).await?;
    let (mut ann, mut bob) = (stage.log_in("ann").await?, stage.log_in("bob").await?);
    stage.is_joined(&mut ann, "old").await?;
    stage.is_joined(&mut bob, "old").await?;
    stage.node.hold("ann", "old");
    assert!(ann.closed().await?.is_empty(), "a plain close");
    let mut again = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    stage.node.applied().await?;
    stage.old.until("hers is closed there", |all| all.iter().any(|c| c.closed)).await?;
    assert_eq!(stage.old.sessions(), 1, "his goes on");
    stage.node.set_owner("ann", "new");
    stage.is_joined(&mut again, "new").await
}

#[tokio::test]
async fn the_next_hold_is_waited_out_as_well() -> Result<()> {
    let mut stage = Stage::set_with(patient(LoginProtocol::Imap), Verdict::Ask).await?;
    let mut client = stage.log_in("ann").await?;
    for _ in 0..20 {
        let _asked = stage.old.asked().await?;
        stage.node.hold("ann", "old");
        stage.node.until_held(1).await?;
        stage.node.hold("ann", "old");
        stage.node.applied().await?;
        stage.node.until_held(1).await?;
        if stage.old.connections().len() == 5 {
            stage.node.set_owner("ann", "new");
            return stage.is_joined(&mut client, "new").await;
        }
        stage.node.set_owner("ann", "old");
    }
    anyhow::bail!("it never came to an end")
}

#[tokio::test]
async fn the_backends_time_begins_when_the_hold_has_ended() -> Result<()> {
    let mut settings = patient(LoginProtocol::Imap);
    settings.rules.attach_timeout = Duration::from_secs(2);
    let stage = Stage::set_with(settings, Verdict::ByPassword).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    stage.node.set_owner("ann", "new");
    stage.is_joined(&mut client, "new").await
}

#[tokio::test]
async fn a_hold_is_not_waited_out_beyond_the_time_for_the_login() -> Result<()> {
    let mut settings = patient(LoginProtocol::Imap);
    settings.rules.login_timeout = Duration::from_secs(1);
    let stage = Stage::set_with(settings, Verdict::ByPassword).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.is_put_off(&mut client).await?;
    client.expect("* BYE").await?;
    ensure!(client.closed().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_while_it_waits_reaches_its_backend_once() -> Result<()> {
    let stage = Stage::set(LoginProtocol::Imap).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    client.say("b NOOP").await?;
    stage.node.until_held(1).await?;
    client.say("c NOOP").await?;
    stage.node.set_owner("ann", "new");
    client.expect("a OK").await?;
    client.expect("b OK done at new").await?;
    client.expect("c OK done at new").await?;
    let said = &stage.new.connections()[0].lines;
    assert_eq!(said.iter().filter(|line| line.ends_with("NOOP")).count(), 2, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_login_by_an_alias_waits_for_the_account_it_leads_to() -> Result<()> {
    let stage = Stage::set(LoginProtocol::Imap).await?;
    stage.node.set_alias(&format!("lee@{DOMAIN}"), "ann");
    stage.node.hold("ann", "old");
    stage.node.set_owner("bob", "new");
    let mut client = stage.log_in("lee").await?;
    stage.node.until_held(1).await?;
    // The alias is led to somebody who is served.
    stage.node.set_alias(&format!("lee@{DOMAIN}"), "bob");
    stage.is_joined(&mut client, "new").await
}

#[tokio::test]
async fn a_stale_map_is_not_waited_for() -> Result<()> {
    let stage = Stage::set(LoginProtocol::Imap).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    stage.node.end_lease();
    stage.is_put_off(&mut client).await?;
    stage.node.applied().await
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_hold() -> Result<()> {
    let stage = Stage::set(LoginProtocol::Imap).await?;
    stage.node.hold("ann", "old");
    let mut client = stage.log_in("ann").await?;
    stage.node.until_held(1).await?;
    stage.node.lifecycle.stop().cancel();
    stage.is_put_off(&mut client).await?;
    client.expect("* BYE").await?;
    Ok(())
}

/// A deleted account, a list, a backend nobody knows: the next row decides, whatever it is.
#[tokio::test]
async fn the_row_after_the_hold_may_refuse() -> Result<()> {
    use shared::ownership::map::AccountRow;
    let stage = Stage::set(LoginProtocol::Imap).await?;
    for (owner, login, answer) in
        [("nowhere", true, "a NO [UNAVAILABLE]"), ("new", false, "a NO [AUTHENTICATIONFAILED]")]
    {
        stage.node.hold("ann", "old");
        let mut client = stage.log_in("ann").await?;
        stage.node.until_held(1).await?;
        stage
            .node
            .set("ann", AccountRow { owner: owner.into(), held: false, login, flipped: None });
        client.expect(answer).await?;
        stage.node.until_held(0).await?;
    }
    assert!(stage.old.connections().is_empty() && stage.new.connections().is_empty());
    Ok(())
}

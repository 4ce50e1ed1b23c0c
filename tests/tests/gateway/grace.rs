//! For some time after a flip "there is no such mailbox" from the new owner is no reason to refuse for good (MX-18):
//! not at RCPT, not at the end of a message, and not in the queue.

use std::time::Duration;

use tests::gateway_node::Settings;
use tests::sink::Answer;

use super::queue::{Post, files};
use super::*;

const UNKNOWN: &str = "550 5.1.1 <ann@mail7.internal> User unknown";
const MOVED: &str =
    "451 4.2.0 <ann@example.org>: the mailbox was moved a short time ago, try again later";
/// Shorter ago than the grace, and longer.
const LATELY: Duration = Duration::from_mins(10);
const LONG_AGO: Duration = Duration::from_hours(25);

/// What RCPT is answered for ann, who was flipped to `new` so long ago, and whose new owner says this.
async fn rcpt(line: &'static str, ago: Duration, settings: Settings) -> Result<String> {
    let new = Sink::start("new", Manners::default().but("RCPT", Answer::Say(line))).await?;
    let node = GatewayNode::start_with([new.configured()], settings)?;
    node.flip("ann", "new", ago);
    let mut client = envelope(&node, &[]).await?;
    Ok(client.command(&format!("RCPT TO:<{ANN}>")).await?.to_string())
}

#[tokio::test]
async fn a_flipped_account_that_its_new_owner_does_not_know_is_refused_for_now() -> Result<()> {
    for line in [UNKNOWN, "550 5.2.1 Disabled", "550 Unknown user", "551 Not local", "553 Who?"] {
        let reply = rcpt(line, LATELY, Settings::default()).await?;
        assert!(reply.starts_with(MOVED), "{line}: {reply}");
    }
    Ok(())
}

#[tokio::test]
async fn after_the_grace_its_new_owners_word_is_final() -> Result<()> {
    let reply = rcpt(UNKNOWN, LONG_AGO, Settings::default()).await?;
    assert!(reply.starts_with("550 5.1.1 "), "{reply}");
    let mut settings = Settings::default();
    settings.rules.flip_grace = LATELY / 2;
    let reply = rcpt(UNKNOWN, LATELY, settings).await?;
    assert!(reply.starts_with("550 5.1.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_grace_of_nothing_is_none() -> Result<()> {
    let mut settings = Settings::default();
    settings.rules.flip_grace = Duration::ZERO;
    let reply = rcpt(UNKNOWN, Duration::ZERO, settings).await?;
    assert!(reply.starts_with("550 5.1.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn what_a_new_owner_says_of_policy_and_of_senders_counts_at_once() -> Result<()> {
    for (line, expected) in [
        ("550 5.7.1 Spam", "550 5.7.1 "),
        ("550 5.1.8 Your domain is not known here", "550 5.1.8 "),
        ("554 No", "554 5.0.0 "),
    ] {
        let reply = rcpt(line, LATELY, Settings::default()).await?;
        assert!(reply.starts_with(expected), "{line}: {reply}");
    }
    Ok(())
}

/// The second recipient hears what MAIL was answered, too: nothing was said about either mailbox.
#[tokio::test]
async fn a_sender_that_is_refused_at_mail_is_refused_for_good() -> Result<()> {
    let manners = Manners::default().but("MAIL", Answer::Say("550 5.1.0 Sender refused"));
    let stage = Stage::set_with(Manners::default(), manners).await?;
    stage.node.flip("ann", "new", LATELY);
    stage.node.flip("ben", "new", LATELY);
    let mut client = stage.envelope(&[]).await?;
    for to in [ANN, BEN] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?.to_string();
        assert!(reply.starts_with("550 5.1.0 "), "{reply}");
    }
    Ok(())
}

#[tokio::test]
async fn an_account_that_was_never_flipped_is_refused_for_good_at_once() -> Result<()> {
    let manners = Manners::default().but("RCPT", Answer::Say(UNKNOWN));
    let stage = Stage::set_with(manners.clone(), manners).await?;
    // By its row, and by the default owner of its domain.
    stage.node.set_domain(Some("new"));
    let mut client = stage.envelope(&[]).await?;
    for to in [ANN, "nobody@example.org"] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?.to_string();
        assert!(reply.starts_with("550 5.1.1 "), "{to}: {reply}");
    }
    Ok(())
}

#[tokio::test]
async fn an_alias_that_was_forgotten_at_the_new_owner_is_refused_for_now() -> Result<()> {
    let manners = Manners::default().but("RCPT TO:<annie", Answer::Say(UNKNOWN));
    let stage = Stage::set_with(Manners::default(), manners).await?;
    stage.node.flip("ann", "new", LATELY);
    stage.node.set_alias("annie@example.org", "ann");
    let mut client = stage.envelope(&[ANN]).await?;
    let reply = client.command("RCPT TO:<annie@example.org>").await?.to_string();
    assert!(reply.starts_with("451 4.2.0 <annie@example.org>: "), "{reply}");
    assert!(message(&mut client).await?.is_positive());
    assert_eq!(stage.new.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn by_lmtp_each_verdict_is_softened_by_itself() -> Result<()> {
    let manners = Manners::lmtp()
        .but("(verdict) <ann@", Answer::Say(UNKNOWN))
        .but("(verdict) <ned@", Answer::Say(UNKNOWN));
    let stage = Stage::set_with(Manners::default(), manners).await?;
    stage.node.flip("ann", "new", LATELY);
    // Ned has always been there. With one who is refused for now nobody is refused for good.
    let reply = stage.send(&[ANN, NED]).await?.to_string();
    assert!(reply.starts_with(MOVED), "{reply}");
    let reply = stage.send(&[NED]).await?.to_string();
    assert!(reply.starts_with("550 5.1.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn by_smtp_a_verdict_for_all_is_softened_when_everybody_was_flipped_lately() -> Result<()> {
    for (line, ben, expected) in [
        (UNKNOWN, Some(LATELY), "451 4.2.0 "),
        (UNKNOWN, Some(LONG_AGO), "550 5.1.1 "),
        (UNKNOWN, None, "550 5.1.1 "),
        ("550 5.7.1 Spam", Some(LATELY), "550 5.7.1 "),
        // Without an enhanced code it may be about anything.
        ("550 No", Some(LATELY), "550 5.0.0 "),
    ] {
        for moment in ["(verdict)", "DATA"] {
            let manners = Manners::default().but(moment, Answer::Say(line));
            let stage = Stage::set_with(Manners::default(), manners).await?;
            stage.node.flip("ann", "new", LATELY);
            match ben {
                Some(ago) => stage.node.flip("ben", "new", ago),
                None => stage.node.set_owner("ben", "new"),
            };
            let reply = stage.send(&[ANN, BEN]).await?.to_string();
            assert!(reply.starts_with(expected), "{line} at {moment}, ben {ben:?}: {reply}");
        }
    }
    Ok(())
}

/// Her mail waits while she is held; the new owner does not know her until somebody has made her mailbox there.
#[tokio::test]
async fn queued_mail_stays_in_the_queue_until_the_new_owner_knows_its_recipient() -> Result<()> {
    let manners = Manners::default().but("RCPT", Answer::Once(UNKNOWN));
    let post = Post::set(Manners::default(), manners).await?;
    post.node.hold("ann", "old");
    assert!(post.send(&[ANN]).await?.is_positive());
    post.node.flip("ann", "new", Duration::ZERO);
    post.new.until("she is not known", |new| new.heard("RCPT").len() == 1).await?;
    post.node.applied().await?;
    assert_eq!((post.queued(), files(post.place.path(), "dead")), (1, 0));
    // Any change of the account makes it due again.
    post.node.flip("ann", "new", LATELY);
    post.until_empty().await?;
    assert_eq!(post.new.recipients(), [ANN]);
    assert_eq!(files(post.place.path(), "dead"), 0);
    Ok(())
}

#[tokio::test]
async fn queued_mail_of_an_account_that_was_flipped_long_ago_fails_at_once() -> Result<()> {
    for at in ["RCPT", "(verdict)"] {
        let manners = Manners::default().but(at, Answer::Say(UNKNOWN));
        let post = Post::set(Manners::default(), manners).await?;
        post.node.hold("ann", "old");
        assert!(post.send(&[ANN]).await?.is_positive());
        post.node.flip("ann", "new", LONG_AGO);
        post.until_empty().await?;
        assert_eq!(files(post.place.path(), "dead"), 1, "{at}");
    }
    Ok(())
}

#[tokio::test]
async fn who_is_not_known_yet_is_kept_when_another_has_the_message() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Once(UNKNOWN));
    let post = Post::set(Manners::default(), manners).await?;
    post.node.flip("ann", "new", LATELY);
    let reply = post.send(&[ANN, BEN]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    assert_eq!((post.queued(), post.old.recipients()), (1, vec![BEN.to_owned()]));
    post.node.flip("ann", "new", LATELY);
    post.until_empty().await?;
    assert_eq!(post.old.messages().len(), 1, "ben has it once");
    assert_eq!(post.new.messages().len(), 2, "the one that was put off, and the other");
    assert_eq!(files(post.place.path(), "dead"), 0, "the sender is told of no failure");
    Ok(())
}

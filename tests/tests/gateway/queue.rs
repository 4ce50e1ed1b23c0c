//! What cannot be delivered at once is kept, and delivered to whoever owns the account then (MX-7, SPL-2, SPL-10,
//! SPL-12).

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tests::gateway_node::{GatewayNode, Settings};
use tests::patience::until;
use tests::place::Place;
use tests::sink::{Answer, Manners, Sink};

use super::*;

/// A [`Stage`] with a spool.
pub(super) struct Post {
    stage: Stage,
    pub(super) place: Place,
}

impl std::ops::Deref for Post {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl std::ops::DerefMut for Post {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

impl Post {
    pub(super) async fn set(old: Manners, new: Manners) -> Result<Self> {
        Self::set_with(old, new, Settings::default()).await
    }

    async fn set_with(old: Manners, new: Manners, settings: Settings) -> Result<Self> {
        let (old, new) = (Sink::start("old", old).await?, Sink::start("new", new).await?);
        let place = Place::new()?;
        let backends = [old.configured(), new.configured()];
        let node = GatewayNode::start_with_spool(backends, settings, place.path()).await?;
        populate(&node);
        Ok(Self { stage: Stage { old, new, node }, place })
    }

    pub(super) fn queued(&self) -> usize {
        self.node.queue.as_ref().map_or(0, |queue| queue.len())
    }

    fn files(&self) -> usize {
        files(self.place.path(), "messages")
    }

    pub(super) async fn until_empty(&self) -> Result<()> {
        until("nothing is queued", || (self.queued() == 0).then_some(())).await?;
        assert_eq!(self.files(), 0);
        Ok(())
    }
}

pub(super) fn files(spool: &Path, directory: &str) -> usize {
    std::fs::read_dir(spool.join(directory)).map_or(0, Iterator::count)
}

fn impatient() -> Settings {
    let mut settings = Settings::default();
    settings.rules.patience = Duration::from_millis(300);
    settings
}

const FULL: &str = "452 4.2.2 Quota";

#[tokio::test]
async fn what_all_owners_take_at_once_is_never_written_to_the_spool() -> Result<()> {
    let post = Post::set(Manners::default(), Manners::lmtp()).await?;
    let reply = post.send(&[ANN, NED]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, delivered"), "{reply}");
    assert_eq!((post.queued(), post.files()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn mail_for_a_held_account_waits_and_goes_to_whoever_owns_it_afterwards_once() -> Result<()> {
    let post = Post::set(Manners::default(), Manners::default()).await?;
    post.node.hold("ann", "old");
    let reply = post.send(&[ANN]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    assert_eq!(post.files(), 1);
    post.node.applied().await?;
    post.node.set_owner("ann", "new");
    post.until_empty().await?;
    assert!(post.old.messages().is_empty());
    assert_eq!(post.new.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_hold_that_is_released_leaves_its_mail_with_the_owner_of_before() -> Result<()> {
    let post = Post::set(Manners::default(), Manners::default()).await?;
    post.node.hold("ann", "old");
    assert!(post.send(&[ANN, NED]).await?.is_positive());
    post.new.until("ned has it", |new| new.recipients() == [NED]).await?;
    post.node.set_owner("ann", "old");
    post.until_empty().await?;
    assert_eq!(post.old.recipients(), [ANN]);
    assert_eq!(post.new.recipients(), [NED], "who had it does not get it again");
    Ok(())
}

#[tokio::test]
async fn a_known_recipient_whose_owner_is_away_is_kept_until_it_is_back() -> Result<()> {
    let manners = Manners::default().but("(greeting)", Answer::Once("421 4.3.2 Not now"));
    let post = Post::set(manners, Manners::default()).await?;
    let reply = post.send(&[ANN]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    post.until_empty().await?;
    assert_eq!(post.old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_recipient_without_a_row_is_not_kept_for_an_owner_who_cannot_be_asked() -> Result<()> {
    let manners = Manners::default().but("(greeting)", Answer::CloseWith("421 4.3.2 Not now"));
    let post = Post::set(manners, Manners::default()).await?;
    post.node.set_domain(Some("old"));
    let reply = post.send(&["unknown@example.org"]).await?.to_string();
    assert!(reply.starts_with("451 4.4.1 "), "{reply}");
    assert_eq!(post.queued(), 0);
    Ok(())
}

#[tokio::test]
async fn who_is_put_off_is_kept_when_another_has_the_message() -> Result<()> {
    let old = Manners::default().but("(verdict)", Answer::Once(FULL));
    let post = Post::set(old, Manners::default()).await?;
    let reply = post.send(&[ANN, NED]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    assert_eq!((post.files(), post.new.recipients()), (1, vec![NED.to_owned()]));
    // It is tried again later; a flip does not wait for that.
    post.node.set_owner("ann", "new");
    post.until_empty().await?;
    assert_eq!(post.new.recipients(), [NED, ANN]);
    assert_eq!(post.old.messages().len(), 1, "only the one that was put off");
    Ok(())
}

#[tokio::test]
async fn lmtps_reply_for_each_recipient_counts_for_that_one_only() -> Result<()> {
    let old = Manners::lmtp().but("(verdict) <ben@", Answer::Say(FULL));
    let post = Post::set(old, Manners::default()).await?;
    assert!(post.send(&[ANN, BEN]).await?.is_positive());
    post.node.set_owner("ben", "new");
    post.until_empty().await?;
    assert_eq!(post.new.recipients(), [BEN]);
    Ok(())
}

#[tokio::test]
async fn refusals_alone_are_the_senders_and_nothing_is_kept() -> Result<()> {
    for (line, expected) in [(FULL, "452 4.2.2 "), ("554 5.7.1 Spam", "554 5.7.1 ")] {
        let manners = || Manners::default().but("(verdict)", Answer::Say(line));
        let post = Post::set(manners(), manners()).await?;
        let reply = post.send(&[ANN, NED]).await?.to_string();
        assert!(reply.starts_with(expected), "{reply}");
        assert_eq!((post.queued(), post.files()), (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_before_the_end_has_nothing_and_gets_it_again_at_once() -> Result<()>
{
    let manners = Manners::default().but("(content)", Answer::CloseOnce);
    let post = Post::set(manners, Manners::default()).await?;
    // More than the sockets take on the way.
    let large = smtp::message(&format!("{}\r\n", "x".repeat(98)).repeat(200_000));
    let reply = smtp::send(post.node.address, SENDER, &[ANN], &large).await?;
    assert!(reply.is_positive(), "{reply}");
    post.until_empty().await?;
    assert_eq!(post.old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_after_the_end_may_have_it_and_is_not_asked_again_at_once()
-> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::CloseOnce);
    let post = Post::set(manners, Manners::default()).await?;
    let reply = post.send(&[ANN]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    // Another message shows that the owner answers again, and still it is left alone.
    assert!(post.send(&[BEN]).await?.is_positive());
    assert_eq!((post.queued(), post.old.messages().len()), (1, 2));
    // Whoever owns the account now cannot have it.
    post.node.set_owner("ann", "new");
    post.until_empty().await?;
    assert_eq!(post.new.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn recipients_that_come_to_be_in_doubt_one_after_the_other_are_all_kept() -> Result<()> {
    let manners = || Manners::default().but("(verdict)", Answer::CloseOnce);
    let post = Post::set(manners(), manners()).await?;
    let reply = post.send(&[ANN, BEN, NED]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    assert_eq!(post.files(), 1);
    // Whoever owns them now cannot have it.
    post.node.set_owner("ann", "new");
    post.node.set_owner("ben", "new");
    post.node.set_owner("ned", "old");
    post.until_empty().await?;
    let (mut old, mut new) = (post.old.recipients(), post.new.recipients());
    old.sort();
    new.sort();
    // What each had read before it hung up counts, too.
    let all = [ANN, BEN, NED].map(str::to_owned).to_vec();
    assert_eq!((old, new), (all.clone(), all));
    Ok(())
}

#[tokio::test]
async fn a_client_is_not_kept_waiting_by_a_slow_owner_whose_late_yes_counts() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut post = Post::set_with(manners, Manners::default(), impatient()).await?;
    let reply = post.send(&[ANN]).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, queued"), "{reply}");
    assert_eq!(post.files(), 1);
    let asked = post.old.asked().await?;
    assert!(asked.say("250 2.0.0 Ok"));
    post.until_empty().await?;
    assert_eq!(post.old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_late_yes_after_a_flip_does_not_count_and_the_new_owner_gets_the_message() -> Result<()> {
    for settings in [Settings::default(), impatient()] {
        let waits = settings.rules.patience > Duration::from_secs(1);
        let manners = Manners::default().but("(verdict)", Answer::Ask);
        let mut post = Post::set_with(manners, Manners::default(), settings).await?;
        let mut client = post.envelope(&[ANN]).await?;
        say_message(&mut client).await?;
        let asked = post.old.asked().await?;
        if !waits {
            assert!(client.reply().await?.is_positive());
        }
        post.node.set_owner("ann", "new");
        post.node.applied().await?;
        // Applied, so it is in the spool or with the new owner, and the connection is closed.
        post.old.until("it is hung up on", |old| old.connections()[0].closed).await?;
        asked.say("250 2.0.0 Too late");
        if waits {
            assert!(client.reply().await?.is_positive());
        }
        post.until_empty().await?;
        assert_eq!(post.new.recipients(), [ANN]);
    }
    Ok(())
}

#[tokio::test]
async fn a_hold_waits_for_a_delivery_only_until_it_is_in_the_spool() -> Result<()> {
    let manners = || Manners::default().but("(verdict)", Answer::Ask);
    let mut post = Post::set(manners(), manners()).await?;
    let mut client = post.envelope(&[ANN, NED]).await?;
    say_message(&mut client).await?;
    let (_old, new) = (post.old.asked().await?, post.new.asked().await?);
    post.node.hold("ann", "old");
    // Ned's owner has not answered yet, and the fence does not wait for it.
    post.node.applied().await?;
    assert_eq!(post.files(), 1);
    assert!(new.say("250 2.0.0 Ok"));
    assert!(client.reply().await?.is_positive());
    post.node.set_owner("ann", "new");
    let asked = post.new.asked().await?;
    assert!(asked.say("250 2.0.0 Ok"));
    post.until_empty().await?;
    assert_eq!(post.new.recipients(), [NED, ANN]);
    Ok(())
}

#[tokio::test]
async fn a_flip_of_one_recipient_does_not_double_the_message_of_another() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut post = Post::set(manners, Manners::default()).await?;
    let mut client = post.envelope(&[ANN, BEN]).await?;
    say_message(&mut client).await?;
    let asked = post.old.asked().await?;
    post.node.set_owner("ann", "new");
    assert!(asked.say("250 2.0.0 Ok"));
    assert!(client.reply().await?.is_positive());
    post.until_empty().await?;
    assert_eq!(post.old.messages().len(), 1, "ben has it, and his owner's yes counts");
    assert_eq!(post.new.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn what_is_in_the_spool_is_delivered_after_a_restart() -> Result<()> {
    let post = Post::set(Manners::default(), Manners::default()).await?;
    post.node.hold("ann", "old");
    assert!(post.send(&[ANN]).await?.is_positive());
    let Post { stage: Stage { old, new, node }, place } = post;
    assert_eq!(node.shut_down(Duration::from_secs(5)).await, 0);
    drop(node);
    let backends = [old.configured(), new.configured()];
    let node = GatewayNode::start_with_spool(backends, Settings::default(), place.path()).await?;
    populate(&node);
    old.until("ann has it", |old| old.recipients() == [ANN]).await?;
    until("its file is gone", || (files(place.path(), "messages") == 0).then_some(())).await
}

#[tokio::test]
async fn a_queued_message_whose_account_is_gone_becomes_a_dead_letter() -> Result<()> {
    let post = Post::set(Manners::default(), Manners::default()).await?;
    post.node.hold("ann", "old");
    assert!(post.send(&[ANN]).await?.is_positive());
    post.node.change(&shared::ownership::Change::Account(ANN.into(), None));
    post.until_empty().await?;
    assert_eq!(files(post.place.path(), "dead"), 1);
    Ok(())
}

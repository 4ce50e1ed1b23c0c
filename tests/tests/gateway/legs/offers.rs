//! What the owners offer, all of them.

use mx_gateway::delivery::Offers;
use shared::backend::Backends;
use shared::lifecycle::Lifecycle;

use super::*;

fn offering(keywords: &[&'static str]) -> Manners {
    Manners { keywords: keywords.to_vec(), ..Manners::default() }
}

#[tokio::test]
async fn only_what_all_owners_were_heard_to_have_is_there() -> Result<()> {
    let stage =
        Stage::set_with(offering(&["8BITMIME", "DSN", "SMTPUTF8"]), offering(&["8BITMIME", "dsn"]))
            .await?;
    let offers = &stage.node.offers;
    assert!(!offers.all_have_dsn(), "nobody was heard yet");
    assert_eq!(stage.send(&[ANN]).await?.code, 250);
    assert!(!offers.all_have_dsn(), "one was not heard yet");
    assert_eq!(stage.send(&[NED]).await?.code, 250);
    assert!(offers.all_have_dsn());
    assert!(!offers.all_have_smtputf8(), "one does not have it");
    Ok(())
}

#[tokio::test]
async fn owners_are_asked_what_they_offer_without_a_transaction() -> Result<()> {
    let old = Sink::start("old", offering(&["8BITMIME", "DSN", "LIMITS RCPTMAX=20"])).await?;
    let away = Sink::start("new", Manners::default().but("(greeting)", Answer::Close)).await?;
    let backends: Backends = [old.configured()].into_iter().collect();
    let offers = Offers::new(&backends, 1024);
    let lifecycle = Lifecycle::default();
    offers.watch(&lifecycle, &backends, "mx.example.org").known().await;
    assert!(offers.all_have_dsn());
    let name = &old.configured().name;
    assert_eq!(offers.of(name).and_then(|offered| offered.rcpt_max), Some(20));
    old.until("it says goodbye", |old| old.heard("QUIT").len() == 1).await?;
    assert_eq!(old.connections()[0].lines, ["EHLO mx.example.org", "QUIT"]);
    // One that does not answer has nothing, whatever the other has.
    let backends: Backends = [old.configured(), away.configured()].into_iter().collect();
    let offers = Offers::new(&backends, 1024);
    offers.watch(&lifecycle, &backends, "mx.example.org").known().await;
    assert!(!offers.all_have_dsn() && offers.of(name).is_some());
    Ok(())
}

//! From a granted login to the end of its session.

use std::pin::{Pin, pin};
use std::sync::Arc;

use shared::backend::LoginProtocol;
use shared::listener::Seat;
use shared::ownership::{self, Name, Owner};
use shared::wire::{AnswerGrace, JoinRules, Joined, Wire, join};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::record::Record;
use super::route::Granted;

/// Joins the two connections in a task of their own; all that the login needed has been freed by then.
pub(super) fn join_sessions(cx: &Context, session: &str, wire: Wire, seat: Seat, granted: Granted) {
    let Granted { attached, owner, place, client } = granted;
    let rules = JoinRules {
        idle: cx.rules.idle_timeout,
        kick: place.token().clone(),
        kick_grace: cx.rules.kick_grace,
        answer: answer_grace(cx, &owner),
        end: cx.lifecycle.end().clone(),
        watch: attached.watch,
    };
    let record = Box::new(Record {
        session: session.into(),
        protocol: cx.protocol.kind,
        client,
        owner,
        began: Instant::now(),
    });
    // In a box: an async block keeps what it owns and awaits twice, and this is what a session costs.
    let joined: Pin<Box<dyn Future<Output = Joined> + Send>> = match place.other_token() {
        None => Box::pin(join(wire, attached.wire, rules)),
        Some(other) => {
            let tokens = [place.token().clone(), other.clone()];
            Box::pin(join_of_two_accounts(wire, attached.wire, rules, tokens))
        }
    };
    cx.lifecycle.spawn("join", async move {
        let joined = joined.await;
        // Both legs are closed: only now the session is not busy any more (P5).
        drop(place);
        record.write(&joined);
        drop(seat);
    });
}

/// The rare session that may be about either of two accounts ends when either of them moves.
async fn join_of_two_accounts(
    client: Wire,
    backend: Wire,
    rules: JoinRules,
    [one, other]: [CancellationToken; 2],
) -> Joined {
    let kick = CancellationToken::new();
    let mut joined = pin!(join(client, backend, JoinRules { kick: kick.clone(), ..rules }));
    tokio::select! {
        joined = &mut joined => return joined,
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
    kick.cancel();
    joined.await
}

/// A message that is cut off before its answer comes twice; the other protocols lose nothing. A hold waits
/// no longer than for any session, nor does a node whose lease has ended.
fn answer_grace(cx: &Context, owner: &Owner) -> Option<Box<AnswerGrace>> {
    match cx.protocol.kind {
        LoginProtocol::Submission => {}
        LoginProtocol::Imap | LoginProtocol::Pop3 | LoginProtocol::ManageSieve => return None,
    }
    let (ownership, account) = (Arc::clone(&cx.ownership), owner.account.clone());
    let hurry =
        move || match Name::of_login(account.as_bytes()).map(|name| ownership.look_up(&name)) {
            Ok(Err(ownership::Refusal::Stale | ownership::Refusal::Held { .. })) | Err(_) => true,
            Ok(Ok(_) | Err(_)) => false,
        };
    Some(Box::new(AnswerGrace { longest: cx.rules.data_grace, hurry: Box::new(hurry) }))
}

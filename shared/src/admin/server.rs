//! The process's side: one task for each command, up to a limit, each wait bounded.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::queue::{Adopted, Entry, Summary};
use super::{
    ANSWERED_WITHIN, ASKED_WITHIN, Answer, Call, MAX_COMMANDS, MAX_PIECE, MAX_REQUEST, Refusal,
    TAKEN_WITHIN, line,
};
use crate::door::{Door, Peer};
use crate::lifecycle::Lifecycle;

/// Carries requests out.
pub trait Handler: Debug + Send + Sync + 'static {
    /// Answers one request. Returns how many messages were shown or changed. It may be dropped at any await
    /// when the process ends.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], which the command is told.
    fn handle(
        &self,
        call: &Call,
        answers: &mut Answers,
    ) -> impl Future<Output = Result<u64, Refusal>> + Send;
}

/// Where the lines of one answer go.
#[derive(Debug)]
pub struct Answers(BufWriter<OwnedWriteHalf>);

impl Answers {
    /// Says a message.
    ///
    /// # Errors
    ///
    /// [`Refusal::Gone`].
    pub async fn entry(&mut self, entry: Entry) -> Result<(), Refusal> {
        self.say(&Answer::Entry(Box::new(entry))).await
    }

    /// Says what there is in all.
    ///
    /// # Errors
    ///
    /// [`Refusal::Gone`].
    pub async fn summary(&mut self, summary: Summary) -> Result<(), Refusal> {
        self.say(&Answer::Summary(Box::new(summary))).await
    }

    /// Says what was adopted.
    ///
    /// # Errors
    ///
    /// [`Refusal::Gone`].
    pub async fn adopted(&mut self, adopted: Adopted) -> Result<(), Refusal> {
        self.say(&Answer::Adopted(adopted)).await
    }

    /// Says more of a message, however much that is.
    ///
    /// # Errors
    ///
    /// [`Refusal::Gone`].
    pub async fn octets(&mut self, octets: &[u8]) -> Result<(), Refusal> {
        for piece in octets.chunks(MAX_PIECE) {
            self.say(&Answer::Octets(piece.to_vec())).await?;
        }
        Ok(())
    }

    async fn say(&mut self, answer: &Answer) -> Result<(), Refusal> {
        let mut line = serde_json::to_vec(answer)
            .map_err(|error| Refusal::Failed { why: error.to_string() })?;
        line.push(b'\n');
        let said = timeout(TAKEN_WITHIN, self.0.write_all(&line)).await;
        said.ok().and_then(Result::ok).ok_or(Refusal::Gone)
    }

    async fn end(mut self, last: &Answer) -> Result<(), Refusal> {
        self.say(last).await?;
        let ended = timeout(TAKEN_WITHIN, self.0.shutdown()).await;
        ended.ok().and_then(Result::ok).ok_or(Refusal::Gone)
    }
}

/// Answers at this door until the process stops; what has begun by then may finish within the grace.
pub fn serve<H: Handler>(door: Door, lifecycle: &Lifecycle, handler: Arc<H>) {
    let (stop, of_commands) = (lifecycle.stop().clone(), lifecycle.clone());
    let places = Arc::new(Semaphore::new(MAX_COMMANDS));
    lifecycle.spawn_chore("admin", async move {
        while let Some(stream) = stop.run_until_cancelled(door.accept()).await {
            let place = Arc::clone(&places).try_acquire_owned().ok();
            let (handler, end) = (Arc::clone(&handler), of_commands.end().clone());
            // A refusal is said in its own task, too: nobody waits for one who does not read.
            of_commands.spawn("admin command", async move {
                let answered = answer(stream, place.is_some(), &*handler);
                if let Some(Err(error)) = end.run_until_cancelled(answered).await {
                    tracing::debug!(%error, "a command was not answered to its end");
                }
            });
        }
    });
}

async fn answer(
    stream: UnixStream,
    has_place: bool,
    handler: &impl Handler,
) -> Result<(), Refusal> {
    let peer = Peer::of(&stream).map_err(|error| Refusal::Failed { why: error.to_string() })?;
    let (reader, writer) = stream.into_split();
    let mut answers = Answers(BufWriter::new(writer));
    let refused = if !peer.is_root() && !peer.is_us() {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "another user asks at the admin socket");
        Some(Refusal::Denied { uid: peer.uid })
    } else if !has_place {
        Some(Refusal::TooMany)
    } else {
        None
    };
    if let Some(refusal) = refused {
        return answers.end(&Answer::Refused(refusal)).await;
    }
    let asked = timeout(ASKED_WITHIN, line(&mut BufReader::new(reader), MAX_REQUEST)).await;
    let asked = asked.ok().and_then(Result::ok).flatten().ok_or(Refusal::Gone)?;
    let carried_out = match serde_json::from_slice::<Call>(&asked) {
        Ok(call) => carry_out(&call, peer, handler, &mut answers).await,
        Err(error) => Err(Refusal::NotUnderstood { why: error.to_string() }),
    };
    answers.end(&carried_out.map_or_else(Answer::Refused, Answer::Done)).await
}

async fn carry_out(
    call: &Call,
    peer: Peer,
    handler: &impl Handler,
    answers: &mut Answers,
) -> Result<u64, Refusal> {
    let carried_out = timeout(ANSWERED_WITHIN, handler.handle(call, answers)).await;
    let carried_out = carried_out.unwrap_or_else(|_| {
        let why = format!("not carried out within {} minutes", ANSWERED_WITHIN.as_secs() / 60);
        Err(Refusal::Failed { why })
    });
    if call.request.changes() {
        let (Peer { uid, pid }, Call { by, why, request }) = (peer, call);
        match &carried_out {
            Ok(messages) => {
                tracing::info!(uid, pid, by, why, ?request, messages, "changed by an operator");
            }
            Err(error) => {
                tracing::warn!(uid, pid, by, why, ?request, %error, "not changed by an operator");
            }
        }
    }
    carried_out
}

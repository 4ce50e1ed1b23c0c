//! What operators ask of the queue (`mailshift queue`), carried out by whatever is a [`Queue`].

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shared::admin::queue::{Adopted, Entry, Filter, Place, Request, Selector, Summary};
use shared::admin::{Answers, Call, Handler, Refusal, SOCKET, serve};
use shared::door::Door;
use shared::lifecycle::Lifecycle;

/// Messages that are kept, as operators see and change them. Every call may be dropped at any await when the
/// process ends; what was returned as done is durable.
pub trait Queue: Debug + Send + Sync + 'static {
    /// Says the messages that `filter` takes, the oldest first, up to its limit. Returns how many. None is
    /// an answer like others.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    fn list(
        &self,
        place: Place,
        filter: &Filter,
        answers: &mut Answers,
    ) -> impl Future<Output = Result<u64, Refusal>> + Send;

    /// A message; `None` when it is not there.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    fn show(
        &self,
        place: Place,
        id: &str,
    ) -> impl Future<Output = Result<Option<Entry>, Refusal>> + Send;

    /// Says a message's octets as they would be delivered, piece by piece. False when it is not there.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    fn cat(
        &self,
        place: Place,
        id: &str,
        answers: &mut Answers,
    ) -> impl Future<Output = Result<bool, Refusal>> + Send;

    /// How much there is.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    fn summary(&self) -> impl Future<Output = Result<Summary, Refusal>> + Send;

    /// Changes the messages that `which` takes, in the words of `why` where a reason is kept with them. Returns
    /// how many were there; nothing is done twice by asking twice.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; messages before the one that failed stay changed.
    fn change(
        &self,
        change: Change,
        which: &Selector,
        why: &str,
    ) -> impl Future<Output = Result<u64, Refusal>> + Send;

    /// Takes over all messages of another spool: a state directory, or the spool in it. Goes on when nobody
    /// waits for it any more.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotAdopted`]: it is none, its process lives, or this process does not deliver any more.
    fn adopt(
        self: &Arc<Self>,
        directory: &Path,
    ) -> impl Future<Output = Result<Adopted, Refusal>> + Send;
}

/// What becomes of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Tried at once.
    Retry,
    /// Not tried, and not expired, until thawed.
    Freeze,
    /// That ends.
    Thaw,
    /// Deleted, here.
    Drop(Place),
    /// From the dead letters back into the queue.
    Release,
}

/// Answers requests by a queue.
#[derive(Debug)]
struct Desk<Q>(Arc<Q>);

/// Answers `mailshift queue` at a socket in this directory, until the process stops. While another process
/// serves in this one's place it goes on, as what is in hand does.
///
/// # Errors
///
/// There can be no socket. Mail goes on without it.
pub fn open<Q: Queue>(
    directory: &Path,
    lifecycle: &Lifecycle,
    queue: Arc<Q>,
) -> Result<(), io::Error> {
    serve(Door::open(directory, SOCKET)?, lifecycle, Arc::new(Desk(queue)));
    Ok(())
}

impl<Q: Queue> Handler for Desk<Q> {
    async fn handle(&self, call: &Call, answers: &mut Answers) -> Result<u64, Refusal> {
        let Self(queue) = self;
        match &call.request {
            Request::List { place, filter } => queue.list(*place, filter, answers).await,
            Request::Show { place, id } => {
                let entry = queue.show(*place, id).await?.ok_or_else(|| none(id))?;
                answers.entry(entry).await.map(|()| 1)
            }
            Request::Cat { place, id } => {
                let found = queue.cat(*place, id, answers).await?;
                if found { Ok(1) } else { Err(none(id)) }
            }
            Request::Summary => {
                let summary = queue.summary().await?;
                let messages = summary.messages;
                answers.summary(summary).await.map(|()| messages)
            }
            Request::Retry { which } => self.change(Change::Retry, which, call).await,
            Request::Freeze { which } => self.change(Change::Freeze, which, call).await,
            Request::Thaw { which } => self.change(Change::Thaw, which, call).await,
            Request::Drop { place, which } => self.change(Change::Drop(*place), which, call).await,
            Request::Release { which } => self.change(Change::Release, which, call).await,
            Request::Adopt { directory } => {
                let adopted = queue.adopt(directory).await?;
                let messages = adopted.messages.saturating_add(adopted.dead);
                answers.adopted(adopted).await.map(|()| messages)
            }
        }
    }
}

impl<Q: Queue> Desk<Q> {
    async fn change(&self, change: Change, which: &Selector, call: &Call) -> Result<u64, Refusal> {
        match (self.0.change(change, which, &call.why).await?, which) {
            (0, Selector::Id(id)) => Err(none(id)),
            (messages, _) => Ok(messages),
        }
    }
}

fn none(id: &str) -> Refusal {
    Refusal::NoSuchMessage { id: id.to_owned() }
}

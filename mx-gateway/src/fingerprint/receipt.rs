//! Whether a message's sender knows what became of it, and what is to be remembered if not.
//!
//! Two write here: whoever answers for the message says what became of each recipient, and the client's session
//! whether the client went away before it had its reply. What counts for a retry follows from both:
//!
//! | recipient | the client has gone without a word, or may come again | otherwise |
//! |---|---|---|
//! | nothing is settled | in hand: an identical message is put off | after a reply that is not 2yz: in hand |
//! | it is done, or ours | remembered | after a reply that is not 2yz: remembered; else nothing |
//! | it is the sender's | nothing: the retry is delivered | nothing |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{Fingerprint, Fingerprints};

/// What a reply leaves a recipient with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The sender was told yes for it: nothing is left for the sender to do.
    Accepted,
    /// It has the message, and the sender was told something else: a retry would double it.
    Doubled,
    /// It may still get the message, and the sender was told something else.
    Open,
    /// It has not got the message, as far as anybody knows, and the sender comes again or gives up.
    Senders,
}

/// Of one message.
#[derive(Debug)]
pub struct Receipt {
    store: Arc<Fingerprints>,
    id: Uuid,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The client has gone, and may not know.
    unheard: bool,
    /// It was answered, or nobody will any more.
    answered: bool,
    recipients: Vec<Recipient>,
}

#[derive(Debug)]
struct Recipient {
    print: Fingerprint,
    left: Left,
    told: Told,
}

/// What the store knows of a recipient by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    InHand,
    Done,
}

impl Receipt {
    /// For a message with these fingerprints, one for each recipient, in their order.
    pub fn new(store: &Arc<Fingerprints>, id: Uuid, prints: &[Fingerprint]) -> Arc<Self> {
        let recipient = |print: &Fingerprint| Recipient {
            print: *print,
            left: Left::Open,
            told: Told::Nothing,
        };
        let recipients = prints.iter().map(recipient).collect();
        let state = Mutex::new(State { unheard: false, answered: false, recipients });
        Arc::new(Self { store: Arc::clone(store), id, state })
    }

    /// The client has gone, and may not have heard its reply.
    pub fn unheard(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.unheard, true) {
            self.publish(&mut state);
        }
    }

    /// What the reply leaves each recipient with, in their order. The client is told after this.
    pub fn answered(&self, left: impl IntoIterator<Item = Left>) {
        let mut state = self.lock();
        state.answered = true;
        state.recipients.iter_mut().zip(left).for_each(|(known, left)| known.left = left);
        self.publish(&mut state);
    }

    /// A recipient that was open when the client was answered has it now, or has not got it.
    pub fn settled(&self, place: usize, has_it: bool) {
        let mut state = self.lock();
        if !state.answered {
            return;
        }
        if let Some(known) = state.recipients.get_mut(place).filter(|one| one.left == Left::Open) {
            known.left = if has_it { Left::Doubled } else { Left::Senders };
            self.publish(&mut state);
        }
    }

    /// Nobody will settle anything any more.
    pub fn ended(&self) {
        let mut state = self.lock();
        state.answered = true;
        let open = state.recipients.iter_mut().filter(|known| known.left == Left::Open);
        open.for_each(|known| known.left = Left::Senders);
        self.publish(&mut state);
    }

    /// Tells the store what follows.
    fn publish(&self, state: &mut State) {
        let State { unheard, answered, recipients } = state;
        for Recipient { print, left, told } in recipients {
            let to_tell = match left {
                Left::Accepted if *unheard => Told::Done,
                Left::Doubled => Told::Done,
                Left::Open if *unheard || *answered => Told::InHand,
                Left::Accepted | Left::Open | Left::Senders => Told::Nothing,
            };
            let before = std::mem::replace(told, to_tell);
            match (before, to_tell) {
                (Told::Nothing, Told::Nothing) | (Told::Done, _) | (Told::InHand, Told::InHand) => {
                }
                (Told::Nothing, Told::InHand) => self.store.take_in_hand(*print, self.id),
                (Told::Nothing, Told::Done) => self.store.remember(*print, self.id),
                (Told::InHand, Told::Nothing) => self.store.let_go(*print, self.id),
                (Told::InHand, Told::Done) => {
                    // In this order, so that it is never neither.
                    self.store.remember(*print, self.id);
                    self.store.let_go(*print, self.id);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        // Where nobody came to answer for the message.
        self.ended();
    }
}

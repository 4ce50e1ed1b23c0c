//! A message in chunks (RFC 3030): BDAT, and the octets that follow it.
//!
//! Chunks are counted, so what is in them is never read as commands, whether they are wanted or not. One
//! that is refused is read to its end before it is answered, since the client may not wait for the answer.

use shared::dialogue::{Input, Output, Step, Violation};
use shared::smtp::command::Chunk;
use shared::smtp::data::ChunkDecoder;
use shared::smtp::reply::Reply;

use super::{Asked, Event, Named, PIECE, Session, State, say};

/// Octets of chunks that are read in order to be refused, whatever the limit of messages is; twice that limit
/// where it is higher. A client that says more goes on and on.
const MAX_UNWANTED: u64 = 1024 * 1024;

/// A message that comes in chunks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    named: Named,
    decoder: ChunkDecoder,
    /// Octets of all chunks so far, the one under way included.
    octets: u64,
    /// The chunk under way, and what of it is still to come.
    under_way: Option<(Chunk, u64)>,
}

/// A chunk that was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwanted {
    left: u64,
    refusal: Reply,
    /// How often it is said.
    times: usize,
    /// It was the client's mistake.
    bad: bool,
    then: Box<State>,
}

impl Chunks {
    /// A message that begins with this chunk.
    pub(super) fn new(named: Named, chunk: Chunk) -> Self {
        let decoder = ChunkDecoder::default();
        Self { named, decoder, octets: chunk.octets, under_way: Some((chunk, chunk.octets)) }
    }

    /// True while octets of a chunk are taken, and no commands.
    pub(super) fn is_within(&self) -> bool {
        self.under_way.is_some()
    }
}

impl Unwanted {
    /// A chunk that is refused although the client could not know.
    pub(super) fn new(chunk: Chunk, refusal: Reply, then: State) -> Self {
        Self { left: chunk.octets, refusal, times: 1, bad: false, then: Box::new(then) }
    }
}

impl Session {
    /// BDAT. Between two chunks of a message nothing was asked of the driver, so it is not asked again.
    pub(super) fn chunk(&mut self, chunk: Chunk, out: &mut Output) -> Option<Step<Event>> {
        if !self.terms.chunking {
            // The octets behind it are no commands; whoever sends them has not listened.
            self.bid_farewell(&Reply::new(502, (5, 1), "CHUNKING is not offered"), out);
            return Some(Step::Close);
        }
        let too_large = || Reply::new(552, (3, 4), "Message too large");
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Chunks(mut chunks) => {
                chunks.octets = chunks.octets.saturating_add(chunk.octets);
                if chunks.octets > self.terms.max_size {
                    return self.fail(chunks.named, chunk, too_large(), out);
                }
                if chunk.octets == 0 && !chunk.last && self.is_tired() {
                    return Some(self.hang_up(out));
                }
                chunks.under_way = Some((chunk, chunk.octets));
                self.state = State::Chunks(chunks);
                None
            }
            State::Open(named) if named.accepted == 0 => {
                let bad = !named.postponed;
                let refusal = self.no_recipients(named);
                let unwanted = Unwanted::new(chunk, refusal, State::Open(named));
                self.refuse(Unwanted { bad, ..unwanted }, out)
            }
            State::Open(named) if chunk.octets > self.terms.max_size => {
                self.fail(named, chunk, too_large(), out)
            }
            State::Open(named) if self.extended => {
                self.state = State::Asked(Asked::Chunk(named, chunk));
                Some(Step::Event(Event::Data))
            }
            State::Failed(named) => {
                // More of a pipelined message: not the client's mistake, unless it never ends.
                if self.is_tired() {
                    return Some(self.hang_up(out));
                }
                let refusal = Reply::new(503, (5, 1), "A chunk was refused, say RSET first");
                let times = self.times(named, chunk);
                let unwanted = Unwanted::new(chunk, refusal, State::Failed(named));
                self.refuse(Unwanted { times, ..unwanted }, out)
            }
            state => {
                let words = match state {
                    State::Open(_) => "Say EHLO first",
                    _ => "Say MAIL and RCPT first",
                };
                let refusal = Reply::new(503, (5, 1), words);
                let unwanted = Unwanted::new(chunk, refusal, state);
                self.refuse(Unwanted { bad: true, ..unwanted }, out)
            }
        }
    }

    /// Refuses a chunk, and with it the transaction, which its driver is told.
    fn fail(
        &mut self,
        named: Named,
        chunk: Chunk,
        refusal: Reply,
        out: &mut Output,
    ) -> Option<Step<Event>> {
        let times = self.times(named, chunk);
        let unwanted = Unwanted::new(chunk, refusal, State::Failed(named));
        self.refuse(Unwanted { times, ..unwanted }, out).or(Some(Step::Event(Event::Reset)))
    }

    fn refuse(&mut self, unwanted: Unwanted, out: &mut Output) -> Option<Step<Event>> {
        self.unwanted = self.unwanted.saturating_add(unwanted.left);
        if self.unwanted > self.terms.max_size.saturating_mul(2).max(MAX_UNWANTED) {
            self.bid_farewell(&unwanted.refusal, out);
            return Some(Step::Close);
        }
        self.state = State::Unwanted(unwanted);
        None
    }

    fn hang_up(&mut self, out: &mut Output) -> Step<Event> {
        self.bid_farewell(&Reply::new(421, (7, 0), "Too many commands without a message"), out);
        Step::Close
    }

    /// How often the answer to a chunk is said: the last one's is the message's.
    fn times(&self, named: Named, chunk: Chunk) -> usize {
        if chunk.last { self.replies_to(named) } else { 1 }
    }

    /// Octets of a chunk.
    pub(super) fn take_chunk(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Option<Step<Event>> {
        let State::Chunks(chunks) = &mut self.state else { return None };
        let (chunk, left) = chunks.under_way.as_mut()?;
        if *left == 0 {
            let chunk = *chunk;
            chunks.under_way = None;
            if chunk.last {
                let (named, flawed) = (chunks.named, chunks.decoder.is_flawed_at_end());
                return Some(self.end_of_data(named, flawed));
            }
            say(out, &Reply::new(250, (0, 0), format!("{} octets received", chunk.octets)));
            return None;
        }
        if input.is_empty() {
            return Some(Step::NeedInput);
        }
        let unread = input.unread();
        let here = PIECE.min(unread.len()).min(usize::try_from(*left).unwrap_or(usize::MAX));
        let mut content = Vec::with_capacity(here.saturating_add(1));
        chunks.decoder.decode(unread.get(..here).unwrap_or_default(), &mut content);
        input.consume(here);
        *left = left.saturating_sub(here as u64);
        Some(Step::Event(Event::Body(content)))
    }

    /// Octets of a chunk that was refused; behind them, the refusal.
    pub(super) fn take_unwanted(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let State::Unwanted(unwanted) = &mut self.state else { return Ok(None) };
        if unwanted.left > 0 {
            if input.is_empty() {
                return Ok(Some(Step::NeedInput));
            }
            let here = input.len().min(usize::try_from(unwanted.left).unwrap_or(usize::MAX));
            input.consume(here);
            unwanted.left = unwanted.left.saturating_sub(here as u64);
            return Ok(None);
        }
        let State::Unwanted(Unwanted { refusal, times, bad, then, .. }) =
            std::mem::replace(&mut self.state, State::Idle)
        else {
            return Ok(None);
        };
        self.state = *then;
        if bad {
            return self.bad(&refusal, b"", out).map(|()| None);
        }
        for _ in 0..times {
            say(out, &refusal);
        }
        if refusal.code() == 421 {
            self.state = State::Closing;
        }
        Ok(None)
    }
}

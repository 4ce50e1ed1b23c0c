//! Moving octets between a wire's socket and its queues, as far as both go without waiting.
//!
//! All of it polls: the scratch that is read into and written from is this thread's only until the
//! poll returns.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::scratch::{MAX_PARTIAL, Outgoing, READ, Reading, Scratch, lend};
use super::{MAX_UNREAD, Wire, WireError};

/// Octets of records that wait and may be copied to go out together with what is said next.
const TOGETHER: usize = 4 * 1024;

impl Wire {
    /// Handshakes as far as the peer goes along.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        loop {
            if self.is_secured() {
                // Peers wait for our Finished, but not for tickets.
                if !self.tls.as_ref().is_some_and(|tls| tls.only_tickets_wait()) {
                    ready!(self.poll_pending(cx))?;
                }
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return Poll::Ready(Err(WireError::Closed));
            }
            if let Poll::Ready(result) = self.poll_flush(cx) {
                result?;
            }
            // Plaintext that came with the peer's Finished is in the last of these reads.
            ready!(lend(|scratch| self.poll_input(cx, scratch)))?;
        }
    }

    /// Reads at least one octet into `input`; 0 at the peer's end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, WireError>> {
        let unwritten = match self.poll_flush(cx) {
            Poll::Ready(result) => result.err(),
            Poll::Pending => None,
        };
        loop {
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if self.input.len() >= MAX_UNREAD {
                return Poll::Ready(Err(WireError::InputFull));
            }
            match lend(|scratch| self.poll_input(cx, scratch)) {
                Poll::Ready(Ok(0)) => {}
                // What the peer said before it stopped reading still counts.
                Poll::Pending if unwritten.is_some() => {
                    return Poll::Ready(unwritten.map_or(Ok(0), Err));
                }
                other => return other,
            }
        }
    }

    /// Reads into `input` while a write is blocked, as far as there is room.
    pub(super) fn poll_read_on(&mut self, cx: &mut Context<'_>) -> Result<(), WireError> {
        while !self.ended && self.input.len() < MAX_UNREAD {
            match lend(|scratch| self.poll_input(cx, scratch)) {
                Poll::Ready(result) => drop(result?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_input(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<usize, WireError>> {
        let room = MAX_UNREAD.saturating_sub(self.input.len());
        let Scratch { reading, outgoing } = scratch;
        let plain = ready!(self.poll_open(cx, room, reading, outgoing))?;
        self.input.push(plain);
        self.said = self.said.wrapping_add(plain.len() as u64);
        Poll::Ready(Ok(plain.len()))
    }

    /// Reads once, at most `room` octets, and returns the plaintext, which lies in `reading`. None
    /// may come: at the peer's end, or when it sent TLS's own records only.
    pub(super) fn poll_open<'s>(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        reading: &'s mut Reading,
        outgoing: &mut Outgoing,
    ) -> Poll<Result<&'s [u8], WireError>> {
        let Reading { incoming, used, plain } = reading;
        let partial = self.tls.as_ref().map_or(&[][..], |tls| tls.partial());
        let kept = partial.len();
        if kept >= MAX_PARTIAL {
            return Poll::Ready(Err(WireError::InputFull));
        }
        let until = kept.saturating_add(room.clamp(1, READ));
        let Some(space) = incoming.get_mut(kept..until) else { return Poll::Pending };
        let mut buffer = ReadBuf::new(space);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        let filled = kept.saturating_add(count);
        *used = filled.max(*used);
        self.received = self.received.wrapping_add(count as u64);
        if count == 0 {
            self.ended = true;
            return Poll::Ready(Ok(&[]));
        }
        let Some(tls) = &mut self.tls else {
            return Poll::Ready(Ok(incoming.get(..filled).unwrap_or_default()));
        };
        if let Some(front) = incoming.get_mut(..kept) {
            front.copy_from_slice(tls.partial());
        }
        let records = incoming.get_mut(..filled).unwrap_or_default();
        plain.clear();
        let opened = tls.open(records, plain, outgoing);
        self.ended |= tls.peer_closed();
        if let Err(error) = opened {
            // The alert is worth one attempt; the error is what counts.
            let _ = self.poll_pending(cx);
            return Poll::Ready(Err(error.into()));
        }
        Poll::Ready(Ok(plain.octets()))
    }

    /// Writes everything that is queued, as far as the socket takes it. While the handshake lasts,
    /// that is the handshake only.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        loop {
            match &self.tls {
                Some(tls) if tls.is_handshaking() => return self.poll_pending(cx),
                // A few records that wait, such as session tickets, go out together with what is
                // said next.
                Some(tls) if self.output.is_empty() || tls.pending.len() > TOGETHER => {
                    ready!(self.poll_pending(cx))?;
                }
                Some(_) | None => {}
            }
            if self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.tls.is_some() {
                let mut output = std::mem::take(&mut self.output);
                let batch = output.len().min(READ);
                let plain = output.queued().get(..batch).unwrap_or_default();
                let sent = lend(|scratch| self.send(cx, plain, &mut scratch.outgoing));
                output.consume(batch);
                self.output = output;
                sent?;
                ready!(self.poll_pending(cx))?;
            } else {
                let octets = self.output.queued();
                let count = ready!(Pin::new(&mut self.socket).poll_write(cx, octets))?;
                self.output.consume(count);
                self.took(count)?;
            }
        }
    }

    /// Writes the records that wait, as far as the socket takes them.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while let Some(tls) = &mut self.tls {
            if tls.pending.is_empty() {
                break;
            }
            let octets = tls.pending.queued();
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, octets))?;
            tls.pending.consume(count);
            self.took(count)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `plain` behind the records that wait; keeps what the socket does not take.
    pub(super) fn send(
        &mut self,
        cx: &mut Context<'_>,
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), WireError> {
        let Self { socket, tls, output, .. } = self;
        let (octets, rest) = match tls {
            Some(tls) => {
                outgoing.clear();
                outgoing.put(tls.pending.queued());
                tls.pending.clear();
                tls.seal(plain, outgoing)?;
                (outgoing.queued(), &mut tls.pending)
            }
            None => (plain, output),
        };
        if rest.is_empty()
            && let Poll::Ready(count) = Pin::new(socket).poll_write(cx, octets)
        {
            let count = count?;
            rest.push(octets.get(count..).unwrap_or_default());
            return self.took(count);
        }
        rest.push(octets);
        Ok(())
    }

    fn took(&mut self, count: usize) -> Result<(), WireError> {
        if count == 0 {
            return Err(std::io::Error::from(ErrorKind::WriteZero).into());
        }
        self.sent = self.sent.saturating_add(count as u64);
        Ok(())
    }
}

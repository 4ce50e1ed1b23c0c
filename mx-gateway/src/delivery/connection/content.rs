//! A message on its way to an owner, as far as its end and over it (RFC 5321 §4.1.1.4).
//!
//! The last octets are sent apart. Until then the owner cannot have taken the message, whatever fails; from
//! then on, only its answer tells.
//!
//! By BDAT (RFC 3030), as one chunk, a message arrives as it is. DATA carries every message that came by
//! DATA, too; but one that does not end with CR LF gets one there, since there is no end without.

use std::time::Duration;

use futures_util::FutureExt;
use shared::backend::MailProtocol;
use shared::smtp::data::DataEncoder;
use shared::smtp::reply::{Class, Reply};

use super::{Connection, DeliveryError};
use crate::body::Message;

/// Octets of a message that are written at once.
const SENT_AT_ONCE: usize = 32 * 1024;
/// CR LF `.` CR LF: some servers take even a part of it for the end.
const END: usize = 5;

impl Connection {
    /// Asks whether the message may come: 354 when the owner is ready for it. That is its answer to DATA;
    /// BDAT does not ask, so there it is our own, unless the owner has said something or hung up meanwhile.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over, and nothing of the message was sent.
    pub async fn data(&mut self) -> Result<Reply, DeliveryError> {
        if self.chunks() {
            return match self.heard().await? {
                None => Ok(Reply::bare(354, "Ready")),
                Some(reply) => Err(DeliveryError::Unwilling(reply)),
            };
        }
        self.wire.say("DATA\r\n").await?;
        self.reply().await
    }

    /// True where messages go by BDAT.
    fn chunks(&self) -> bool {
        self.chunking && self.offered.chunking
    }

    /// Whether the connection is reset when it is dropped, so that the owner gets nothing more than it has.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub fn discard_on_drop(&mut self, discard: bool) -> Result<(), DeliveryError> {
        Ok(self.wire.discard_on_drop(discard)?)
    }

    /// Sends the message but for its last octets, which [`Self::finish`] sends.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over, and the owner cannot have taken the message.
    pub async fn content(&mut self, header: &str, message: &Message) -> Result<(), DeliveryError> {
        if self.chunks() {
            self.chunk(header.as_bytes(), message).await?;
        } else {
            self.encoded(header, message).await?;
        }
        self.hear_early().await
    }

    /// One chunk of exactly the octets that BDAT says.
    async fn chunk(&mut self, header: &[u8], message: &Message) -> Result<(), DeliveryError> {
        let mut left = message.octets().saturating_add(header.len() as u64);
        let mut octets = format!("BDAT {left} LAST\r\n").into_bytes();
        octets.extend_from_slice(header);
        left = left.saturating_sub(header.len() as u64);
        let mut reader = message.reader();
        loop {
            if octets.len() >= SENT_AT_ONCE {
                self.send_but(1, &mut octets).await?;
            }
            let before = octets.len();
            if !reader.read(&mut octets).await.map_err(DeliveryError::Body)? {
                break;
            }
            let read = octets.len().saturating_sub(before) as u64;
            left = left.checked_sub(read).ok_or_else(other_length)?;
        }
        if left > 0 {
            return Err(other_length());
        }
        self.send_but(1, &mut octets).await?;
        self.last = octets;
        Ok(())
    }

    async fn encoded(&mut self, header: &str, message: &Message) -> Result<(), DeliveryError> {
        let mut encoder = DataEncoder::default();
        let mut reader = message.reader();
        let (mut content, mut encoded) = (header.as_bytes().to_vec(), Vec::new());
        loop {
            encoder.encode(&content, &mut encoded);
            content.clear();
            if encoded.len() >= SENT_AT_ONCE {
                self.send_but(END, &mut encoded).await?;
            }
            if !reader.read(&mut content).await.map_err(DeliveryError::Body)? {
                break;
            }
        }
        encoder.finish(&mut encoded);
        self.send_but(END, &mut encoded).await?;
        self.last = encoded;
        Ok(())
    }

    /// Sends all of `octets` but the last `kept`, which stay there.
    async fn send_but(&mut self, kept: usize, octets: &mut Vec<u8>) -> Result<(), DeliveryError> {
        let last = octets.split_off(octets.len().saturating_sub(kept));
        self.wire.say(&*octets).await?;
        *octets = last;
        Ok(())
    }

    /// What the owner says before the message is at its end. A refusal is its verdict, to which it comes
    /// too early; nothing else makes sense.
    async fn hear_early(&mut self) -> Result<(), DeliveryError> {
        let Some(reply) = self.heard().await? else { return Ok(()) };
        match reply.class() {
            Class::Permanent | Class::Temporary => {
                self.early = Some(reply);
                Ok(())
            }
            Class::Accepted | Class::GoOn => {
                Err(DeliveryError::Protocol("an answer before the message was at its end"))
            }
        }
    }

    /// What the owner has said unasked, if it has.
    async fn heard(&mut self) -> Result<Option<Reply>, DeliveryError> {
        match self.wire.readable().now_or_never() {
            None => Ok(None),
            Some(Ok(())) => self.reply().await.map(Some),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Sends the end of the message. `patience` is the longest wait for a [`Self::verdict`] from here on.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over, and whether the message was taken is unknown.
    pub async fn finish(&mut self, patience: Duration) -> Result<(), DeliveryError> {
        let last = std::mem::take(&mut self.last);
        self.wire.say(last).await?;
        self.wire.deadlines.read = patience;
        Ok(())
    }

    /// The verdict on the message: SMTP's one for all recipients, or LMTP's for the next of those that
    /// were accepted.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over, and whether the message was taken is unknown.
    pub async fn verdict(&mut self) -> Result<Reply, DeliveryError> {
        match self.early.take() {
            Some(reply) => Ok(reply),
            None => self.reply().await,
        }
    }

    /// True where one verdict stands for all recipients (SMTP); false where each has its own (RFC 2033).
    pub fn has_one_verdict(&self) -> bool {
        match self.protocol {
            MailProtocol::Smtp => true,
            MailProtocol::Lmtp => false,
        }
    }
}

/// The message is not as long as it says.
fn other_length() -> DeliveryError {
    let what = "the message has another length than it had";
    DeliveryError::Body(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

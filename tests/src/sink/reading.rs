//! A message while a sink reads it.

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};
use tokio::io::AsyncBufReadExt;

use super::{LAST, Message, Stream, Transaction, is_ours};

/// Octets of a message that are kept to look at; beyond that it is counted and hashed only.
const KEPT: usize = 1024 * 1024;

/// A message so far.
pub(super) struct Reading {
    message: Message,
    digest: Sha256,
    in_first_field: bool,
}

impl Reading {
    /// Nothing of a transaction's message yet.
    pub(super) fn of(connection: usize, transaction: Transaction) -> Self {
        let Transaction { mail, to, .. } = transaction;
        let message = Message { connection, mail, to, ..Message::default() };
        Self { message, digest: Sha256::new(), in_first_field: true }
    }

    /// Reads to the line with a dot alone (RFC 5321 §4.5.2).
    pub(super) async fn dotted(&mut self, stream: &mut Stream) -> Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // Lines end with CR LF here and nowhere else: a piece without it goes on with the next.
            while !line.ends_with(b"\r\n") {
                if stream.read_until(b'\n', &mut line).await? == 0 {
                    bail!("closed within a message");
                }
            }
            if line == b".\r\n" {
                return Ok(());
            }
            self.line(line.strip_prefix(b".").unwrap_or(&line));
        }
    }

    /// One line, as it is meant.
    pub(super) fn line(&mut self, content: &[u8]) {
        let message = &mut self.message;
        message.octets += content.len() as u64;
        self.in_first_field &= message.content.is_empty() || is_ours(content);
        if !self.in_first_field {
            self.digest.update(content);
        }
        self.in_first_field &= !content.starts_with(LAST);
        if message.content.len() < KEPT {
            message.content.extend_from_slice(content);
        }
    }

    /// The whole message.
    pub(super) fn whole(mut self) -> Message {
        self.message.digest = self.digest.finalize().into();
        self.message
    }
}

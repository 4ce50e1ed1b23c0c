//! One side of a conversation as a pure state machine: octets in, replies and events out.
//!
//! The side that a peer leads (login fronts, the SMTP server) is a [`Dialogue`]; the driver in
//! [`crate::wire`] owns the socket, TLS, deadlines and limits. Nothing here knows a socket, a clock
//! or an `await`, so a transcript cut at every octet is a complete test.

mod input;
mod output;

pub use input::{Input, Line, LineEnding};
pub use output::Output;

/// One side of a conversation as a pure state machine.
pub trait Dialogue {
    /// What only the driver can do: look up, connect, deliver.
    type Event;

    /// Consumes what it can of `input`, queues replies on `output`, and says what it needs next.
    ///
    /// # Errors
    ///
    /// A [`Violation`] ends the connection; a merely wrong command gets a reply instead. The
    /// dialogue queues its last words on `output` before it returns one.
    fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
    ) -> Result<Step<Self::Event>, Violation>;

    /// TLS is up: forget all that was said in the clear (RFC 3207 §4.2).
    fn secured(&mut self, output: &mut Output);
}

impl<D: Dialogue + ?Sized> Dialogue for Box<D> {
    type Event = D::Event;

    fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
    ) -> Result<Step<Self::Event>, Violation> {
        (**self).step(input, output)
    }

    fn secured(&mut self, output: &mut Output) {
        (**self).secured(output);
    }
}

/// What a dialogue asks of its driver.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// Flush, then read more; or step again at once, where [`Output::is_full`] was the reason.
    NeedInput,
    /// Flush, handshake, then call [`Dialogue::secured`].
    StartTls,
    /// Act on this, answer, then step again.
    Event(E),
    /// Flush, then close.
    Close,
}

/// Input after which a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer sent this many octets without a line end.
    #[error("no line end within {limit} octets")]
    LineTooLong {
        /// Octets allowed, line end included.
        limit: usize,
    },
    /// A literal, chunk or parameter larger than its limit.
    #[error("{what} of more than {limit} octets")]
    TooLarge {
        /// What was too large, in the protocol's words.
        what: &'static str,
        /// Octets allowed.
        limit: usize,
    },
    /// A CR without LF or an LF without CR inside message data (RFC 5321 §2.3.8).
    #[error("bare CR or LF in the message")]
    BareLineEnding,
    /// The peer spoke where the protocol says it must wait.
    #[error("input before its turn")]
    EarlyInput,
    /// The peer used up its allowance of wrong commands.
    #[error("{count} bad commands")]
    TooManyBadCommands {
        /// How many there were.
        count: u32,
    },
    /// The peer speaks another protocol, such as an HTTP request sent to an SMTP port.
    #[error("another protocol's words: {0}")]
    ForeignProtocol(&'static str),
}

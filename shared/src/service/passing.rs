//! The conversation in which a running process hands its listening sockets over to the next one: over a
//! unix socket in the running one's state directory, which no other user may enter.
//!
//! ```text
//! old: HELLO, with all listening sockets (SCM_RIGHTS)
//! new: READY       the table is loaded, it could serve
//! old: GO
//! new: SERVING     it accepts; only now the old one stops accepting
//! new: RELOAD      as often as it has reloaded its configuration: the old one does, too
//! ```
//!
//! Until SERVING the old one accepts as before; a conversation that ends earlier changes nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;

use crate::door::Peer;

/// The first word, with the version of this conversation.
const HELLO: &[u8] = b"mailshift hand-over 1\n";
/// The new process could serve.
pub(super) const READY: &[u8] = b"ready\n";
/// It may.
pub(super) const GO: &[u8] = b"go\n";
/// It does.
pub(super) const SERVING: &[u8] = b"serving\n";
/// It has reloaded its configuration.
pub(super) const RELOAD: &[u8] = b"reload\n";
/// The socket's name in the state directory.
pub(super) const SOCKET: &str = "hand-over.sock";
/// Longest wait for a word that needs no work.
pub(super) const WORD: Duration = Duration::from_secs(30);
/// Most descriptors in one message (SCM_MAX_FD of Linux).
const MAX_SOCKETS: usize = 253;

/// Why a process cannot take another one's place.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// Nobody is there.
    #[error(
        "no process of this service serves with this state directory, so there is nothing to take over"
    )]
    Nobody,
    /// The other process has ended, or given up.
    #[error("the other process has ended or given up; its log says why")]
    Gone,
    /// The other process is silent.
    #[error("the other process does not come to an end with it in time")]
    TooSlow,
    /// The other process is another user's.
    #[error("the other process runs as another user (uid {uid})")]
    AnotherUser {
        /// Which one.
        uid: u32,
    },
    /// The other process says something else.
    #[error("the other process speaks otherwise: is it a version that hands over in another way?")]
    NotUnderstood,
    /// There are more than one message can hold.
    #[error("more than {MAX_SOCKETS} listening sockets cannot be handed over")]
    TooManySockets,
    /// The connection between the two fails.
    #[error("handing over fails: {0}")]
    Io(#[from] io::Error),
}

/// Makes sure that who is at the other end is this process' user.
pub(super) fn same_user(stream: &UnixStream) -> Result<(), HandOverError> {
    let peer = Peer::of(stream)?;
    if peer.is_us() { Ok(()) } else { Err(HandOverError::AnotherUser { uid: peer.uid }) }
}

/// Says a word.
pub(super) async fn say(stream: &mut UnixStream, word: &[u8]) -> Result<(), HandOverError> {
    let said = timeout(WORD, stream.write_all(word)).await;
    said.map_err(|_| HandOverError::TooSlow)?.map_err(gone)
}

/// Waits for a word.
pub(super) async fn hear(
    stream: &mut UnixStream,
    word: &[u8],
    limit: Duration,
) -> Result<(), HandOverError> {
    let mut heard = vec![0; word.len()];
    let read = timeout(limit, stream.read_exact(&mut heard)).await;
    read.map_err(|_| HandOverError::TooSlow)?.map_err(gone)?;
    if heard == word { Ok(()) } else { Err(HandOverError::NotUnderstood) }
}

fn gone(error: io::Error) -> HandOverError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => HandOverError::Gone,
        _ => HandOverError::Io(error),
    }
}

/// Sends the sockets themselves, not their addresses: the queue of those who wait at them goes with them.
pub(super) async fn send_sockets(
    stream: &UnixStream,
    sockets: &[Arc<TcpListener>],
) -> Result<(), HandOverError> {
    if sockets.len() > MAX_SOCKETS {
        return Err(HandOverError::TooManySockets);
    }
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut rights = SendAncillaryBuffer::new(&mut space);
        // There is room: it was made for as many as there may be.
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
        let words = [IoSlice::new(HELLO)];
        Ok(sendmsg(stream, &words, &mut rights, SendFlags::NOSIGNAL)?)
    });
    let sent = timeout(WORD, sent).await.map_err(|_| HandOverError::TooSlow)?.map_err(gone)?;
    if sent == HELLO.len() { Ok(()) } else { Err(HandOverError::NotUnderstood) }
}

/// Takes the sockets.
pub(super) async fn receive_sockets(stream: &UnixStream) -> Result<Vec<OwnedFd>, HandOverError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut words = [0; 64];
    let received = stream.async_io(Interest::READABLE, || {
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut words)];
        let message = recvmsg(stream, &mut into, &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let descriptors: Vec<OwnedFd> = rights
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        Ok((message.bytes, message.flags, descriptors))
    });
    let received = timeout(WORD, received).await.map_err(|_| HandOverError::TooSlow)?;
    let (count, flags, descriptors) = received.map_err(gone)?;
    match words.get(..count) {
        Some([]) => Err(HandOverError::Gone),
        Some(HELLO) if !flags.contains(ReturnFlags::CTRUNC) => Ok(descriptors),
        Some(_) | None => Err(HandOverError::NotUnderstood),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_itself_is_handed_over_with_those_who_wait_at_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = tokio::net::TcpStream::connect(address).await.unwrap();
        let (old, new) = UnixStream::pair().unwrap();
        same_user(&old).unwrap();
        send_sockets(&old, &[Arc::new(listener)]).await.unwrap();
        let received = receive_sockets(&new).await.unwrap();
        let [descriptor] = <[OwnedFd; 1]>::try_from(received).unwrap();
        let listener = TcpListener::from_std(descriptor.into()).unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_conversation_that_ends_early_is_an_error_and_not_a_word() {
        let (mut old, new) = UnixStream::pair().unwrap();
        drop(new);
        let heard = hear(&mut old, READY, WORD).await;
        assert!(matches!(heard, Err(HandOverError::Gone)), "{heard:?}");
        let (mut old, mut new) = UnixStream::pair().unwrap();
        say(&mut new, SERVING).await.unwrap();
        let heard = hear(&mut old, READY, WORD).await;
        assert!(matches!(heard, Err(HandOverError::NotUnderstood)), "{heard:?}");
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(matches!(receive_sockets(&new).await, Err(HandOverError::Gone)));
    }
}

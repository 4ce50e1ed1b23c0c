//! A message while it is on its way: in memory while it is small, then in a temporary file (MX-6).
//!
//! The file has no name, so nothing is left behind by a crash. It is read at positions of each reader's
//! own, so that several owners can be delivered to at once.

mod gaps;

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::gaps::Gaps;

/// Octets read from the file at once.
const CHUNK: usize = 64 * 1024;

/// What all messages together may keep in memory. Where it is used up, small messages go to files, too.
#[derive(Debug)]
pub struct Memory {
    left: AtomicUsize,
}

/// Octets in memory, taken from [`Memory`] and given back when dropped.
#[derive(Debug)]
struct Kept {
    octets: Vec<u8>,
    memory: Arc<Memory>,
}

/// A message that is being received.
#[derive(Debug)]
pub struct Body {
    limits: Limits,
    octets: u64,
    first_octet: Option<u8>,
    kept: Kept,
    file: Option<File>,
    fault: Option<Fault>,
}

/// How large a message may be, and where it goes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest message in octets.
    pub max_size: u64,
    /// Octets of one message kept in memory.
    pub in_memory: usize,
    /// Where they are taken from.
    pub memory: Arc<Memory>,
    /// Where temporary files are made.
    pub directory: PathBuf,
}

/// Why a message could not be kept. It is received to its end all the same, to stay in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Larger than allowed.
    TooLarge,
    /// The temporary file failed: no room, or worse.
    Storage,
}

/// A whole message. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Message {
    octets: u64,
    first_octet: Option<u8>,
    content: Content,
    gaps: Arc<Gaps>,
}

#[derive(Debug, Clone)]
enum Content {
    Memory(Arc<Kept>),
    /// A file, and where in it the message begins.
    File(Arc<File>, u64),
}

/// Reads a message from its start.
#[derive(Debug)]
pub struct Reader {
    message: Message,
    /// The next octet of the content.
    at: u64,
    /// The first gap that does not end before it.
    gap: usize,
}

impl Memory {
    /// So many octets for all messages.
    pub fn new(octets: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(octets) })
    }

    fn take(&self, octets: usize) -> bool {
        let less = |left: usize| left.checked_sub(octets);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl Kept {
    fn new(memory: &Arc<Memory>) -> Self {
        Self { octets: Vec::new(), memory: Arc::clone(memory) }
    }

    /// Adds octets if there is room for them.
    fn add(&mut self, octets: &[u8], limit: usize) -> bool {
        let fits = self.octets.len().saturating_add(octets.len()) <= limit;
        let taken = fits && self.memory.take(octets.len());
        if taken {
            self.octets.extend_from_slice(octets);
        }
        taken
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.memory.left.fetch_add(self.octets.len(), Ordering::Relaxed);
    }
}

impl Body {
    /// An empty message.
    pub fn new(limits: Limits) -> Self {
        let kept = Kept::new(&limits.memory);
        Self { limits, octets: 0, first_octet: None, kept, file: None, fault: None }
    }

    /// Octets received so far, also those that were not kept.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Adds octets. A fault is kept until the end of data.
    pub async fn append(&mut self, octets: Vec<u8>) {
        let length = u64::try_from(octets.len()).unwrap_or(u64::MAX);
        self.octets = self.octets.saturating_add(length);
        self.first_octet = self.first_octet.or_else(|| octets.first().copied());
        if self.fault.is_some() {
            return;
        }
        let in_memory = self.file.is_none();
        if self.octets > self.limits.max_size {
            self.fail(Fault::TooLarge);
        } else if !(in_memory && self.kept.add(&octets, self.limits.in_memory))
            && let Err(error) = self.write(octets).await
        {
            tracing::error!(%error, directory = %self.limits.directory.display(), "cannot keep a message");
            self.fail(Fault::Storage);
        }
    }

    /// The whole message, or why there is none.
    ///
    /// # Errors
    ///
    /// The first [`Fault`].
    pub fn finish(self) -> Result<Message, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let content = match self.file {
            Some(file) => Content::File(Arc::new(file), 0),
            None => Content::Memory(Arc::new(self.kept)),
        };
        let gaps = Arc::default();
        Ok(Message { octets: self.octets, first_octet: self.first_octet, content, gaps })
    }

    /// True while everything is in memory.
    pub fn is_in_memory(&self) -> bool {
        self.file.is_none()
    }

    async fn write(&mut self, octets: Vec<u8>) -> io::Result<()> {
        let file = self.file.take();
        let kept = std::mem::replace(&mut self.kept, Kept::new(&self.limits.memory));
        let directory = self.limits.directory.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => tempfile::tempfile_in(directory)?,
            };
            file.write_all(&kept.octets)?;
            file.write_all(&octets)?;
            Ok::<_, io::Error>(file)
        });
        self.file = Some(written.await.map_err(io::Error::other)??);
        Ok(())
    }

    fn fail(&mut self, fault: Fault) {
        self.fault = Some(fault);
        self.kept = Kept::new(&self.limits.memory);
        self.file = None;
    }
}

impl Message {
    /// A message of so many octets that stands in a file, from `offset` on. `first_octet` is its first.
    pub(crate) fn of_file(file: File, offset: u64, octets: u64, first_octet: Option<u8>) -> Self {
        let content = Content::File(Arc::new(file), offset);
        Self { octets, first_octet, content, gaps: Arc::default() }
    }

    /// A message of ours. Its memory is counted nowhere.
    pub(crate) fn of_octets(octets: Vec<u8>) -> Self {
        let length = u64::try_from(octets.len()).unwrap_or(u64::MAX);
        let first_octet = octets.first().copied();
        let kept = Kept { octets, memory: Memory::new(0) };
        let content = Content::Memory(Arc::new(kept));
        Self { octets: length, first_octet, content, gaps: Arc::default() }
    }

    /// Its octets, CR LFs counted.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// What it begins with; `None` when it is empty.
    pub fn first_octet(&self) -> Option<u8> {
        self.first_octet
    }

    /// Reads it from its start.
    pub fn reader(&self) -> Reader {
        Reader { message: self.clone(), at: 0, gap: 0 }
    }

    /// The message with these octets left out: ranges of the whole content, in ascending order. What was
    /// left out of it before counts no more.
    ///
    /// # Errors
    ///
    /// The file's failure.
    pub async fn without(&self, ranges: Vec<Range<u64>>) -> io::Result<Self> {
        let content = self.octets.saturating_add(self.gaps.octets());
        let gaps = Gaps::new(ranges, content);
        let octets = content.saturating_sub(gaps.octets());
        let mut less = Self { octets, gaps: Arc::new(gaps), ..self.clone() };
        let (mut reader, mut first) = (less.reader(), Vec::new());
        while first.is_empty() && reader.read(&mut first).await? {}
        less.first_octet = first.first().copied();
        Ok(less)
    }
}

impl Reader {
    /// Appends some more of the message to `into`, sometimes nothing; false at its end.
    ///
    /// # Errors
    ///
    /// The file's failure.
    pub async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let Message { octets, gaps, .. } = &self.message;
        let left = octets.saturating_add(gaps.octets()).saturating_sub(self.at);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
        if want == 0 {
            return Ok(false);
        }
        let from = self.at;
        self.at = from.saturating_add(u64::try_from(want).unwrap_or(u64::MAX));
        match &self.message.content {
            Content::Memory(kept) => {
                let at = usize::try_from(from).unwrap_or(usize::MAX);
                let chunk = kept.octets.get(at..at.saturating_add(want)).unwrap_or_default();
                self.gap = self.message.gaps.append_rest(chunk, from, self.gap, into);
            }
            Content::File(file, offset) => {
                let (file, at) = (Arc::clone(file), offset.saturating_add(from));
                let chunk = tokio::task::spawn_blocking(move || {
                    let mut chunk = vec![0; want];
                    file.read_exact_at(&mut chunk, at).map(|()| chunk)
                });
                let chunk = chunk.await.map_err(io::Error::other)??;
                self.gap = self.message.gaps.append_rest(&chunk, from, self.gap, into);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(directory: &std::path::Path) -> Limits {
        let memory = Memory::new(1_500);
        Limits { max_size: 300_000, in_memory: 1_000, memory, directory: directory.to_owned() }
    }

    async fn content(message: &Message) -> Vec<u8> {
        let (mut reader, mut content) = (message.reader(), Vec::new());
        while reader.read(&mut content).await.unwrap() {}
        content
    }

    #[tokio::test]
    async fn a_large_message_leaves_memory_and_comes_back_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut body = Body::new(limits(directory.path()));
        let mut sent = Vec::new();
        for round in 0..250_u16 {
            let part = round.to_be_bytes().repeat(500);
            sent.extend_from_slice(&part);
            body.append(part).await;
            assert_eq!(body.is_in_memory(), round == 0);
        }
        let message = body.finish().unwrap();
        assert_eq!(message.octets(), 250_000);
        assert_eq!(content(&message).await, sent);
        assert_eq!(content(&message).await, sent, "a second reader reads the same");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the file has no name");
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_forgotten_but_counted_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut body = Body::new(limits(directory.path()));
        for _ in 0..4 {
            body.append(vec![b'x'; 100_000]).await;
        }
        assert_eq!(body.finish().unwrap_err(), Fault::TooLarge);
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_a_fault_and_no_loss() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let mut body = Body::new(limits(&gone));
        body.append(vec![b'x'; 2_000]).await;
        assert_eq!(body.finish().unwrap_err(), Fault::Storage);
    }

    #[tokio::test]
    async fn all_messages_share_one_allowance_of_memory() {
        let directory = tempfile::tempdir().unwrap();
        let limits = limits(directory.path());
        let mut bodies = [(); 2].map(|()| Body::new(limits.clone()));
        for body in &mut bodies {
            body.append(vec![b'x'; 900]).await;
        }
        assert_eq!(bodies.each_ref().map(Body::is_in_memory), [true, false]);
        let [first, second] = bodies.map(|body| body.finish().unwrap());
        assert_eq!(content(&first).await, content(&second).await);
        drop(first);
        let mut third = Body::new(limits);
        third.append(vec![b'x'; 900]).await;
        assert!(third.is_in_memory(), "what a message had is given back with it");
    }

    /// What is left of `content` without `ranges`, by the plainest means.
    fn cut(content: &[u8], ranges: &[Range<u64>]) -> Vec<u8> {
        let left_out = |at: usize| ranges.iter().any(|range| range.contains(&(at as u64)));
        content.iter().enumerate().filter(|(at, _)| !left_out(*at)).map(|(_, &b)| b).collect()
    }

    #[tokio::test]
    #[expect(clippy::reversed_empty_ranges, reason = "what is no range is no gap")]
    #[expect(clippy::single_range_in_vec_init, reason = "they are ranges")]
    async fn what_is_left_out_is_not_read_wherever_chunks_end() {
        let directory = tempfile::tempdir().unwrap();
        let chunk = CHUNK as u64;
        let whole: Vec<u8> = (0..251).cycle().take(3 * CHUNK).collect();
        for size in [500, 3 * CHUNK] {
            let whole = &whole[..size];
            let mut body = Body::new(limits(directory.path()));
            body.append(whole.to_vec()).await;
            assert_eq!(body.is_in_memory(), size == 500);
            let message = body.finish().unwrap();
            for ranges in [
                vec![],
                vec![0..1],
                vec![0..10, 10..20, 15..25, 30..31],
                vec![5..5, 9..7, 8..9],
                vec![499..600],
                vec![0..u64::MAX],
                vec![chunk - 1..chunk + 1],
                vec![0..chunk, chunk..2 * chunk],
                vec![10..chunk * 2 + 10],
                vec![chunk * 3 - 1..chunk * 3],
            ] {
                let less = message.without(ranges.clone()).await.unwrap();
                let expected = cut(whole, &ranges);
                assert_eq!(content(&less).await, expected, "{ranges:?}");
                assert_eq!(less.octets(), expected.len() as u64, "{ranges:?}");
                assert_eq!(less.first_octet(), expected.first().copied(), "{ranges:?}");
            }
        }
    }
}

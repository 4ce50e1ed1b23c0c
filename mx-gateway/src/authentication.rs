//! What can be found out about who sends a message: reverse DNS, SPF, DKIM, ARC and DMARC (MX-12).
//!
//! It becomes one Authentication-Results header, and what others wrote in our name is left out of the message
//! ([`forged`]). Nothing here may cost a message: all of it has one time limit, what computes does so on a
//! thread of its own, and what is not known in time, or fails, is a temporary error in the header. All use of
//! the mail-auth library is in this module.
//!
//! What is absent: a limit on look-ups of names that do not exist (RFC 7208 §4.6.4). The library has none; its
//! ten look-ups and our time limit bound them. Nor does it take an unknown mechanism in an SPF record for an
//! error, but for a modifier.

pub mod forged;
pub mod policy;
pub mod results;

mod body_hash;
mod keys;
mod resolver;
mod seal;
mod senders;
mod signatures;
mod tasks;

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::join4;
use hickory_resolver::net::NetError;
use mail_auth::MessageAuthenticator;
use shared::address::Domain;
use shared::config::AuthenticationConfig;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

pub use policy::{Policy, Standing};
pub use seal::SealError;

use self::forged::Forged;
use self::keys::Keys;
use self::policy::Dmarc;
use self::results::{Entry, Found};
use self::seal::Sealer;
use self::senders::Identities;
use self::signatures::Signatures;
use self::tasks::{Deadline, deadline, on_a_thread};
use crate::body::Message;
use crate::received::with_fields;

/// Octets of all messages that are looked at together.
const MEMORY: u64 = 256 * 1024 * 1024;
/// What they are counted in, so that they can be counted at all.
const UNIT: u64 = 1024;
/// Largest header section that is read for authors and signatures, in octets and in fields.
const MAX_HEADER: u64 = 2 * 1024 * 1024;
const MAX_HEADERS: usize = 100_000;

/// Finds out about senders.
pub struct Authenticator {
    config: AuthenticationConfig,
    hostname: Domain,
    dns: MessageAuthenticator,
    sealer: Option<Arc<Sealer>>,
    memory: Arc<Semaphore>,
    threads: Arc<Semaphore>,
}

/// A message, and who it is said to come from.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// How it introduced itself.
    pub helo: &'a str,
    /// MAIL FROM.
    pub from: &'a ReversePath,
    /// Domains of the recipients.
    pub recipients: Vec<&'a Domain>,
    /// The message.
    pub message: &'a Message,
}

/// What was found out.
#[derive(Debug)]
pub struct Findings {
    /// Headers that go right behind our Received header, each with its CR LF.
    pub header: String,
    /// How far the sender is who the envelope says.
    pub sender: Standing,
    /// What becomes of the message.
    pub policy: Policy,
    /// Octets of the message that are headers in our name.
    pub forged: Vec<Range<u64>>,
    /// All results in one line, for the log.
    pub summary: String,
}

/// Why nothing can be found out.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticatorError {
    /// The resolver.
    #[error("mx.authentication: no resolver: {0}")]
    Resolver(#[from] NetError),
    /// The key of our seal.
    #[error("mx.authentication.arc_seal: {0}")]
    Seal(#[from] SealError),
}

/// A message that was read once.
struct Text {
    kept: Kept,
    forged: Vec<Range<u64>>,
    /// Given back when nothing of it is needed any more.
    _memory: Option<OwnedSemaphorePermit>,
}

/// What of a message is in memory.
enum Kept {
    /// All of it; its header section ends at that octet.
    Whole(Arc<Vec<u8>>, usize),
    /// The header section: the message is too large.
    Header(Arc<Vec<u8>>),
    /// Nothing, and what is said of its signatures therefore.
    Nothing(Found, &'static str),
}

/// What a message says of itself.
struct Content {
    from: Vec<String>,
    signatures: Arc<Signatures>,
    keys: Keys,
    /// Signatures that are not known cannot fail: what is said then.
    undecided: Option<(Found, &'static str)>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// As configured, on a host of this name.
    ///
    /// # Errors
    ///
    /// An [`AuthenticatorError`].
    pub fn new(
        config: &AuthenticationConfig,
        hostname: &Domain,
    ) -> Result<Self, AuthenticatorError> {
        let dns = resolver::build(&config.name_servers)?;
        let sealer = config.arc_seal.as_ref().map(Sealer::new).transpose()?.map(Arc::new);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            config: config.clone(),
            hostname: hostname.clone(),
            dns,
            sealer,
            memory: Arc::new(Semaphore::new(usize::try_from(MEMORY / UNIT).unwrap_or(usize::MAX))),
            threads: Arc::new(Semaphore::new(threads.saturating_mul(2))),
        })
    }

    /// Finds out what there is to find, in the time allowed for it.
    pub async fn examine(&self, subject: Subject<'_>) -> Findings {
        let began = Instant::now();
        let until = deadline(began, self.config.time_limit);
        // What joins the results needs some of the time.
        let soon = deadline(began, self.config.time_limit.mul_f32(0.75));
        let Subject { client, helo, from, recipients, message } = subject;
        let who = Identities::new(client, &self.hostname, helo, from);
        let read = async {
            let text = self.read(message, soon).await?;
            let content = self.content(&text.kept, soon, until).await;
            Ok::<_, io::Error>((text, content))
        };
        let (spf_helo, spf_from, iprev, read) = join4(
            who.spf_helo(&self.dns, soon),
            who.spf_from(&self.dns, soon),
            who.iprev(&self.dns, soon),
            read,
        )
        .await;
        let (text, content) = match read {
            Ok(read) => read,
            Err(error) => return unreadable(&error),
        };
        let mut authors = match (&content.undecided, content.from.is_empty()) {
            (Some((found, why)), true) => vec![Dmarc::undecided(*found, why)],
            _ => who.dmarc(&self.dns, &content.from, &spf_from, &content.signatures, until).await,
        };
        if let Some((found, why)) = content.undecided {
            for author in authors.iter_mut().filter(|author| author.found == Found::Fail) {
                (author.found, author.comment) = (found, Some(why));
            }
        }
        let mut entries = vec![
            iprev,
            Entry::new("spf", senders::found(&spf_helo)).with("smtp.helo", &who.helo),
            Entry::new("spf", senders::found(&spf_from)).with("smtp.mailfrom", &who.mail_from),
        ];
        entries.extend(content.signatures.entries());
        entries.extend(authors.iter().map(Dmarc::entry));
        let name = self.config.name.as_str();
        let mut header = results::header(name, &entries);
        header.push_str(&self.seal(&text.kept, content.keys, &entries, until).await);
        let policy = policy::decide(&self.config.enforcement, &recipients, &authors);
        if policy == Policy::Quarantine {
            header.push_str(policy::QUARANTINE_HEADER);
        }
        let (spf, signed) = (senders::found(&spf_from), content.signatures.passed());
        let sender = policy::standing(who.domain.as_ref(), spf, signed);
        let summary = results::summary(&entries);
        Findings { header, sender, policy, forged: text.forged, summary }
    }

    /// Reads the message once: for headers in our name as far as its header section goes, and into memory
    /// as far as it may be looked at. The time limit does not count for the former.
    async fn read(&self, message: &Message, until: Deadline) -> io::Result<Text> {
        let is_small = message.octets() <= self.config.max_verified_size;
        let wanted = if is_small { message.octets() } else { MAX_HEADER };
        let memory = self.room(wanted, until).await;
        let (mut reader, mut chunk) = (message.reader(), Vec::new());
        let (mut raw, mut forged) = (Vec::new(), Forged::new(self.config.name.as_str()));
        let mut in_header = true;
        while (in_header || is_small && memory.is_some()) && reader.read(&mut chunk).await? {
            in_header = in_header && forged.look(&chunk);
            if memory.is_some() && (is_small || octets(raw.len()) <= MAX_HEADER) {
                raw.append(&mut chunk);
            }
            chunk.clear();
        }
        let header = usize::try_from(forged.octets()).unwrap_or(usize::MAX);
        let kept = if memory.is_none() {
            Kept::Nothing(Found::TempError, "too busy")
        } else if forged.octets() > MAX_HEADER || forged.headers() > MAX_HEADERS {
            Kept::Nothing(Found::None, "header too large")
        } else if is_small {
            Kept::Whole(Arc::new(raw), header)
        } else {
            raw.truncate(header);
            Kept::Header(Arc::new(raw))
        };
        Ok(Text { kept, forged: forged.finish(), _memory: memory })
    }

    /// Room for so many octets in memory.
    async fn room(&self, octets: u64, until: Deadline) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(octets.min(MEMORY) / UNIT).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.memory).acquire_many_owned(units);
        timeout_at(until, room).await.ok()?.ok()
    }

    /// What the message says of itself: keys are there by `soon`, signatures verified by `until`.
    async fn content(&self, kept: &Kept, soon: Deadline, until: Deadline) -> Content {
        let unknown = |from, found, why| Content {
            from,
            signatures: Arc::new(Signatures::unknown(found, why)),
            keys: Keys::default(),
            undecided: Some((found, why)),
        };
        let (raw, end) = match kept {
            Kept::Whole(raw, end) => (raw, *end),
            Kept::Header(raw) => (raw, raw.len()),
            Kept::Nothing(found, why) => return unknown(Vec::new(), *found, why),
        };
        let late = (Found::TempError, "not known in time");
        let (header, most) = (Arc::clone(raw), self.config.max_signatures);
        let outline = on_a_thread(soon, "a header", &self.threads, move || {
            signatures::outline(header.get(..end).unwrap_or_default(), most).unwrap_or_default()
        });
        let Some(mut outline) = outline.await else { return unknown(Vec::new(), late.0, late.1) };
        let from = std::mem::take(&mut outline.from);
        if matches!(kept, Kept::Header(_)) {
            return unknown(from, Found::None, "message too large");
        }
        let names = std::mem::take(&mut outline.keys);
        let keys = Arc::new(Keys::ask(&self.dns, names, soon).await);
        let (dns, raw, at_hand) = (self.dns.clone(), Arc::clone(raw), Arc::clone(&keys));
        let verified = on_a_thread(until, "signatures", &self.threads, move || {
            signatures::verify(&dns, &raw, outline, &at_hand)
        });
        let Some(signatures) = verified.await else { return unknown(from, late.0, late.1) };
        let keys = Arc::into_inner(keys).unwrap_or_default();
        Content { from, signatures: Arc::new(signatures), keys, undecided: None }
    }

    /// The headers of our seal, if we seal and can.
    async fn seal(&self, kept: &Kept, keys: Keys, entries: &[Entry], until: Deadline) -> String {
        let (Some(sealer), Kept::Whole(raw, _)) = (&self.sealer, kept) else {
            return String::new();
        };
        let (sealer, dns, raw) = (Arc::clone(sealer), self.dns.clone(), Arc::clone(raw));
        let results = format!("{}; {}", self.config.name, results::one_line(entries));
        let sealed = on_a_thread(until, "a seal", &self.threads, move || {
            sealer.seal(&dns, &raw, &keys, &results)
        });
        sealed.await.flatten().unwrap_or_default()
    }
}

impl Findings {
    /// What is delivered: the message without headers in our name, and behind `trace`, our Received header,
    /// what was found out.
    ///
    /// # Errors
    ///
    /// The message cannot be read.
    pub async fn apply(&self, trace: &str, message: &Message) -> io::Result<(String, Message)> {
        let header = with_fields(trace, &self.header);
        let message = match self.forged.as_slice() {
            [] => message.clone(),
            forged => message.without(forged.to_vec()).await?,
        };
        Ok((header, message))
    }
}

/// What cannot be read cannot be delivered either.
fn unreadable(error: &io::Error) -> Findings {
    tracing::error!(%error, "cannot read a message that was received");
    Findings {
        header: String::new(),
        sender: Standing::Unknown,
        policy: Policy::Reject(Reply::new(452, (3, 1), "Cannot keep the message now")),
        forged: Vec::new(),
        summary: String::new(),
    }
}

fn octets(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

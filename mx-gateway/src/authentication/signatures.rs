//! Signatures of a message: DKIM (RFC 6376) and ARC (RFC 8617).
//!
//! First the header section alone is read, for the names of the keys. With these at hand the signatures are
//! verified without waiting for anything, on a thread. How many there are, and of what, is the sender's to
//! choose: so only some are verified, those of the author's domain first, and none that costs more than
//! signatures do.

use futures_util::FutureExt;
use mail_auth::common::crypto::Algorithm;
use mail_auth::common::headers::Header;
use mail_auth::dkim::{DkimError, Signature};
use mail_auth::{
    ArcOutput, AuthenticatedMessage, DkimOutput, DkimResult, DnsError, Error, MessageAuthenticator,
    Parameters,
};

use super::body_hash;
use super::keys::{self, Keys};
use super::results::{Entry, Found};

/// Most header names of one signature; each is looked for in the whole header section.
const MAX_SIGNED: usize = 256;
/// Most sets of an ARC chain (RFC 8617 §5.1.1.2).
const MAX_ARC_SETS: usize = 50;
/// Octets of `b=` that tell signatures apart (RFC 6008), before they are base64.
const PREFIX: usize = 6;

/// What a header section says.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// Authors' addresses, lower case.
    pub(super) from: Vec<String>,
    /// Signatures that are worth a look, by their place among all that could be read.
    worthy: Vec<usize>,
    /// What became of the others.
    refused: Vec<Entry>,
    /// Names of all keys that are needed.
    pub(super) keys: Vec<String>,
}

/// A signature and what became of it.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) signature: Signature,
    pub(super) found: Found,
    pub(super) comment: Option<&'static str>,
}

/// What the signatures of a message say.
#[derive(Debug)]
pub(super) struct Signatures {
    pub(super) verified: Vec<Verified>,
    pub(super) refused: Vec<Entry>,
    pub(super) arc: Entry,
}

/// Reads a header section. `None`: there is no header in it.
pub(super) fn outline(header: &[u8], most: usize) -> Option<Outline> {
    let message = AuthenticatedMessage::parse(header)?;
    let mut outline = Outline { from: message.from.clone(), ..Outline::default() };
    for (at, header) in message.dkim_headers.iter().enumerate() {
        match unworthy(&header.header) {
            None => outline.worthy.push(at),
            Some(why) if outline.refused.len() < most => {
                outline.refused.push(entry(&header.header, Found::PermError).because(why));
            }
            Some(_) => {}
        }
    }
    for error in &message.errors {
        if let Error::Dkim(error) = &error.header
            && outline.refused.len() < most
        {
            let (found, why) = of_dkim_error(error);
            outline.refused.push(Entry::new("dkim", found).because(why));
        }
    }
    let domain_of = |at: &usize| message.dkim_headers.get(*at).map_or("", |h| &h.header.d);
    outline.worthy.sort_by_key(|at| !is_authors(domain_of(at), &message.from));
    if outline.worthy.len() > most {
        outline.worthy.truncate(most);
        let others = Entry::new("dkim", Found::Neutral).because("more signatures not looked at");
        outline.refused.push(others);
    }
    let worthy = outline.worthy.iter().filter_map(|at| message.dkim_headers.get(*at));
    outline.keys.extend(worthy.map(|header| keys::name(&header.header.s, &header.header.d)));
    outline.keys.extend(arc_keys(&message));
    Some(outline)
}

/// Verifies what the outline has chosen.
pub(super) fn verify(
    dns: &MessageAuthenticator,
    raw: &[u8],
    outline: Outline,
    keys: &Keys,
) -> Signatures {
    let Outline { worthy, refused, .. } = outline;
    let mut signatures =
        Signatures { verified: Vec::new(), refused, arc: Entry::new("arc", Found::None) };
    let Some(mut message) = AuthenticatedMessage::parse(raw) else { return signatures };
    body_hash::put_right(&mut message);
    signatures.arc = arc(dns, &message, keys);
    let all = std::mem::take(&mut message.dkim_headers);
    for header in worthy.into_iter().filter_map(|at| all.get(at)) {
        let (found, comment) = verify_one(dns, &mut message, header, keys);
        signatures.verified.push(Verified { signature: header.header.clone(), found, comment });
    }
    signatures
}

fn verify_one<'raw>(
    dns: &MessageAuthenticator,
    message: &mut AuthenticatedMessage<'raw>,
    header: &Header<'raw, Signature>,
    keys: &Keys,
) -> (Found, Option<&'static str>) {
    if let Some((found, why)) = keys.missing(&keys::name(&header.header.s, &header.header.d)) {
        return (found, Some(why));
    }
    let mut header = header.clone();
    // Neither a report to the signer nor another signer's leave is asked for: that would wait for DNS.
    (header.header.r, header.header.atps) = (false, None);
    message.dkim_headers = vec![header];
    message.errors.clear();
    let parameters = Parameters::new(&*message).with_txt_cache(keys.records());
    // All it would ask for is at hand.
    match dns.verify_dkim(parameters).now_or_never() {
        Some(outputs) => outputs.first().map_or((Found::None, None), |o| of(o.result())),
        None => (Found::TempError, Some("key unavailable")),
    }
}

/// Why a signature is not verified.
fn unworthy(signature: &Signature) -> Option<&'static str> {
    if signature.a == Algorithm::RsaSha1 {
        // RFC 8301 §3.1.
        return Some("rsa-sha1");
    }
    if signature.h.len() > MAX_SIGNED {
        return Some("too many headers signed");
    }
    // RFC 6376 §6.1.1.
    let signs_from = signature.h.iter().any(|name| name.eq_ignore_ascii_case("from"));
    (!signs_from).then_some("From is not signed")
}

/// True when a signature may be the author's own, for DMARC.
fn is_authors(signer: &str, from: &[String]) -> bool {
    from.iter().filter_map(|address| address.rsplit_once('@')).any(|(_, author)| {
        let (signer, author) = (signer.to_ascii_lowercase(), author.to_ascii_lowercase());
        let is_below = |low: &str, high: &str| {
            low.strip_suffix(high).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        is_below(&signer, &author) || is_below(&author, &signer)
    })
}

impl Verified {
    /// For DMARC; what failed does not count there.
    pub(super) fn output(&self) -> Option<DkimOutput<'_>> {
        let output = match self.found {
            Found::Pass => DkimOutput::pass(),
            Found::TempError => DkimOutput::temp_err(Error::Dns(DnsError::Resolver(String::new()))),
            _ => return None,
        };
        Some(output.with_signature(&self.signature))
    }
}

impl Signatures {
    /// When nothing of the signatures is known.
    pub(super) fn unknown(found: Found, why: &'static str) -> Self {
        let refused = vec![Entry::new("dkim", found).because(why)];
        Self { verified: Vec::new(), refused, arc: Entry::new("arc", found).because(why) }
    }

    /// As they are written.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let verified =
            self.verified.iter().map(|one| entry(&one.signature, one.found).because(one.comment));
        let mut entries: Vec<Entry> = verified.chain(self.refused.iter().cloned()).collect();
        if entries.is_empty() {
            entries.push(Entry::new("dkim", Found::None));
        }
        entries.push(self.arc.clone());
        entries
    }

    /// Domains whose signatures passed.
    pub(super) fn passed(&self) -> impl Iterator<Item = &str> {
        let passed = self.verified.iter().filter(|one| one.found == Found::Pass);
        passed.map(|one| one.signature.d.as_str())
    }
}

fn entry(signature: &Signature, found: Found) -> Entry {
    let prefix = signature.b.get(..PREFIX).unwrap_or_default();
    Entry::new("dkim", found)
        .with("header.d", &signature.d)
        .with("header.s", &signature.s)
        .with("header.a", signature.a.name())
        .with("header.b", &base64(prefix))
}

/// Base64 of a multiple of three octets.
fn base64(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in octets.chunks_exact(3) {
        let bits = chunk.iter().fold(0_u32, |bits, &octet| bits << 8 | u32::from(octet));
        for shift in [18, 12, 6, 0] {
            let at = usize::try_from(bits >> shift & 63).unwrap_or(0);
            text.extend(ALPHABET.get(at).copied().map(char::from));
        }
    }
    text
}

/// Names of the keys of an ARC chain: of its last signature and of every seal.
fn arc_keys(message: &AuthenticatedMessage<'_>) -> Vec<String> {
    if message.has_arc_errors || message.as_headers.len() > MAX_ARC_SETS {
        return Vec::new();
    }
    let seals = message.as_headers.iter().map(|h| keys::name(&h.header.s, &h.header.d));
    let last = message.ams_headers.last().map(|h| keys::name(&h.header.s, &h.header.d));
    seals.chain(last).collect()
}

fn arc(dns: &MessageAuthenticator, message: &AuthenticatedMessage<'_>, keys: &Keys) -> Entry {
    if message.ams_headers.iter().any(|header| header.header.h.len() > MAX_SIGNED) {
        return Entry::new("arc", Found::Fail).because("too many headers signed");
    }
    if let Some((found, why)) = arc_keys(message).iter().find_map(|name| keys.missing(name)) {
        return Entry::new("arc", found).because(why);
    }
    let (found, why) = match verify_arc(dns, message, keys) {
        None => (Found::TempError, Some("key unavailable")),
        // A chain passes, fails, or is none (RFC 8617 §4.4).
        Some(output) => match of(output.result()) {
            (Found::Neutral | Found::PermError, why) => (Found::Fail, why),
            found => found,
        },
    };
    Entry::new("arc", found).because(why)
}

/// The library's verdict on the ARC chain, with the keys that are at hand.
pub(super) fn verify_arc<'x>(
    dns: &MessageAuthenticator,
    message: &'x AuthenticatedMessage<'x>,
    keys: &'x Keys,
) -> Option<ArcOutput<'x>> {
    dns.verify_arc(Parameters::new(message).with_txt_cache(keys.records())).now_or_never()
}

/// A signature's result in words.
fn of(result: &DkimResult) -> (Found, Option<&'static str>) {
    match result {
        DkimResult::Pass => (Found::Pass, None),
        DkimResult::None => (Found::None, None),
        DkimResult::TempError(_) => (Found::TempError, Some("key unavailable")),
        DkimResult::Neutral(error) | DkimResult::Fail(error) | DkimResult::PermError(error) => {
            match error {
                Error::Dkim(error) => of_dkim_error(error),
                Error::Crypto(_) => (Found::Fail, Some("signature did not verify")),
                Error::Arc(_) => (Found::Fail, Some("broken chain")),
                Error::Dns(_) => (Found::PermError, Some("no key")),
                _ => (Found::Neutral, Some("unreadable")),
            }
        }
    }
}

fn of_dkim_error(error: &DkimError) -> (Found, Option<&'static str>) {
    let (found, why) = match error {
        DkimError::FailedBodyHashMatch => (Found::Fail, "body hash did not verify"),
        DkimError::SignatureExpired => (Found::Fail, "signature expired"),
        DkimError::FailedAuidMatch => (Found::Fail, "i= is of another domain"),
        DkimError::SignatureLength => (Found::Neutral, "only a part is signed"),
        DkimError::RevokedPublicKey => (Found::PermError, "key revoked"),
        DkimError::UnsupportedVersion
        | DkimError::UnsupportedAlgorithm
        | DkimError::UnsupportedCanonicalization
        | DkimError::UnsupportedKeyType => (Found::Neutral, "unknown kind of signature"),
    };
    (found, Some(why))
}

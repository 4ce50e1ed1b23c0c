//! Our own trace in a message, by which one that comes back again and again is recognised (MX-11).
//!
//! `Mailshift-Hop: 2; by=mx.example.org; t=…` says that the message is on its second way through a gateway
//! of ours. The token is a keyed digest of the number and the name, so that nobody else can have a message
//! taken for one that loops. The key is derived from the database's id, which all nodes on one table share
//! and nobody else knows: nothing is to be configured.

use std::fmt::Write;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use shared::config::MxKind;
use shared::smtp::reply::Reply;

/// The field's name as it is written.
const FIELD: &str = "Mailshift-Hop";
/// What the key is for, so that nobody else derives the same from that id.
const PURPOSE: &[u8] = b"mailshift hop token 1";
/// Octets of the token. A forger has one try for each message, and nothing to win but a refusal.
const TOKEN: usize = 16;
/// Ways through us after which a message loops between the mail systems and us. It is often a misroute
/// during a flip, which is over soon; so it may come again.
const POSTPONED_FROM: u32 = 2;
/// The same where it is no misroute any more.
const REFUSED_FROM: u32 = 4;
/// The same on the public listener: whoever has sent it there twice will do so again.
const REFUSED_IN_PUBLIC_FROM: u32 = 2;

/// Makes and reads our trace.
#[derive(Debug, Clone)]
pub struct Hops {
    key: hmac::Key,
}

impl Hops {
    /// For all nodes on the table with this id.
    pub fn of_database(id: &str) -> Self {
        let id = hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes());
        let derived = hmac::sign(&id, PURPOSE);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    /// The header field with its CR LF for a message that was through us so many times before.
    pub fn field(&self, before: u32, by: &str) -> String {
        let number = before.saturating_add(1);
        format!("{FIELD}: {number}; by={by}; t={}\r\n", hex(&self.token(number, by)))
    }

    /// The number in a field's value, if it is one of ours.
    fn number(&self, value: &str) -> Option<u32> {
        let mut parts = value.trim_end_matches(['\r', '\n']).split("; ");
        let (number, by, token) = (parts.next()?.trim(), parts.next()?, parts.next()?);
        let (by, token) = (by.strip_prefix("by=")?, token.strip_prefix("t=")?);
        let number: u32 = number.parse().ok()?;
        let ours = hex(&self.token(number, by));
        let is_ours = verify_slices_are_equal(ours.as_bytes(), token.as_bytes()).is_ok();
        (is_ours && parts.next().is_none()).then_some(number)
    }

    /// How many times a message with these fields was through us.
    pub fn count<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> u32 {
        values.into_iter().filter_map(|value| self.number(value)).max().unwrap_or(0)
    }

    fn token(&self, number: u32, by: &str) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&number.to_be_bytes());
        context.update(by.as_bytes());
        context.sign().as_ref().iter().copied().take(TOKEN).collect()
    }
}

/// What a client is told of a message that was through us so many times, if it loops.
pub fn refusal(count: u32, kind: MxKind) -> Option<Reply> {
    let loops = || Reply::new(554, (4, 6), "The message loops between mail systems");
    match kind {
        MxKind::Smtp | MxKind::Lmtp => (count >= REFUSED_IN_PUBLIC_FROM).then(loops),
        MxKind::Internal if count >= REFUSED_FROM => Some(loops()),
        MxKind::Internal => (count >= POSTPONED_FROM).then(|| {
            Reply::new(
                451,
                (4, 6),
                "The message comes back from where it was sent, try again later",
            )
        }),
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(field: &str) -> &str {
        field.split_once(':').unwrap().1
    }

    #[test]
    fn every_way_through_is_counted_whichever_node_it_was() {
        let hops = Hops::of_database("id");
        let first = hops.field(0, "mx1.example.org");
        assert!(first.starts_with("Mailshift-Hop: 1; by=mx1.example.org; t="), "{first}");
        let second = hops.field(hops.count([value(&first)]), "mx2.example.org");
        assert_eq!(hops.count([value(&second), value(&first)]), 2);
        assert_eq!(hops.count([value(&first), value(&second)]), 2, "in whatever order");
    }

    #[test]
    fn what_is_not_ours_does_not_count() {
        let hops = Hops::of_database("id");
        let ours = hops.field(2, "mx.example.org");
        let token = ours.trim_end().rsplit_once("t=").unwrap().1.to_owned();
        assert_eq!(hops.count([value(&ours)]), 3);
        for forged in [
            Hops::of_database("another").field(2, "mx.example.org"),
            ours.replace(": 3", ": 4"),
            ours.replace("mx.", "my."),
            format!("Mailshift-Hop: 9; by=mx.example.org; t={token}"),
            ours.replace("\r\n", "; more\r\n"),
            "Mailshift-Hop: 3; by=mx.example.org; t=\r\n".to_owned(),
            "Mailshift-Hop:\r\n".to_owned(),
            format!("Mailshift-Hop: 99999999999; by=mx.example.org; t={token}"),
        ] {
            assert_eq!(hops.count([value(&forged)]), 0, "{forged}");
        }
    }

    #[test]
    fn a_loop_is_put_off_inside_first_and_refused_in_public() {
        let told = |count, kind| refusal(count, kind).map_or(0, |reply| reply.code());
        let counts = [0, 1, 2, 3, 4, 5];
        assert_eq!(counts.map(|count| told(count, MxKind::Smtp)), [0, 0, 554, 554, 554, 554]);
        assert_eq!(counts.map(|count| told(count, MxKind::Internal)), [0, 0, 451, 451, 554, 554]);
    }
}

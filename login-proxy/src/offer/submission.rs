//! Submission's keywords before login (RFC 5321 §4.1.1.1), a line of the answer to EHLO each.
//!
//! Many clients do not say EHLO again after they have logged in, so that what is offered here must be true
//! of every backend.

use shared::sasl::{Mechanism, Mechanisms};

use super::{Offer, common_mechanisms};
use crate::backend::Abilities;

/// What depends on the connection, is between servers, or is not answered before login.
const NEVER: [&str; 10] =
    ["AUTH", "STARTTLS", "XCLIENT", "XFORWARD", "ETRN", "ATRN", "TURN", "VRFY", "EXPN", "XEXCH50"];

/// What every server has, nearly. The front takes commands in one segment, and its replies have the codes of
/// RFC 2034, so that both may be said of it.
pub fn modest() -> Offer {
    let words = ["PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"];
    Offer {
        capabilities: words.map(Into::into).into(),
        mechanisms: [Mechanism::Plain].into_iter().collect::<Mechanisms>(),
    }
}

/// What all have.
pub fn merge(backends: &[Abilities]) -> Offer {
    let (first, others) = match backends.split_first() {
        Some((first, others)) => (&*first.capabilities, others),
        None => (&[][..], &[][..]),
    };
    let merged = first.iter().filter_map(|line| {
        let (keyword, _) = split(line);
        let told_by_front = NEVER.contains(&&*keyword) || keyword.starts_with("AUTH=");
        let lines = others.iter().map(|other| line_of(other, &keyword));
        let same = |line: Option<String>, other: Option<&str>| common(&keyword, &line?, other?);
        (!told_by_front).then(|| lines.fold(Some(line.to_string()), same)).flatten()
    });
    Offer {
        capabilities: merged.map(Into::into).collect(),
        mechanisms: common_mechanisms(backends),
    }
}

fn line_of<'a>(backend: &'a Abilities, keyword: &str) -> Option<&'a str> {
    let mut lines = backend.capabilities.iter().map(|line| &**line);
    lines.find(|line| split(line).0 == keyword)
}

/// What two servers have in common of one keyword. Where they differ in what nobody here understands, that
/// is nothing.
fn common(keyword: &str, one: &str, other: &str) -> Option<String> {
    let (mine, theirs) = (split(one).1, split(other).1);
    match keyword {
        "SIZE" => Some(format!("SIZE {}", smaller(&mine, &theirs))),
        // Hosts and schemes that URLs may name (RFC 4468 §3.1).
        "BURL" => {
            let both = mine.iter().filter(|word| theirs.contains(word)).cloned();
            let both: Vec<_> = both.collect();
            (!both.is_empty()).then(|| format!("BURL {}", both.join(" ")))
        }
        // The longest interval and the latest date, which moves on with the clock (RFC 4865 §4).
        "FUTURERELEASE" => match (&*mine, &*theirs) {
            ([interval, date], [other_interval, other_date]) => {
                let interval = interval.parse::<u64>().ok()?.min(other_interval.parse().ok()?);
                Some(format!("FUTURERELEASE {interval} {}", date.min(other_date)))
            }
            _ => None,
        },
        _ => (mine == theirs).then(|| one.to_owned()),
    }
}

/// 0 and nothing are "no limit" (RFC 1870 §3).
fn smaller(mine: &[String], theirs: &[String]) -> u64 {
    let limits = [mine, theirs].map(|words| words.first().and_then(|word| word.parse().ok()));
    limits.into_iter().flatten().filter(|limit| *limit != 0).min().unwrap_or(0)
}

/// A keyword and its parameters, all in upper case.
fn split(line: &str) -> (String, Vec<String>) {
    let mut words = line.split_ascii_whitespace().map(str::to_ascii_uppercase);
    (words.next().unwrap_or_default(), words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(lines: &str) -> Abilities {
        let capabilities = lines.split(", ").map(Into::into).collect();
        Abilities { capabilities, mechanisms: Mechanisms::PASSWORDS, believes_us: None }
    }

    fn merged(all: &[&str]) -> String {
        let all: Vec<_> = all.iter().map(|lines| says(lines)).collect();
        merge(&all).capabilities.join(", ")
    }

    #[test]
    fn what_all_have_is_offered_and_nothing_else() {
        let postfix = "PIPELINING, SIZE 10240000, VRFY, ETRN, XCLIENT NAME ADDR, 8BITMIME, DSN, \
                       ENHANCEDSTATUSCODES, SMTPUTF8, CHUNKING";
        let other = "8bitmime, SIZE 5000, CHUNKING, PIPELINING, BINARYMIME, SMTPUTF8, ETRN";
        let expected = "PIPELINING, SIZE 5000, 8BITMIME, SMTPUTF8, CHUNKING";
        assert_eq!(merged(&[postfix, other]), expected);
        assert_eq!(merged(&["AUTH=LOGIN, STARTTLS, AUTH PLAIN, XFORWARD NAME"]), "");
        assert_eq!(merged(&[postfix, "AUTH"]), "");
        assert_eq!(merge(&[]).capabilities.len(), 0);
    }

    #[test]
    fn the_smallest_size_counts_and_zero_is_no_limit() {
        for (one, other, expected) in [
            ("SIZE 100", "SIZE 99", "SIZE 99"),
            ("SIZE", "SIZE 99", "SIZE 99"),
            ("SIZE 0", "SIZE 99", "SIZE 99"),
            ("SIZE", "SIZE 0", "SIZE 0"),
            ("SIZE 100", "DSN", ""),
        ] {
            assert_eq!(merged(&[one, other]), expected, "{one}, {other}");
            assert_eq!(merged(&[other, one]), expected, "{other}, {one}");
        }
    }

    #[test]
    fn parameters_are_those_that_hold_everywhere() {
        let dates =
            ["FUTURERELEASE 500 2026-01-02T00:00:00Z", "FUTURERELEASE 90 2026-01-03T00:00:00Z"];
        assert_eq!(merged(&dates), "FUTURERELEASE 90 2026-01-02T00:00:00Z");
        assert_eq!(merged(&["BURL imap imap://a", "BURL IMAP"]), "BURL IMAP");
        assert_eq!(merged(&["BURL imap://a", "BURL imap://b"]), "");
        assert_eq!(merged(&["LIMITS RCPTMAX=10", "LIMITS RCPTMAX=20"]), "");
        assert_eq!(merged(&["LIMITS RCPTMAX=10", "limits rcptmax=10"]), "LIMITS RCPTMAX=10");
    }
}

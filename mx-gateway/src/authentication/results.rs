//! The Authentication-Results header as it is written (RFC 8601).
//!
//! What clients and messages say of themselves gets into it tamed: no octet of theirs ends a value, opens a
//! comment or a quoted string, or begins another line.

use std::fmt::Write;

/// Octets of a value that are written.
const MAX_VALUE: usize = 255;
/// Where a line is folded.
const LINE: usize = 76;

/// What a method found out (RFC 8601 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is as it says.
    Pass,
    /// It is not.
    Fail,
    /// Probably not (SPF).
    SoftFail,
    /// Nothing is said about it.
    Neutral,
    /// There is nothing to check.
    None,
    /// It cannot be known now.
    TempError,
    /// It will never be known: what there is to check is wrong.
    PermError,
}

/// One method's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Such as `spf`.
    pub method: &'static str,
    /// Its result.
    pub found: Found,
    /// Why, in our own words.
    pub comment: Option<&'static str>,
    /// Property and value, such as `smtp.helo`; the value as somebody else said it.
    pub properties: Vec<(&'static str, String)>,
}

impl Found {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::Neutral => "neutral",
            Self::None => "none",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

impl Entry {
    /// A result without a comment or properties.
    pub fn new(method: &'static str, found: Found) -> Self {
        Self { method, found, comment: None, properties: Vec::new() }
    }

    /// Says why.
    pub fn because(mut self, comment: impl Into<Option<&'static str>>) -> Self {
        self.comment = comment.into();
        self
    }

    /// Says of what; an empty value says nothing.
    pub fn with(mut self, property: &'static str, value: &str) -> Self {
        if !value.is_empty() {
            self.properties.push((property, value.to_owned()));
        }
        self
    }

    /// Words that may stand on a line each.
    fn words(&self) -> Vec<String> {
        let mut words = vec![format!("{}={}", self.method, self.found.as_str())];
        words.extend(self.comment.map(|comment| format!("({comment})")));
        let value = |(property, text): &(&str, String)| format!("{property}={}", value(text));
        words.extend(self.properties.iter().map(value));
        words
    }
}

/// What follows the authserv-id, on one line.
pub fn one_line(entries: &[Entry]) -> String {
    let entries: Vec<String> = entries.iter().map(|entry| entry.words().join(" ")).collect();
    if entries.is_empty() { "none".to_owned() } else { entries.join("; ") }
}

/// The header with its CR LF.
pub fn header(id: &str, entries: &[Entry]) -> String {
    let mut header = format!("Authentication-Results: {id}");
    if entries.is_empty() {
        header.push_str("; none");
    }
    for entry in entries {
        header.push_str(";\r\n\t");
        let mut column: usize = 8;
        for (at, word) in entry.words().iter().enumerate() {
            let width = word.len().saturating_add(1);
            if at > 0 && column.saturating_add(width) > LINE {
                header.push_str("\r\n\t  ");
                column = 10;
            } else if at > 0 {
                header.push(' ');
            }
            header.push_str(word);
            column = column.saturating_add(width);
        }
    }
    header.push_str("\r\n");
    header
}

/// What the log says of a message.
pub fn summary(entries: &[Entry]) -> String {
    let mut summary = String::new();
    for entry in entries {
        let space = if summary.is_empty() { "" } else { " " };
        let _ = write!(summary, "{space}{}={}", entry.method, entry.found.as_str());
    }
    summary
}

/// A value (RFC 8601 §2.2, `pvalue`): a token, an address, or a quoted string.
fn value(text: &str) -> String {
    let is_token = |text: &str| {
        let good = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&b);
        !text.is_empty() && text.bytes().all(good)
    };
    // A dot-atom has signs that a token has not.
    let is_local = |text: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b))
    };
    let plain = match text.rsplit_once('@') {
        Some((local, domain)) => is_local(local) && is_token(domain),
        None => is_token(text),
    };
    let fits = text.len() <= MAX_VALUE;
    if plain && fits {
        return text.to_owned();
    }
    // No quoted pairs, and nothing in the quotes that reads as structure: not every reader knows quotes.
    let tame = |c: char| c.is_ascii_graphic() && !"()<>;=\\\"".contains(c) || c == ' ';
    let chars = text.chars().take(MAX_VALUE).map(|c| if tame(c) { c } else { '?' });
    format!("\"{}\"", chars.collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_says_all_results_in_their_order() {
        let entries = [
            Entry::new("spf", Found::Pass).with("smtp.mailfrom", "bob+x=y@example.com"),
            Entry::new("dkim", Found::Fail)
                .because("body hash did not verify")
                .with("header.d", "example.com")
                .with("header.s", "a-rather-long-selector")
                .with("header.b", "abcd/+12"),
            Entry::new("iprev", Found::TempError)
                .with("policy.iprev", "2001:db8::1")
                .with("x.y", ""),
        ];
        assert_eq!(
            header("mx.example.org", &entries),
            "Authentication-Results: mx.example.org;\r\n\
             \tspf=pass smtp.mailfrom=bob+x=y@example.com;\r\n\
             \tdkim=fail (body hash did not verify) header.d=example.com\r\n\
             \t  header.s=a-rather-long-selector header.b=\"abcd/+12\";\r\n\
             \tiprev=temperror policy.iprev=\"2001:db8::1\"\r\n"
        );
        assert_eq!(summary(&entries), "spf=pass dkim=fail iprev=temperror");
    }

    #[test]
    fn a_header_without_results_says_so() {
        assert_eq!(header("a.b", &[]), "Authentication-Results: a.b; none\r\n");
        assert_eq!(one_line(&[]), "none");
    }

    #[test]
    fn a_value_cannot_be_more_than_a_value() {
        for (said, written) in [
            ("mail.example.com", "mail.example.com"),
            ("a@b.example", "a@b.example"),
            ("x; dkim=pass", "\"x? dkim?pass\""),
            ("x\r\nEvil: yes", "\"x??Evil: yes\""),
            ("\"a;b\"@c.example", "\"?a?b?@c.example\""),
            ("(x) y", "\"?x? y\""),
            ("[192.0.2.1]", "\"[192.0.2.1]\""),
            ("\0\x1b[m", "\"??[m\""),
            ("bücher.example", "\"b?cher.example\""),
            ("a@b@c d", "\"a@b@c d\""),
        ] {
            assert_eq!(value(said), written, "{said:?}");
        }
        assert_eq!(value(&"x".repeat(1000)).len(), MAX_VALUE + 2);
    }

    proptest! {
        #[test]
        fn nobody_else_writes_a_line_or_a_result(said in ".{0,300}", more in "[\\x00-\\x7f]{0,40}") {
            let entry = Entry::new("spf", Found::Fail)
                .with("smtp.helo", &format!("x{said}"))
                .with("smtp.mailfrom", &format!("x{more}"));
            let header = header("mx.example.org", &[entry]);
            let lines: Vec<&str> = header.split("\r\n").collect();
            for (at, line) in lines.iter().enumerate() {
                let ours = at == 0 || at == lines.len() - 1 || line.starts_with('\t');
                prop_assert!(ours && line.len() < 998, "{header:?}");
                prop_assert!(line.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)));
            }
            prop_assert_eq!(header.matches(';').count(), 1);
            prop_assert_eq!(header.matches('"').count() % 2, 0);
            prop_assert!(!header.contains(['(', ')', '\\']));
        }
    }
}

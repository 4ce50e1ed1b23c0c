//! What a server offers in its answer to EHLO or LHLO (RFC 5321 §4.1.1.1).

use super::parameters::Takes;

/// A server's extensions, as far as a delivery uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a keyword that is there or not")]
pub struct Extensions {
    /// SIZE (RFC 1870): largest message in octets; 0 is "no limit".
    pub size: u64,
    /// SIZE is offered at all, so it may be a parameter of MAIL.
    pub takes_size: bool,
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// DSN (RFC 3461): MAIL and RCPT may have its parameters.
    pub dsn: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// CHUNKING (RFC 3030): BDAT may be said for DATA.
    pub chunking: bool,
    /// LIMITS RCPTMAX (RFC 9422): most RCPT commands in one transaction.
    pub rcpt_max: Option<u32>,
    /// LIMITS MAILMAX (RFC 9422): most transactions over one connection.
    pub mail_max: Option<u32>,
    /// XCLIENT: the attributes that may be sent, in upper case; empty when it is not offered.
    pub xclient: Vec<Box<str>>,
    /// XFORWARD: the attributes that may be sent, in upper case; empty when it is not offered.
    pub xforward: Vec<Box<str>>,
}

impl Extensions {
    /// Reads one line behind the first of the answer, such as `SIZE 10240000`.
    pub fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(keyword) = words.next() else { return };
        match keyword.to_ascii_uppercase().as_str() {
            "SIZE" => {
                self.takes_size = true;
                self.size = words.next().and_then(|octets| octets.parse().ok()).unwrap_or(0);
            }
            "PIPELINING" => self.pipelining = true,
            "8BITMIME" => self.eight_bit = true,
            "STARTTLS" => self.starttls = true,
            "DSN" => self.dsn = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "CHUNKING" => self.chunking = true,
            "LIMITS" => words.for_each(|limit| self.limit(limit)),
            "XCLIENT" => self.xclient = words.map(upper).collect(),
            "XFORWARD" => self.xforward = words.map(upper).collect(),
            _ => {}
        }
    }

    /// One limit, such as `RCPTMAX=100`. What has no sense is no limit (RFC 9422 §3), and 0 has none.
    fn limit(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else { return };
        let Some(value) = value.parse().ok().filter(|value| *value > 0) else { return };
        match name.to_ascii_uppercase().as_str() {
            "RCPTMAX" => self.rcpt_max = Some(value),
            "MAILMAX" => self.mail_max = Some(value),
            _ => {}
        }
    }

    /// The parameters that MAIL and RCPT may have.
    pub fn takes(&self) -> Takes {
        let Self { takes_size: size, eight_bit, smtputf8, dsn, .. } = *self;
        Takes { size, eight_bit, smtputf8, dsn }
    }

    /// True when a message of `octets` is larger than the server takes.
    pub fn is_too_large(&self, octets: u64) -> bool {
        self.size != 0 && octets > self.size
    }

    /// True when the XCLIENT attribute may be sent.
    pub fn takes_xclient(&self, attribute: &str) -> bool {
        self.xclient.iter().any(|offered| **offered == *attribute)
    }

    /// True when the XFORWARD attribute may be sent.
    pub fn takes_xforward(&self, attribute: &str) -> bool {
        self.xforward.iter().any(|offered| **offered == *attribute)
    }
}

fn upper(word: &str) -> Box<str> {
    word.to_ascii_uppercase().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_read_in_any_case() {
        let mut offered = Extensions::default();
        for line in ["size 1000", "Pipelining", "XCLIENT NAME addr", "UNKNOWN x", "", "8BITMIME"] {
            offered.add(line);
        }
        assert!(offered.pipelining && offered.eight_bit && !offered.starttls);
        assert!(offered.is_too_large(1001) && !offered.is_too_large(1000));
        assert!(offered.takes_xclient("ADDR") && !offered.takes_xclient("LOGIN"));
    }

    #[test]
    fn limits_are_read_as_far_as_they_make_sense() {
        let mut offered = Extensions::default();
        offered.add(
            "limits rcptmax=100 MAILMAX=0 RCPTDOMAINMAX=1 SPEED RCPTMAX=x MAILMAX=99999999999",
        );
        assert_eq!((offered.rcpt_max, offered.mail_max), (Some(100), None));
        offered.add("LIMITS MAILMAX=10");
        assert_eq!((offered.rcpt_max, offered.mail_max), (Some(100), Some(10)));
    }

    #[test]
    fn a_size_of_nothing_is_no_limit() {
        let mut offered = Extensions::default();
        offered.add("SIZE");
        assert!(offered.takes_size && !offered.is_too_large(u64::MAX));
    }
}

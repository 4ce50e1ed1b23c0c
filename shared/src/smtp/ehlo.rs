//! What a backend offers: the keywords of its EHLO or LHLO reply (RFC 5321 §4.1.1.1).
//!
//! Only what we use is kept. The first line is the server's name and greeting, never a keyword.

use super::reply::Reply;

/// The extensions a server offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a keyword that is there or not")]
pub struct Extensions {
    /// SIZE (RFC 1870).
    pub size: Option<SizeLimit>,
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// XCLIENT: the attributes it takes, upper-case. Empty: not offered to us.
    pub xclient: Vec<Box<str>>,
}

/// What SIZE says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeLimit {
    /// No limit is known: without a number, or 0.
    Unknown,
    /// The largest message in octets.
    Octets(u64),
}

impl Extensions {
    /// Reads an EHLO reply. A keyword it does not know, or one with odd parameters, is left out.
    pub fn of(reply: &Reply) -> Self {
        let mut extensions = Self::default();
        for line in reply.text().split('\n').skip(1) {
            let mut words = line.split_ascii_whitespace();
            // "AUTH=PLAIN" and the like are an old way to write a space.
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "SIZE" => {
                    let limit = words.next().and_then(|w| w.parse().ok()).filter(|&n| n > 0);
                    extensions.size = Some(limit.map_or(SizeLimit::Unknown, SizeLimit::Octets));
                }
                "PIPELINING" => extensions.pipelining = true,
                "8BITMIME" => extensions.eight_bit_mime = true,
                "STARTTLS" => extensions.starttls = true,
                "CHUNKING" => extensions.chunking = true,
                "ENHANCEDSTATUSCODES" => extensions.enhanced_status_codes = true,
                "XCLIENT" => {
                    extensions.xclient = words.map(|w| w.to_ascii_uppercase().into()).collect();
                }
                _ => {}
            }
        }
        extensions
    }

    /// True when a message of `octets` is more than the server says it takes.
    pub fn is_too_large(&self, octets: u64) -> bool {
        match self.size {
            Some(SizeLimit::Octets(limit)) => octets > limit,
            Some(SizeLimit::Unknown) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_read_in_any_case_and_unknown_ones_left_out() {
        let text = "STARTTLS PIPELINING\npipelining\nSIZE 1000\n8BITMIME\nXCLIENT name Addr PORT\nFUTURE x\n\n CHUNKING";
        let extensions = Extensions::of(&Reply::plain(250, text));
        let expected = Extensions {
            size: Some(SizeLimit::Octets(1000)),
            pipelining: true,
            eight_bit_mime: true,
            starttls: false,
            chunking: true,
            enhanced_status_codes: false,
            xclient: ["NAME", "ADDR", "PORT"].map(Into::into).to_vec(),
        };
        assert_eq!(extensions, expected);
    }

    #[test]
    fn only_a_number_limits_the_size() {
        let of = |line: &'static str| Extensions::of(&Reply::plain(250, line));
        assert!(of("x\nSIZE 1000").is_too_large(1001));
        assert!(!of("x\nSIZE 1000").is_too_large(1000));
        for line in ["x", "x\nSIZE", "x\nSIZE 0", "x\nSIZE many", "x\nSIZE 99999999999999999999"] {
            assert!(!of(line).is_too_large(u64::MAX), "{line}");
        }
    }
}

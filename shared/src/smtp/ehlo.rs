//! What a server offers in its answer to EHLO or LHLO (RFC 5321 §4.1.1.1).

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
    /// XCLIENT: the attributes that may be sent, in upper case; empty when it is not offered.
    pub xclient: Vec<Box<str>>,
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
            "XCLIENT" => {
                self.xclient = words.map(|word| word.to_ascii_uppercase().into()).collect();
            }
            _ => {}
        }
    }

    /// True when a message of `octets` is larger than the server takes.
    pub fn is_too_large(&self, octets: u64) -> bool {
        self.size != 0 && octets > self.size
    }

    /// True when the XCLIENT attribute may be sent.
    pub fn takes_xclient(&self, attribute: &str) -> bool {
        self.xclient.iter().any(|offered| **offered == *attribute)
    }
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
    fn a_size_of_nothing_is_no_limit() {
        let mut offered = Extensions::default();
        offered.add("SIZE");
        assert!(offered.takes_size && !offered.is_too_large(u64::MAX));
    }
}

//! Finds Authentication-Results headers that were written in our name (RFC 8601 §5).
//!
//! The header section is looked at octet by octet as it comes, so neither its size nor that of a line takes
//! memory. What may be read as our authserv-id by anybody is taken for it: in any case, quoted, behind
//! comments, folded, with a version, with a dot at its end.

use std::ops::Range;

/// What such a header is called, lower case.
const NAME: &[u8] = b"authentication-results";

/// Looks for headers in our name.
#[derive(Debug)]
pub struct Forged {
    /// Our authserv-id, lower case.
    id: Box<[u8]>,
    /// Octets seen.
    at: u64,
    /// Where the header at hand begins.
    begin: u64,
    headers: usize,
    at_line_start: bool,
    past_header: bool,
    part: Part,
    found: Vec<Range<u64>>,
}

/// Where in a header we are.
#[derive(Debug)]
enum Part {
    /// So many octets of its name were right.
    Name(usize),
    /// Its name was right; the colon may follow white space (RFC 5322 §4.5.8).
    Colon,
    /// Before the authserv-id or in it.
    Id(Id),
    /// It is another's, whatever follows.
    Foreign,
    /// It is in our name.
    Ours,
}

/// The authserv-id as it is read: a token or a quoted string behind comments (RFC 8601 §2.2).
#[derive(Debug, Default)]
struct Id {
    comments: usize,
    quoted: bool,
    escaped: bool,
    /// Its octets in lower case, as far as they are needed to compare.
    read: Vec<u8>,
}

impl Forged {
    /// Looks for headers with this authserv-id.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_ascii_lowercase().into_bytes().into(),
            at: 0,
            begin: 0,
            headers: 0,
            at_line_start: true,
            past_header: false,
            part: Part::Name(0),
            found: Vec::new(),
        }
    }

    /// Looks at more of the message. False: the header section has ended.
    pub fn look(&mut self, octets: &[u8]) -> bool {
        let mut rest = octets;
        while let Some((&octet, more)) = rest.split_first()
            && !self.past_header
        {
            if matches!(self.part, Part::Foreign | Part::Ours) && !self.at_line_start {
                // The rest of the line says nothing.
                let end = memchr::memchr(b'\n', rest);
                let skipped = end.map_or(rest.len(), |end| end.saturating_add(1));
                self.advance(skipped);
                self.at_line_start = end.is_some();
                rest = rest.get(skipped..).unwrap_or_default();
                continue;
            }
            if self.at_line_start {
                self.begin_line(octet);
            }
            if !self.past_header {
                self.feed(octet);
                self.advance(1);
            }
            rest = more;
        }
        !self.past_header
    }

    /// Octets of the header section seen, without the empty line that ends it.
    pub fn octets(&self) -> u64 {
        self.at
    }

    /// Header fields seen.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// Where headers in our name are, in octets of the message.
    pub fn finish(mut self) -> Vec<Range<u64>> {
        if !self.past_header {
            self.end_header();
        }
        self.found
    }

    fn advance(&mut self, octets: usize) {
        self.at = self.at.saturating_add(u64::try_from(octets).unwrap_or(u64::MAX));
    }

    /// A line that begins with white space goes on with the header before it.
    fn begin_line(&mut self, first: u8) {
        self.at_line_start = false;
        let is_first_line = self.at == 0;
        if matches!(first, b' ' | b'\t') && !is_first_line {
            return;
        }
        self.end_header();
        self.past_header = matches!(first, b'\r' | b'\n' | b' ' | b'\t');
        self.headers = self.headers.saturating_add(1);
        self.begin = self.at;
        self.part = Part::Name(0);
    }

    fn end_header(&mut self) {
        let ours = match &self.part {
            Part::Id(id) => id.is(&self.id),
            Part::Ours => true,
            Part::Name(_) | Part::Colon | Part::Foreign => false,
        };
        if !ours {
            return;
        }
        match self.found.last_mut() {
            Some(last) if last.end == self.begin => last.end = self.at,
            _ => self.found.push(self.begin..self.at),
        }
    }

    fn feed(&mut self, octet: u8) {
        self.at_line_start = octet == b'\n';
        let is_space = octet.is_ascii_whitespace();
        match &mut self.part {
            Part::Name(right) => match NAME.get(*right) {
                Some(expected) if octet.to_ascii_lowercase() == *expected => {
                    *right = right.saturating_add(1);
                }
                None if is_space => self.part = Part::Colon,
                None if octet == b':' => self.part = Part::Id(Id::default()),
                _ => self.part = Part::Foreign,
            },
            Part::Colon if octet == b':' => self.part = Part::Id(Id::default()),
            Part::Colon if is_space => {}
            Part::Colon => self.part = Part::Foreign,
            Part::Id(id) => {
                if id.read(octet, self.id.len()) {
                    self.part = if id.is(&self.id) { Part::Ours } else { Part::Foreign };
                }
            }
            Part::Foreign | Part::Ours => {}
        }
    }
}

impl Id {
    /// Reads an octet. True: the id has ended.
    fn read(&mut self, octet: u8, length: usize) -> bool {
        if std::mem::take(&mut self.escaped) {
            if self.quoted {
                self.keep(octet, length);
            }
            return false;
        }
        let inside = self.quoted || self.comments > 0;
        match octet {
            b'\\' if inside => self.escaped = true,
            b'"' if self.quoted => return true,
            // Folded within the quotes.
            b'\r' | b'\n' if self.quoted => {}
            _ if self.quoted => self.keep(octet, length),
            b')' if self.comments > 0 => self.comments = self.comments.saturating_sub(1),
            b'(' if self.read.is_empty() => self.comments = self.comments.saturating_add(1),
            _ if self.comments > 0 => {}
            // White space, and what some readers take for it.
            0..=b' ' | 0x7f => return !self.read.is_empty(),
            b'"' if self.read.is_empty() => self.quoted = true,
            _ if b"()<>@,;:\\\"/[]?=".contains(&octet) => return true,
            _ => self.keep(octet, length),
        }
        false
    }

    /// One octet more than our id and its dot are enough to know that it is another.
    fn keep(&mut self, octet: u8, length: usize) {
        if self.read.len() <= length.saturating_add(1) {
            self.read.push(octet.to_ascii_lowercase());
        }
    }

    fn is(&self, ours: &[u8]) -> bool {
        let read = self.read.trim_ascii();
        read == ours || read.strip_suffix(b".") == Some(ours)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: &str = "MX.example.org";

    fn ranges(message: &[u8]) -> Vec<Range<u64>> {
        let mut forged = Forged::new(OURS);
        forged.look(message);
        forged.finish()
    }

    /// What is left of a message.
    fn left(message: &str) -> String {
        let forged = ranges(message.as_bytes());
        let keep = |at: usize| forged.iter().all(|range| !range.contains(&(at as u64)));
        let octets = message.bytes().enumerate().filter(|(at, _)| keep(*at)).map(|(_, b)| b);
        String::from_utf8(octets.collect()).unwrap()
    }

    #[test]
    fn a_header_in_our_name_is_found_however_it_is_written() {
        for header in [
            "Authentication-Results: mx.example.org; spf=pass\r\n",
            "authentication-RESULTS:mX.eXample.org;spf=pass\r\n",
            "Authentication-Results : mx.example.org; none\r\n",
            "Authentication-Results\t \t: mx.example.org; none\r\n",
            "Authentication-Results\r\n : mx.example.org; none\r\n",
            "Authentication-Results: mx.example.org 1; spf=pass\r\n",
            "Authentication-Results: mx.example.org/1; spf=pass\r\n",
            "Authentication-Results: mx.example.org / 1; spf=pass\r\n",
            "Authentication-Results:\r\n mx.example.org;\r\n\tspf=pass\r\n",
            "Authentication-Results:\r\n \r\n\t \r\n mx.example.org\r\n\t; spf=pass\r\n",
            "Authentication-Results: (a (nested) \\) one) mx.example.org; none\r\n",
            "Authentication-Results: (a)\r\n (b) (c)mx.example.org(d); none\r\n",
            "Authentication-Results: \"mx.example.org\"; none\r\n",
            "Authentication-Results: \"m\\x.exam\\ple.org\"; none\r\n",
            "Authentication-Results: mx.example.org.; none\r\n",
            "Authentication-Results: mx.example.org\r\n",
            "Authentication-Results:\0\x7fmx.example.org\x01; none\r\n",
            "Authentication-Results: mx.example.org@x; none\r\n",
        ] {
            let message = format!("Subject: a\r\n{header}To: b\r\n\r\nbody\r\n");
            let kept = "Subject: a\r\nTo: b\r\n\r\nbody\r\n";
            assert_eq!(left(&message), kept, "{header:?} among others");
            assert_eq!(left(header), "", "{header:?} alone");
        }
    }

    #[test]
    fn what_is_anothers_stays() {
        for header in [
            "Authentication-Results: mx.example.com; spf=pass\r\n",
            "Authentication-Results: amx.example.org; spf=pass\r\n",
            "Authentication-Results: mx.example.org.uk; spf=pass\r\n",
            "Authentication-Results: mx.example.org..; spf=pass\r\n",
            "Authentication-Results: (mx.example.org) other.example; spf=pass\r\n",
            "Authentication-Results: other.example; x=mx.example.org\r\n",
            "Authentication-Results: \"mx.\r\n example.org\"; none\r\n",
            "Authentication-Results:\r\n",
            "Authentication-Results: (never closed mx.example.org;\r\n",
            "Authentication-Resultss: mx.example.org; spf=pass\r\n",
            "X-Authentication-Results: mx.example.org; spf=pass\r\n",
            "ARC-Authentication-Results: i=1; mx.example.org; spf=pass\r\n",
            "Subject: x\r\n Authentication-Results: mx.example.org; spf=pass\r\n",
            "Authentication-Results mx.example.org; spf=pass\r\n",
        ] {
            let message = format!("{header}\r\nbody\r\n");
            assert_eq!(left(&message), message);
        }
    }

    #[test]
    fn the_body_is_not_looked_at() {
        let body = "Authentication-Results: mx.example.org; spf=pass\r\n";
        for message in [
            format!("\r\n{body}"),
            format!("Subject: x\r\n\r\n{body}"),
            format!(" no header\r\n{body}"),
        ] {
            assert_eq!(left(&message), message);
        }
        assert_eq!(left(""), "");
    }

    #[test]
    fn headers_that_follow_each_other_are_one_range() {
        let one = "Authentication-Results: mx.example.org; none\r\n";
        let message = format!("{}A: b\r\n{}\r\n", one.repeat(1000), one.repeat(1000));
        let thousand = 1000 * one.len() as u64;
        assert_eq!(ranges(message.as_bytes()), [0..thousand, thousand + 6..2 * thousand + 6]);
    }

    #[test]
    fn a_line_takes_no_memory_however_long_it_is() {
        let mut forged = Forged::new(OURS);
        assert!(forged.look(b"Authentication-Results:"));
        for piece in [&b"(("[..], b"\\x", b"))", b" \t", b"\r\n "] {
            for _ in 0..1000 {
                forged.look(&piece.repeat(100));
            }
        }
        forged.look(b"\"");
        forged.look(&b"mx.example.org".repeat(100_000));
        let Part::Id(id) = &forged.part else { panic!("{:?}", forged.part) };
        assert!(id.read.len() < 20, "{id:?}");
    }

    proptest! {
        #[test]
        fn how_a_message_is_cut_does_not_matter(
            parts in prop::collection::vec(prop::sample::select(vec![
                "Authentication-Results", ":", " ", "\r\n", "\t", "mx.example.org", "(", ")", "\"", "\\",
                ";", "x", "\r\n ", "Authentication-Results: mx.example.org; none\r\n",
            ]), 0..20),
            cuts in prop::collection::vec(0..200_usize, 0..5),
        ) {
            let message = parts.concat().into_bytes();
            let mut forged = Forged::new(OURS);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(message.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([message.len()]) {
                forged.look(&message[from..cut]);
                from = cut;
            }
            prop_assert_eq!(forged.finish(), ranges(&message));
        }
    }
}

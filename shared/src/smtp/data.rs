//! Message data on the wire: where it ends, and dots at line starts (RFC 5321 §4.5.2).
//!
//! Only CR LF `.` CR LF ends data, counting the start of data as a line start. Everything that another
//! server might take for an end is refused (SMTP smuggling): a dot behind a lone LF or CR, a dot line that
//! ends with a lone LF or CR, and any lone CR. A lone LF elsewhere is sent on as it came: it ends nothing
//! for anybody when no dot follows it, and changing it would break signatures. NUL and 8-bit octets are
//! content.
//!
//! After a flaw the true end is still looked for, so that the refusal is the answer to this message and
//! to nothing else.
//!
//! Chunks (RFC 3030) are counted, so nothing ends them early here, and their dots are as they were
//! written. But what came in chunks may go on by DATA; so the same is refused in them.

/// Takes data off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDecoder {
    at: At,
    flawed: bool,
}

/// Takes the content of chunks (RFC 3030) as it is, by the same rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkDecoder(DataDecoder);

/// Where the decoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Behind CR LF, or at the start of data.
    LineStart,
    /// Behind a dot at a line start, which is not content.
    Dot,
    /// Behind that dot and CR.
    DotCr,
    /// Inside a line.
    Line,
    /// Behind CR inside a line.
    Cr,
    /// Behind an LF without CR.
    LoneLf,
    /// Behind the end.
    End,
}

/// Puts data on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataEncoder {
    /// Octets of CR LF that were just written: 2 at a line start.
    line_end: u8,
}

impl Default for DataDecoder {
    fn default() -> Self {
        Self { at: At::LineStart, flawed: false }
    }
}

impl DataDecoder {
    /// Takes octets from the wire and appends their content to `content`. Returns how many were taken:
    /// all of them, or those up to and with the end of data.
    pub fn decode(&mut self, octets: &[u8], content: &mut Vec<u8>) -> usize {
        let mut taken = 0;
        while let Some(&octet) = octets.get(taken) {
            if self.at == At::End {
                break;
            }
            if self.at == At::Line {
                let rest = octets.get(taken..).unwrap_or_default();
                let plain = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                content.extend_from_slice(rest.get(..plain).unwrap_or_default());
                taken = taken.saturating_add(plain);
                if plain > 0 {
                    continue;
                }
            }
            self.octet(octet, content);
            taken = taken.saturating_add(1);
        }
        taken
    }

    /// Takes octets that are content whatever they are, as far as their line ends are known.
    fn take(&mut self, octets: &[u8], content: &mut Vec<u8>) {
        let mut rest = octets;
        while let Some(&octet) = rest.first() {
            let plain = match (self.at, octet) {
                (At::LineStart, b'.') => 1,
                (At::Line, _) => memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len()),
                _ => 0,
            };
            let (plain, following) = rest.split_at(plain);
            if plain.is_empty() {
                self.octet(octet, content);
                rest = following.get(1..).unwrap_or_default();
            } else {
                content.extend_from_slice(plain);
                self.at = At::Line;
                rest = following;
            }
        }
    }

    /// True behind the end of data.
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }

    /// True when something in the data could be taken for its end by another server: refuse it.
    pub fn is_flawed(&self) -> bool {
        self.flawed
    }

    fn octet(&mut self, octet: u8, content: &mut Vec<u8>) {
        self.at = match (self.at, octet) {
            (At::LineStart, b'.') => At::Dot,
            (At::Dot, b'\r') => At::DotCr,
            (At::DotCr, b'\n') => At::End,
            // CR LF . LF, CR LF . CR x, CR LF . CR CR LF
            (At::Dot, b'\n') => self.flaw(content, &[octet], At::LoneLf),
            (At::DotCr, b'\r') => self.flaw(content, b"\r", At::Cr),
            (At::DotCr, _) => self.flaw(content, &[b'\r', octet], At::Line),
            // A lone CR, which may have a dot behind it.
            (At::Cr, b'\r') => self.flaw(content, b"\r", At::Cr),
            (At::Cr, b'\n') => {
                content.extend_from_slice(b"\r\n");
                At::LineStart
            }
            (At::Cr, _) => self.flaw(content, &[b'\r', octet], At::Line),
            // LF . anything
            (At::LoneLf, b'.') => self.flaw(content, b".", At::Line),
            (At::LineStart | At::Line | At::LoneLf, b'\r') => At::Cr,
            (At::LineStart | At::Line | At::LoneLf, b'\n') => {
                content.push(octet);
                At::LoneLf
            }
            (At::LineStart | At::Line | At::LoneLf | At::Dot, _) => {
                content.push(octet);
                At::Line
            }
            (At::End, _) => At::End,
        };
    }

    fn flaw(&mut self, content: &mut Vec<u8>, octets: &[u8], at: At) -> At {
        self.flawed = true;
        content.extend_from_slice(octets);
        at
    }
}

impl ChunkDecoder {
    /// Appends the content of these octets to `content`: all of it but a CR at their end, which comes with
    /// what follows it.
    pub fn decode(&mut self, octets: &[u8], content: &mut Vec<u8>) {
        self.0.take(octets, content);
    }

    /// The last chunk was whole. True when something in the message could be taken for its end by another
    /// server, once it is sent on by DATA: refuse it.
    pub fn is_flawed_at_end(&self) -> bool {
        self.0.flawed || self.0.at == At::Cr
    }
}

impl Default for DataEncoder {
    fn default() -> Self {
        Self { line_end: 2 }
    }
}

impl DataEncoder {
    /// Appends `content` to `wire`, with every dot at a line start doubled.
    pub fn encode(&mut self, content: &[u8], wire: &mut Vec<u8>) {
        let mut rest = content;
        while let Some(&first) = rest.first() {
            if self.line_end == 2 && first == b'.' {
                wire.push(b'.');
            }
            let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at.saturating_add(1));
            let (line, following) = rest.split_at(line);
            wire.extend_from_slice(line);
            self.line_end = match line {
                [.., b'\r', b'\n'] => 2,
                [b'\n'] if self.line_end == 1 => 2,
                [.., b'\r'] => 1,
                _ => 0,
            };
            rest = following;
        }
    }

    /// Appends the end of data. Content that was decoded from the wire ends with CR LF; other content gets
    /// one, since there is no end without.
    pub fn finish(self, wire: &mut Vec<u8>) {
        if self.line_end != 2 {
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests;

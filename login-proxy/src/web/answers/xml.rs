//! The little of XML that is needed: writing documents of our own, and reading one element's text from
//! somebody else's. Pure.
//!
//! What is written is escaped by construction: only names of elements and attributes are taken as they are,
//! and those are words of the program. What is read is no full parser on purpose. It knows no document types,
//! so that there are no entities to expand and nothing to fetch, and it looks at each octet once.

use std::fmt::{self, Display, Write as _};

/// A document that is being written.
#[derive(Debug)]
pub(super) struct Xml {
    text: String,
    depth: usize,
}

/// Text as it is written in a document: nothing in it is markup.
#[derive(Debug, Clone, Copy)]
struct Escaped<'a>(&'a str);

/// Why nothing is read from a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum XmlError {
    /// A document type, or another declaration. Nothing that is expected here has one.
    #[error("a document type is not read")]
    Declaration,
    /// What is not even nearly XML, or a reference to an entity that nobody knows.
    #[error("malformed XML")]
    Malformed,
}

impl Xml {
    /// A document that has only its declaration.
    pub(super) fn new() -> Self {
        Self { text: "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n".into(), depth: 0 }
    }

    /// An element that has others.
    pub(super) fn within(
        &mut self,
        name: &'static str,
        attributes: &[(&'static str, &str)],
        content: impl FnOnce(&mut Self),
    ) {
        self.indent();
        self.text.push('<');
        self.text.push_str(name);
        for (attribute, value) in attributes {
            self.put(format_args!(" {attribute}=\"{}\"", Escaped(value)));
        }
        self.text.push_str(">\n");
        self.depth += 1;
        content(self);
        self.depth -= 1;
        self.indent();
        self.put(format_args!("</{name}>\n"));
    }

    /// An element that has text.
    pub(super) fn leaf(&mut self, name: &'static str, text: impl Display) {
        let text = text.to_string();
        self.indent();
        self.put(format_args!("<{name}>{}</{name}>\n", Escaped(&text)));
    }

    /// The document.
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn indent(&mut self) {
        for _ in 0..self.depth {
            self.text.push_str("  ");
        }
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = self.text.write_fmt(text);
    }
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&apos;"),
            c if is_character(c) => f.write_char(c),
            // There is no way to write it: a reference to it would be an error, too.
            _ => f.write_char(char::REPLACEMENT_CHARACTER),
        })
    }
}

/// A character that a document may have (XML 1.0 §2.2).
fn is_character(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        c => c >= ' ',
    }
}

/// The text of the first element of that local name, whatever its prefix, without white space around it.
/// `None`: there is none.
///
/// # Errors
///
/// An [`XmlError`], also where the element has others in it.
pub(super) fn text_of(document: &str, name: &str) -> Result<Option<String>, XmlError> {
    let mut rest = document;
    while let Some((_, markup)) = rest.split_once('<') {
        rest = if let Some(comment) = markup.strip_prefix("!--") {
            behind(comment, "-->")?
        } else if let Some(instruction) = markup.strip_prefix('?') {
            behind(instruction, "?>")?
        } else if let Some(section) = markup.strip_prefix("![CDATA[") {
            behind(section, "]]>")?
        } else if markup.starts_with('!') {
            return Err(XmlError::Declaration);
        } else {
            let (tag, content) = split_tag(markup)?;
            let qualified = tag.split([' ', '\t', '\r', '\n', '/']).next().unwrap_or_default();
            let local = qualified.rsplit(':').next().unwrap_or_default();
            if local == name {
                return if tag.ends_with('/') {
                    Ok(Some(String::new()))
                } else {
                    text(content, qualified).map(Some)
                };
            }
            content
        };
    }
    Ok(None)
}

fn behind<'a>(text: &'a str, end: &str) -> Result<&'a str, XmlError> {
    text.split_once(end).map(|(_, rest)| rest).ok_or(XmlError::Malformed)
}

/// Splits a tag, without its brackets, from what follows it. A quoted `>` does not end it.
fn split_tag(markup: &str) -> Result<(&str, &str), XmlError> {
    let mut quote = None;
    for (at, octet) in markup.bytes().enumerate() {
        match (quote, octet) {
            (_, b'<') => break,
            (None, b'>') => {
                let (tag, rest) = markup.split_at_checked(at).ok_or(XmlError::Malformed)?;
                return Ok((tag, rest.strip_prefix('>').unwrap_or(rest)));
            }
            (None, b'"' | b'\'') => quote = Some(octet),
            (Some(open), _) if open == octet => quote = None,
            (_, _) => {}
        }
    }
    Err(XmlError::Malformed)
}

/// The text before the end of the element of that qualified name.
fn text(content: &str, qualified: &str) -> Result<String, XmlError> {
    let (text, markup) = content.split_once('<').ok_or(XmlError::Malformed)?;
    let end = markup.strip_prefix('/').and_then(|end| end.strip_prefix(qualified));
    if !end.is_some_and(|end| end.trim_ascii_start().starts_with('>')) {
        return Err(XmlError::Malformed);
    }
    unescaped(text.trim_ascii())
}

fn unescaped(text: &str) -> Result<String, XmlError> {
    let mut parts = text.split('&');
    let mut plain = String::from(parts.next().unwrap_or_default());
    for part in parts {
        let (reference, rest) = part.split_once(';').ok_or(XmlError::Malformed)?;
        plain.push(referenced(reference).ok_or(XmlError::Malformed)?);
        plain.push_str(rest);
    }
    if plain.chars().all(is_character) { Ok(plain) } else { Err(XmlError::Malformed) }
}

/// What a reference stands for: one of the five that all documents have, or a number (XML 1.0 §4.1, §4.6).
fn referenced(reference: &str) -> Option<char> {
    match reference {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        other => {
            let number = other.strip_prefix('#')?;
            let (digits, radix) = number.strip_prefix('x').map_or((number, 10), |hex| (hex, 16));
            let digits =
                Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_alphanumeric()))?;
            char::from_u32(u32::from_str_radix(digits, radix).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(document: &str) -> Result<Option<String>, XmlError> {
        text_of(document, "EMailAddress")
    }

    #[test]
    fn an_element_is_found_however_it_is_written() {
        for document in [
            "<EMailAddress>ann@example.org</EMailAddress>",
            "\u{feff}<?xml version='1.0'?><a:R xmlns:a='x'><a:EMailAddress b='>'>\r\n ann@example.org\t</a:EMailAddress ></a:R>",
            "<!-- <EMailAddress>eve@example.org</EMailAddress> --><EMailAddress>ann&#64;example&#x2e;org</EMailAddress>",
            "<x><![CDATA[<EMailAddress>eve@example.org</EMailAddress>]]></x><EMailAddress>ann@example.org</EMailAddress>",
        ] {
            assert_eq!(read(document), Ok(Some("ann@example.org".into())), "{document}");
        }
        assert_eq!(read("<EMailAddress/>"), Ok(Some(String::new())));
        assert_eq!(read("<EMailAddress xmlns='x' /> "), Ok(Some(String::new())));
        for document in
            ["", "plain", "<a></a>", "</EMailAddress>", "<EMailAddresses>x</EMailAddresses>"]
        {
            assert_eq!(read(document), Ok(None), "{document}");
        }
    }

    #[test]
    fn document_types_and_unknown_entities_are_refused() {
        for document in [
            "<!DOCTYPE a><EMailAddress>a@b</EMailAddress>",
            "<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><EMailAddress>&x;</EMailAddress>",
            "<!ENTITY x \"y\"><EMailAddress>&x;</EMailAddress>",
        ] {
            assert_eq!(read(document), Err(XmlError::Declaration), "{document}");
        }
        for document in [
            "<EMailAddress>&x;</EMailAddress>",
            "<EMailAddress>a&b</EMailAddress>",
            "<EMailAddress>&#0;</EMailAddress>",
            "<EMailAddress>&#x0001;</EMailAddress>",
            "<EMailAddress>&#+64;</EMailAddress>",
            "<EMailAddress>&#xd800;</EMailAddress>",
            "<EMailAddress>&#99999999999999999999;</EMailAddress>",
            "<EMailAddress>\0</EMailAddress>",
            "<EMailAddress>a<b/></EMailAddress>",
            "<EMailAddress><![CDATA[a]]></EMailAddress>",
            "<EMailAddress>a</EMailAddressX>",
            "<EMailAddress>a</x:EMailAddress>",
            "<EMailAddress>a",
            "<EMailAddress",
            "<!-- <EMailAddress>a</EMailAddress>",
            "<?xml <EMailAddress>a</EMailAddress>",
            "<x y='><EMailAddress>a</EMailAddress>",
        ] {
            assert_eq!(read(document), Err(XmlError::Malformed), "{document}");
        }
    }

    #[test]
    fn a_document_is_written_with_nothing_left_unescaped() {
        let mut xml = Xml::new();
        xml.within("a", &[("b", "\"'<>&\0")], |xml| {
            xml.leaf("c", "<d>&amp;\u{1}\u{fffe}");
            xml.leaf("e", "");
        });
        assert_eq!(
            xml.finish(),
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
             <a b=\"&quot;&apos;&lt;&gt;&amp;\u{fffd}\">\n  \
               <c>&lt;d&gt;&amp;amp;\u{fffd}\u{fffd}</c>\n  <e></e>\n</a>\n"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(text in "\\PC*") {
            let mut xml = Xml::new();
            xml.leaf("EMailAddress", &text);
            let characters: String = text.chars().filter(|c| is_character(*c)).collect();
            prop_assume!(characters == text);
            prop_assert_eq!(read(&xml.finish()), Ok(Some(text.trim_ascii().into())));
        }

        #[test]
        fn any_document_is_read_without_a_panic(document in "(<|>|/|!|-|\\[|\\]|&|;|#|x|\"|'|\\?|EMailAddress| |\\PC){0,40}") {
            let _ = read(&document);
        }
    }
}

//! What is wrong with a configuration file: where, which key, and what was probably meant.

use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::CertificateFiles;

/// Everything that is wrong with a configuration file.
#[derive(Debug)]
pub struct ConfigError {
    file: Box<Path>,
    problems: Vec<Problem>,
    certificates: Vec<CertificateFiles>,
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Line, counted from 1; `None` when the key is not in the file.
    pub(super) line: Option<usize>,
    /// The key, dotted; empty for a syntax error.
    pub(super) key: String,
    pub(super) message: String,
}

/// Collects problems of one file.
pub(super) struct Problems<'a> {
    text: &'a str,
    table: DeTable<'a>,
    pub(super) found: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(file: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.line.unwrap_or(usize::MAX));
        Self { file: file.into(), problems, certificates: Vec::new() }
    }

    pub(super) fn with_certificates(self, certificates: Vec<CertificateFiles>) -> Self {
        Self { certificates, ..self }
    }

    /// The certificates that the file names, as far as it could be read: they may be wrong, too.
    pub fn certificates(&self) -> &[CertificateFiles] {
        &self.certificates
    }

    /// How many problems there are.
    pub fn count(&self) -> usize {
        self.problems.len()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str, table: DeTable<'a>) -> Self {
        Self { text, table, found: Vec::new() }
    }

    /// Notes that `key` (dotted) is wrong; its line is looked up.
    pub(super) fn note(&mut self, key: &str, message: impl Into<String>) {
        let line = find(&self.table, key).map(|offset| self.line_of(offset));
        self.found.push(Problem { line, key: key.to_owned(), message: message.into() });
    }

    /// Notes what the deserializer said about the octets at `span`, with the key that is there.
    pub(super) fn note_at(&mut self, span: std::ops::Range<usize>, message: &str) {
        let key = key_at(&self.table, span.start, "").unwrap_or_default();
        self.found.push(Problem {
            line: Some(self.line_of(span.start)),
            key,
            message: with_nearest(message),
        });
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or(self.text);
        before.matches('\n').count().saturating_add(1)
    }
}

/// Offset of a dotted key's value, or of the innermost table on the way to it.
fn find(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == head)?;
    let here = Some(name.span().start);
    match (rest, value.get_ref()) {
        (Some(rest), DeValue::Table(inner)) => find(inner, rest).or(here),
        _ => here,
    }
}

/// The dotted key whose name or value begins at `offset`.
fn key_at(table: &DeTable<'_>, offset: usize, prefix: &str) -> Option<String> {
    for (name, value) in table {
        let path = format!("{prefix}{}", name.get_ref());
        if name.span().contains(&offset) {
            return Some(path);
        }
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(found) = key_at(inner, offset, &format!("{path}."))
        {
            return Some(found);
        }
        if value.span().contains(&offset) && !matches!(value.get_ref(), DeValue::Table(_)) {
            return Some(path);
        }
    }
    None
}

/// Takes the key or value at `span` out of the table, so that the next reading finds the next problem.
pub(super) fn remove_at(table: &mut DeTable<'_>, span: &std::ops::Range<usize>) -> bool {
    let hit = |start: usize, end: usize| start <= span.start && span.start < end.max(start + 1);
    let exact = table
        .iter()
        .find(|(name, value)| {
            hit(name.span().start, name.span().end)
                || (hit(value.span().start, value.span().end)
                    && !matches!(value.get_ref(), DeValue::Table(_)))
        })
        .map(|(name, _)| name.clone());
    if let Some(name) = exact {
        return table.remove(&name).is_some();
    }
    table.iter_mut().any(|(_, value)| match value.get_mut() {
        DeValue::Table(inner) => remove_at(inner, span),
        _ => false,
    })
}

/// Adds "did you mean" to a message of the form "unknown … `x`, expected … `a`, `b`".
fn with_nearest(message: &str) -> String {
    let message = message.trim_end();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(given) = quoted.next().filter(|_| message.starts_with("unknown")) else {
        return message.to_owned();
    };
    let nearest = quoted.map(|known| (distance(given, known), known)).min();
    match nearest {
        Some((steps, known)) if steps <= given.len().div_ceil(2) => {
            let what = message.split('`').next().unwrap_or("unknown ").trim_end();
            format!("{what} `{given}`, did you mean `{known}`?")
        }
        _ => message.to_owned(),
    }
}

/// Edit distance: letters put in, taken out or replaced.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let best = (diagonal + usize::from(ca != *cb)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_key_is_named() {
        let said =
            "unknown field `max_stalenes`, expected one of `url`, `max_staleness`, `url_file`";
        assert_eq!(
            with_nearest(said),
            "unknown field `max_stalenes`, did you mean `max_staleness`?"
        );
        let far = "unknown field `zzzzzzzz`, expected one of `url`, `name`";
        assert_eq!(with_nearest(far), far);
    }

    #[test]
    fn distance_counts_single_letters() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}

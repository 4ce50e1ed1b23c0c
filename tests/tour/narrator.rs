//! How the tour speaks: titles, conversations, commands, and a mark at what came out right.

use std::cell::Cell;

/// Longest line shown of a conversation, in characters.
const WIDTH: usize = 100;

/// Writes the tour to standard output, in colour on a terminal.
#[derive(Debug)]
pub(crate) struct Narrator {
    colour: bool,
    steps: Cell<u32>,
}

impl Narrator {
    pub(crate) fn new(colour: bool) -> Self {
        Self { colour, steps: Cell::new(0) }
    }

    /// A new step.
    pub(crate) fn title(&self, words: &str) {
        self.steps.set(self.steps.get() + 1);
        println!("\n{}", self.painted("1", &format!("{}. {words}", self.steps.get())));
    }

    pub(crate) fn say(&self, words: &str) {
        println!("{words}");
    }

    /// A command as one would type it.
    pub(crate) fn command(&self, words: &str) {
        println!("  {}", self.painted("36", &format!("$ {words}")));
    }

    /// What a command printed.
    pub(crate) fn output(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
    }

    /// What was said on a connection.
    pub(crate) fn conversation(&self, said: &[String]) {
        for line in said {
            let shown: String = line.chars().take(WIDTH).collect();
            let colour = if line.starts_with("C:") { "33" } else { "2" };
            println!("  {}", self.painted(colour, &shown));
        }
    }

    /// It came out as it should.
    pub(crate) fn good(&self, words: &str) {
        println!("  {} {words}", self.painted("32", "✓"));
    }

    /// It did not.
    pub(crate) fn failed(&self, words: &str) {
        println!("  {} {words}", self.painted("31", "✗"));
        println!("\nThe tour failed at step {}.", self.steps.get());
    }

    /// The end of a server's log.
    pub(crate) fn log(&self, text: &str) {
        println!("\n  A service's log ends with:");
        self.output(text);
    }

    fn painted(&self, code: &str, words: &str) -> String {
        if self.colour { format!("\x1b[{code}m{words}\x1b[0m") } else { words.to_owned() }
    }
}

//! The settings that operators paste (`config/backends/`), for the tests to start servers with.

use anyhow::{Context, Result};

/// Postfix in front of Dovecot.
pub const DOVECOT_POSTFIX: &str = include_str!("../../config/backends/dovecot-postfix.md");
/// Postfix in front of Cyrus.
pub const CYRUS: &str = include_str!("../../config/backends/cyrus.md");

/// All blocks of a recipe that are marked with this label, in their order.
///
/// # Errors
///
/// There is none.
pub fn blocks(recipe: &str, label: &str) -> Result<String> {
    let found: Vec<&str> = recipe
        .split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.split_once('\n'))
        .filter(|(mark, _)| *mark == label)
        .map(|(_, text)| text)
        .collect();
    (!found.is_empty()).then_some(()).with_context(|| format!("no block is marked {label:?}"))?;
    Ok(found.join("\n") + "\n")
}

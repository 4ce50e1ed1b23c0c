//! Examples in the documentation are what they say.

use std::path::Path;

use shared::config::Config;

/// The fenced blocks of one language in a Markdown file.
fn blocks(file: &str, language: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(file)).unwrap();
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_readmes_configuration_is_good() {
    let examples = blocks("README.md", "toml");
    assert_eq!(examples.len(), 1);
    let config = Config::parse(Path::new("README.md"), &examples[0]).unwrap();
    assert_eq!(config.backends.iter().count(), 2);
    assert_eq!((config.mx.listeners.len(), config.login.listeners.len()), (1, 3));
}

#[test]
fn the_readmes_flip_is_one_statement_on_a_real_table() {
    let statements = blocks("README.md", "sql");
    let table = tests::table::Table::create(tests::table::Engine::Sqlite).unwrap();
    table
        .sql(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old');",
        )
        .unwrap();
    table.sql(&statements[0]).unwrap();
    assert_eq!(table.sql("SELECT owner FROM accounts;").unwrap().trim(), "new");
}

//! The ownership table in SQLite, as an operator meets it: plain SQL in the real `sqlite3` shell, which
//! checks no foreign keys and knows nothing of us (DESIGN §2a).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use shared::ownership::schema;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use tempfile::TempDir;

const VIEWS: &str = include_str!("../../config/schema/sqlite/views.sql");

/// Both files in a directory of their own, with a domain that lives at `old` and three accounts there.
struct Table {
    directory: TempDir,
}

impl Table {
    async fn new() -> Self {
        let table = Self { directory: tempfile::tempdir().unwrap() };
        let pool = |file: &Path| {
            SqlitePool::connect_lazy_with(
                SqliteConnectOptions::new()
                    .filename(file)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal),
            )
        };
        let (main, nodes) = (pool(&table.file()), pool(&table.nodes()));
        std::fs::File::create(table.file()).unwrap();
        schema::prepare_sqlite(&main, &nodes, &table.file(), schema::Apply::All).await.unwrap();
        main.close().await;
        nodes.close().await;
        table.run(
            "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old'), \
             ('strict.example', NULL); \
             INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old'), \
             ('bob@example.org', 'old'), ('joe@strict.example', 'old');",
        );
        table
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("ownership.db")
    }

    fn nodes(&self) -> PathBuf {
        self.directory.path().join("ownership-nodes.db")
    }

    /// What the shell prints, or what it complains about.
    fn shell(&self, sql: &str) -> Result<String, String> {
        let mut child = Command::new("sqlite3")
            .args(["-bail", "-batch", "-separator", " ", "-cmd", ".timeout 10000"])
            .arg(self.file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sqlite3 was not found: install it (apt-get install sqlite3)");
        child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        if output.status.success() && complaint.is_empty() {
            Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
        } else {
            Err(complaint)
        }
    }

    fn run(&self, sql: &str) -> String {
        self.shell(sql).unwrap_or_else(|complaint| panic!("{sql}: {complaint}"))
    }

    /// Runs what must fail, with the shell's settings and with the opposite ones.
    fn refused(&self, sql: &str, because: &str) {
        for settings in ["", "PRAGMA recursive_triggers = ON; PRAGMA foreign_keys = ON;"] {
            let complaint = self.shell(&format!("{settings} {sql};")).expect_err(sql);
            assert!(complaint.contains(because), "{sql}: {complaint}");
        }
    }

    /// The newest `count` changes as `kind name op old→new`, oldest first.
    fn newest_changes(&self, count: usize) -> Vec<String> {
        let rows = self.run(&format!(
            "SELECT line FROM (SELECT epoch, kind || ' ' || name || ' ' || op || ' ' || \
               ltrim(coalesce('/' || old_owner, '') || coalesce('/' || old_state, '') || \
                 coalesce('/' || old_account, '') || coalesce('/' || old_default_owner, '') || \
                 coalesce('/' || old_subaddress_delimiter, '') || coalesce('/' || old_login, ''), \
                 '/') || '→' || \
               ltrim(coalesce('/' || new_owner, '') || coalesce('/' || new_state, '') || \
                 coalesce('/' || new_account, '') || coalesce('/' || new_default_owner, '') || \
                 coalesce('/' || new_subaddress_delimiter, '') || coalesce('/' || new_login, ''), \
                 '/') AS line \
             FROM changes ORDER BY epoch DESC LIMIT {count}) ORDER BY epoch;"
        ));
        rows.lines().map(str::to_owned).collect()
    }

    /// Each row and its last change agree.
    fn assert_consistent(&self) {
        let strays = self.run(
            "SELECT account FROM accounts a WHERE NOT EXISTS (SELECT 1 FROM changes c \
               WHERE c.kind = 'account' AND c.name = a.account AND c.epoch = a.epoch \
               AND c.new_owner = a.owner AND c.new_state = a.state AND c.new_login = a.login) \
             UNION ALL SELECT alias FROM aliases s WHERE NOT EXISTS (SELECT 1 FROM changes c \
               WHERE c.kind = 'alias' AND c.name = s.alias AND c.epoch = s.epoch \
               AND c.new_account = s.account AND c.new_login = s.login) \
             UNION ALL SELECT domain FROM domains d WHERE NOT EXISTS (SELECT 1 FROM changes c \
               WHERE c.kind = 'domain' AND c.name = d.domain AND c.epoch = d.epoch \
               AND c.new_default_owner IS d.default_owner \
               AND c.new_subaddress_delimiter = d.subaddress_delimiter);",
        );
        assert_eq!(strays, "");
    }
}

#[tokio::test]
async fn one_update_in_the_shell_flips_and_says_when_from_and_to() {
    let table = Table::new().await;
    table.run("UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';");
    assert_eq!(
        table.newest_changes(1),
        ["account ann@example.org update old/active/1→new/active/1"]
    );
    assert_eq!(
        table.run(
            "SELECT a.owner, a.former_owner, a.epoch = c.epoch, a.flip_epoch = a.epoch, \
             a.flipped_at IS NOT NULL, c.nonce = clock.nonce, c.epoch = clock.epoch, c.by, c.deleted \
             FROM clock, accounts a JOIN changes c ON c.name = a.account \
             ORDER BY c.epoch DESC LIMIT 1;"
        ),
        "new old 1 1 1 1 1 sqlite 0"
    );
}

#[tokio::test]
async fn insert_delete_and_each_kind_write_whole_rows() {
    let table = Table::new().await;
    table.run(
        "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org'); \
         UPDATE aliases SET account = 'bob@example.org', login = 0; \
         DELETE FROM aliases; \
         UPDATE domains SET default_owner = 'new' WHERE domain = 'strict.example'; \
         UPDATE domains SET subaddress_delimiter = '' WHERE domain = 'strict.example'; \
         UPDATE accounts SET login = 0 WHERE account = 'bob@example.org'; \
         DELETE FROM accounts WHERE account = 'bob@example.org'; \
         DELETE FROM domains WHERE domain = 'example.org';",
    );
    assert_eq!(
        table.newest_changes(8),
        [
            "alias annie insert →ann@example.org/1",
            "alias annie update ann@example.org/1→bob@example.org/0",
            "alias annie delete bob@example.org/0→",
            "domain strict.example update +→new/+",
            "domain strict.example update new/+→new/",
            "account bob@example.org update old/active/1→old/active/0",
            "account bob@example.org delete old/active/0→",
            "domain example.org delete old/+→",
        ]
    );
    table.assert_consistent();
}

#[tokio::test]
async fn only_what_differs_is_a_change() {
    let table = Table::new().await;
    let before = table.run("SELECT epoch FROM clock;");
    table.run(
        "UPDATE accounts SET owner = 'old'; UPDATE accounts SET note = 'x'; \
         UPDATE aliases SET login = 1; UPDATE domains SET subaddress_delimiter = '+'; \
         UPDATE accounts SET hold_until = '2030-01-01 00:00:00' WHERE account = 'nobody';",
    );
    assert_eq!(table.run("SELECT epoch FROM clock;"), before);
}

#[tokio::test]
async fn a_savepoint_takes_its_epochs_back() {
    let table = Table::new().await;
    table.run(
        "BEGIN; UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         SAVEPOINT s; UPDATE accounts SET owner = 'attic'; ROLLBACK TO s; \
         UPDATE accounts SET owner = 'cellar' WHERE account = 'joe@strict.example'; COMMIT;",
    );
    assert_eq!(
        table.newest_changes(2),
        [
            "account ann@example.org update old/active/1→new/active/1",
            "account joe@strict.example update old/active/1→cellar/active/1",
        ]
    );
    assert_eq!(
        table.run("SELECT max(epoch) = (SELECT epoch FROM clock) FROM changes;"),
        "1",
        "no number is left out"
    );
    table.assert_consistent();
}

#[tokio::test]
async fn replace_and_upsert_are_seen_with_the_owner_before() {
    // With recursive triggers a replaced row is deleted first, as its changes then say.
    for (settings, before) in [("", "old"), ("PRAGMA recursive_triggers = ON;", "-")] {
        let table = Table::new().await;
        table.run(&format!(
            "{settings} INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'new') \
             ON CONFLICT DO UPDATE SET owner = excluded.owner; \
             INSERT OR REPLACE INTO accounts (account, owner) VALUES ('joe@strict.example', 'new'); \
             INSERT OR IGNORE INTO accounts (account, owner) VALUES ('bob@example.org', 'new');"
        ));
        assert_eq!(
            table.run(
                "SELECT account, owner, coalesce(former_owner, '-') FROM accounts ORDER BY account;"
            ),
            format!(
                "ann@example.org new old\nbob@example.org old -\njoe@strict.example new {before}"
            )
        );
        let last = table.newest_changes(1);
        assert!(last[0].ends_with("→new/active/1"), "{last:?}");
        table.assert_consistent();
        table.run("UPDATE accounts SET state = 'held' WHERE account = 'ann@example.org';");
        table.refused(
            "INSERT OR REPLACE INTO accounts (account, owner) VALUES ('ann@example.org', 'old')",
            "the account is held",
        );
    }
}

#[tokio::test]
async fn the_owner_of_a_held_account_does_not_change_in_passing() {
    let table = Table::new().await;
    table.run(
        "UPDATE accounts SET state = 'held', hold_token = 't', hold_until = '2030-01-01 00:00:00' \
         WHERE account = 'ann@example.org'; \
         UPDATE accounts SET fenced = 1 WHERE hold_token = 't';",
    );
    table.refused("UPDATE accounts SET owner = 'new'", "AND state = 'active'");
    assert_eq!(table.run("SELECT count(*) FROM accounts WHERE owner = 'new';"), "0");
    table.run("UPDATE accounts SET hold_token = 'u' WHERE hold_token = 't';");
    assert_eq!(table.run("SELECT fenced FROM accounts WHERE hold_token = 'u';"), "0");
    table.run(
        "UPDATE accounts SET owner = 'new' WHERE state = 'active'; \
         UPDATE accounts SET fenced = 1 WHERE hold_token = 'u'; \
         UPDATE accounts SET owner = 'attic', state = 'active' WHERE account = 'ann@example.org';",
    );
    assert_eq!(
        table.run(
            "SELECT owner, state, hold_token IS NULL, hold_until IS NULL, fenced FROM accounts \
             WHERE account = 'ann@example.org';"
        ),
        "attic active 1 1 0"
    );
    // An active row keeps no token.
    table.run("UPDATE accounts SET hold_token = 'x', fenced = 1, disputed = 'x';");
    assert_eq!(
        table.run("SELECT count(*) FROM accounts WHERE fenced OR hold_token OR disputed;"),
        "0"
    );
    table.assert_consistent();
}

#[tokio::test]
async fn keys_epochs_clock_and_audit_belong_to_the_triggers() {
    let table = Table::new().await;
    table.run("INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org');");
    for (sql, because) in [
        (
            "UPDATE accounts SET account = 'x' WHERE account = 'bob@example.org'",
            "cannot be renamed",
        ),
        ("UPDATE aliases SET alias = 'x'", "cannot be renamed"),
        ("UPDATE domains SET domain = 'x.y' WHERE domain = 'example.org'", "cannot be renamed"),
        ("UPDATE accounts SET epoch = 999", "set by triggers"),
        ("UPDATE aliases SET epoch = 999", "set by triggers"),
        ("UPDATE domains SET epoch = 999", "set by triggers"),
        ("DELETE FROM changes", "audit"),
        ("UPDATE changes SET by = 'nobody'", "audit"),
        (
            "INSERT INTO changes (epoch, kind, name, op, nonce, by) \
             VALUES (1, 'account', 'x', 'insert', 1, 'x')",
            "written by triggers",
        ),
        ("UPDATE clock SET epoch = epoch - 1", "only goes forward"),
        ("UPDATE clock SET nonce = 1", "only goes forward"),
        ("INSERT OR REPLACE INTO clock (one, epoch) VALUES (1, 0)", "one row"),
        ("DELETE FROM clock", "one row"),
        ("UPDATE database SET id = 'x'", "never changes"),
        ("INSERT OR REPLACE INTO database (one, id) VALUES (1, 'x')", "never changes"),
        ("DELETE FROM database", "never changes"),
    ] {
        table.refused(sql, because);
    }
    table.run(
        "INSERT INTO accounts (account, owner, epoch, fenced, disputed, former_owner, flip_epoch) \
         VALUES ('eve@example.org', 'old', 999, 1, 'x', 'x', 999);",
    );
    assert_eq!(
        table.run(
            "SELECT epoch = (SELECT epoch FROM clock), fenced, disputed IS NULL, \
             former_owner IS NULL, flip_epoch IS NULL FROM accounts WHERE account LIKE 'eve%';"
        ),
        "1 0 1 1 1"
    );
    table.assert_consistent();
}

#[tokio::test]
async fn a_delete_that_would_be_a_silent_flip_is_refused() {
    let table = Table::new().await;
    table.run("UPDATE accounts SET owner = 'new';");
    table.refused("DELETE FROM accounts", "default owner");
    table.run("DELETE FROM accounts WHERE account = 'joe@strict.example';");
    table.run(
        "UPDATE accounts SET owner = 'old' WHERE account = 'bob@example.org'; \
         DELETE FROM accounts WHERE account = 'bob@example.org'; \
         UPDATE domains SET default_owner = 'new'; UPDATE accounts SET state = 'held';",
    );
    table.refused("DELETE FROM accounts WHERE account = 'ann@example.org'", "is held");
    assert_eq!(
        table.run("SELECT group_concat(op, ' ') FROM changes WHERE name = 'joe@strict.example';"),
        "insert update delete",
        "the audit survives the row"
    );
}

#[tokio::test]
async fn an_alias_leads_to_an_account_and_is_none() {
    let table = Table::new().await;
    table.run("INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org');");
    let missing = "no row: INSERT that first";
    table.refused("INSERT INTO aliases (alias, account) VALUES ('x', 'nobody')", missing);
    table.refused("INSERT INTO aliases (alias, account) VALUES ('x', 'annie')", missing);
    table.refused("UPDATE aliases SET account = 'nobody'", missing);
    table.refused("DELETE FROM accounts WHERE account = 'ann@example.org'", "has aliases");
    table.refused("INSERT INTO accounts (account, owner) VALUES ('annie', 'old')", "is an alias");
    table.refused(
        "INSERT INTO aliases (alias, account) VALUES ('bob@example.org', 'ann@example.org')",
        "is an account",
    );
}

#[tokio::test]
async fn names_are_in_canonical_form() {
    let table = Table::new().await;
    for name in [
        "Ann@example.org",
        "ann@Example.org",
        "ann@bücher.example",
        "@example.org",
        "ann@",
        "ann@@example.org",
        "ann@example.org.",
        "ann@.org",
        "ann@a..b",
        " ann",
        "ann ",
        "a\nb",
        "",
        "ann@exa mple",
        "ann@[192.0.2.1]",
    ] {
        table.refused(
            &format!("INSERT INTO accounts (account, owner) VALUES ('{name}', 'old')"),
            "CHECK constraint failed: account ",
        );
        table.refused(
            &format!("INSERT INTO aliases (alias, account) VALUES ('{name}', 'ann@example.org')"),
            "CHECK constraint failed: alias ",
        );
    }
    for name in [
        "*@example.org",
        "a@b@example.org",
        "john doe@example.org",
        "jörg@example.org",
        "bare",
        "o''brien@example.org",
        "x@xn--bcher-kva.example",
        "a..b@example.org",
    ] {
        table.run(&format!("INSERT INTO accounts (account, owner) VALUES ('{name}', 'old');"));
    }
    let long = "a".repeat(64);
    for owner in ["", "Old", "o ld", "öld", long.as_str()] {
        table.refused(&format!("UPDATE accounts SET owner = '{owner}'"), "backend's name");
        table.refused(&format!("UPDATE domains SET default_owner = '{owner}'"), "backend's name");
    }
    for domain in ["Example.org", "", "a@b", "a..b", "x y"] {
        table.refused(&format!("INSERT INTO domains (domain) VALUES ('{domain}')"), "CHECK");
    }
    for delimiter in ["++", "@", "a", " "] {
        table.refused(&format!("UPDATE domains SET subaddress_delimiter = '{delimiter}'"), "CHECK");
    }
}

#[tokio::test]
async fn a_command_tells_who_it_is_and_may_prune() {
    let table = Table::new().await;
    table.run(
        "BEGIN IMMEDIATE; UPDATE caller SET actor = 'ann', via = 'flip'; \
         UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         UPDATE caller SET actor = NULL, via = NULL; COMMIT;",
    );
    assert_eq!(table.run("SELECT by, via FROM changes ORDER BY epoch DESC LIMIT 1;"), "ann flip");
    table.run(
        "BEGIN IMMEDIATE; UPDATE caller SET via = 'prune_changes'; \
         DELETE FROM changes WHERE epoch < (SELECT max(epoch) FROM changes); \
         UPDATE caller SET via = NULL; COMMIT;",
    );
    assert_eq!(table.run("SELECT count(*) FROM changes;"), "1");
    table.refused("DELETE FROM changes", "audit");
}

#[tokio::test]
async fn a_bulk_update_takes_100_000_rows() {
    let table = Table::new().await;
    table.run(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
         INSERT INTO accounts (account, owner) SELECT 'u' || i || '@example.org', 'old' FROM n; \
         UPDATE accounts SET owner = 'new' WHERE account LIKE 'u%';",
    );
    assert_eq!(
        table.run(
            "SELECT count(*), count(DISTINCT epoch), count(DISTINCT nonce) FROM changes \
             WHERE op = 'update';"
        ),
        "100000 100000 100000"
    );
    table.assert_consistent();
}

#[tokio::test]
async fn shells_beside_each_other_wait_for_each_other() {
    let table = Table::new().await;
    std::thread::scope(|scope| {
        for shell in 0..4 {
            let table = &table;
            scope.spawn(move || {
                for i in 0..25 {
                    table.run(&format!("UPDATE accounts SET owner = 'o{shell}-{i}';"));
                }
            });
        }
    });
    assert_eq!(table.run("SELECT count(*) FROM changes WHERE op = 'update';"), "300");
    assert_eq!(
        table.run("SELECT max(epoch) - min(epoch) + 1 = count(*) FROM changes;"),
        "1",
        "no number twice, none left out"
    );
    table.assert_consistent();
}

#[tokio::test]
async fn views_are_the_same_as_in_postgres() {
    let table = Table::new().await;
    table.run(
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         UPDATE accounts SET state = 'held' WHERE account = 'bob@example.org'; \
         INSERT INTO aliases (alias, account) VALUES ('a@old.example', 'ann@example.org'), \
         ('annie', 'ann@example.org');",
    );
    assert_eq!(
        table.run("SELECT domain, owner, is_default, accounts, held FROM migration_progress;"),
        "example.org new 0 1 0\nexample.org old 1 1 1\nstrict.example old 0 1 0"
    );
    assert_eq!(
        table.run(
            "SELECT address FROM addresses WHERE owner <> 'old' OR state = 'held' ORDER BY address;"
        ),
        "a@old.example\nann@example.org\nbob@example.org"
    );
    let both = format!("ATTACH '{}' AS nodes; {VIEWS}", table.nodes().display());
    let live = "strftime('%Y-%m-%d %H:%M:%f', 'now', '+1 hour')";
    let dead = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 seconds')";
    table.run(&format!(
        "{both} INSERT INTO nodes.nodes (node, service, incarnation, version, lease_until, seen_epoch) \
         VALUES ('a', 'mx-gateway', 'i', '1', {live}, 1), ('b', 'login-proxy', 'i', '1', {live}, 999), \
         ('c', 'mx-gateway', 'i', '1', {dead}, 1); \
         INSERT INTO nodes.busy (node, service, account, epoch, sessions) \
         VALUES ('b', 'login-proxy', 'ann@example.org', 999, 3);"
    ));
    assert_eq!(
        table.run(&format!(
            "{both} SELECT settled, waiting, busy, lapsed, sessions FROM flip_status \
             WHERE account = 'ann@example.org';"
        )),
        "0 a/mx-gateway b/login-proxy c/mx-gateway 3"
    );
    // A node that has seen the row and not yet an alias that leads to it, or has.
    let epoch = "(SELECT epoch FROM accounts WHERE account = 'ann@example.org')";
    let of_ann = format!(
        "{both} SELECT settled, waiting FROM flip_status WHERE account = 'ann@example.org';"
    );
    table.run(&format!(
        "{both} UPDATE nodes.nodes SET seen_epoch = {epoch} WHERE node = 'a'; DELETE FROM nodes.busy;"
    ));
    assert_eq!(table.run(&of_ann), "0 a/mx-gateway");
    table.run(&format!("{both} UPDATE nodes.nodes SET seen_epoch = (SELECT epoch FROM clock);"));
    assert_eq!(table.run(&of_ann), "1");
    table.run("UPDATE aliases SET account = 'bob@example.org' WHERE alias = 'annie';");
    assert_eq!(table.run(&of_ann), "0 a/mx-gateway, b/login-proxy");
    table.run(&format!("{both} UPDATE nodes.nodes SET seen_epoch = 999;"));
    let touched =
        format!("{both} SELECT account, former_owner, touched, logins FROM reversible_accounts;");
    assert_eq!(table.run(&touched), "ann@example.org old unknown 0", "nobody says what is done");
    let now = "strftime('%Y-%m-%d %H:%M:%f', 'now')";
    table.run(&format!(
        "{both} DELETE FROM nodes.nodes WHERE node = 'c'; UPDATE nodes.nodes SET activity_at = {now};"
    ));
    assert_eq!(table.run(&touched), "ann@example.org old untouched 0");
    table.run(&format!("{both} DELETE FROM nodes.nodes WHERE node = 'b';"));
    assert_eq!(table.run(&format!("{both} SELECT count(*) FROM nodes.busy;")), "0");
    table.run(&format!(
        "{both} INSERT INTO nodes.activity (account, owner, epoch, logins) \
         VALUES ('ann@example.org', 'new', 999, 2);"
    ));
    assert_eq!(table.run(&touched), "ann@example.org old touched 2");
}

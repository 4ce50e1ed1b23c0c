//! What the table refuses, whoever asks.

use sqlx::{Connection, Executor, PgConnection};

use super::{fence, flip, hold, number, parts, refused, run, table, text, until_waiting};

#[tokio::test]
async fn the_owner_of_a_held_account_does_not_change_in_passing() {
    let (_database, pool) = table().await;
    let token = hold(&pool, "ann@example.org").await;
    let (state, message) = refused(&pool, "UPDATE accounts SET owner = 'new'").await;
    assert_eq!(state, "MS001");
    assert!(message.contains("ann@example.org"), "{message}");
    assert_eq!(number(&pool, "SELECT count(*) FROM accounts WHERE owner = 'new'").await, 0);

    run(&pool, "UPDATE accounts SET owner = 'new' WHERE state = 'active'").await;
    run(
        &pool,
        "UPDATE accounts SET owner = 'attic', state = 'active' WHERE account = 'ann@example.org'",
    )
    .await;
    let row = text(
        &pool,
        "SELECT concat_ws(' ', owner, state, hold_token IS NULL, hold_until IS NULL, fenced) \
         FROM accounts WHERE account = 'ann@example.org'",
    )
    .await;
    assert_eq!(row, "attic active t t f");
    let late = flip(&pool, "ann@example.org", "new", &token).await.unwrap_err();
    assert_eq!(parts(&late).0, "MS002");
}

#[tokio::test]
async fn a_new_token_needs_a_new_fence() {
    let (_database, pool) = table().await;
    let token = hold(&pool, "ann@example.org").await;
    fence(&pool, "ann@example.org", &token).await.unwrap();
    let fenced = "SELECT fenced FROM accounts WHERE account = 'ann@example.org'";
    assert_eq!(text(&pool, fenced).await, "true");
    run(&pool, "UPDATE accounts SET hold_token = 'mine' WHERE account = 'ann@example.org'").await;
    assert_eq!(text(&pool, fenced).await, "false");
}

#[tokio::test]
async fn keys_epochs_clock_and_audit_belong_to_the_triggers() {
    let (_database, pool) = table().await;
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')").await;
    for sql in [
        "UPDATE accounts SET account = 'anna@example.org' WHERE account = 'bob@example.org'",
        "UPDATE aliases SET alias = 'anna'",
        "UPDATE domains SET domain = 'example.net' WHERE domain = 'example.org'",
        "TRUNCATE accounts CASCADE",
        "TRUNCATE aliases",
        "TRUNCATE domains",
        "TRUNCATE changes",
        "DELETE FROM changes",
        "UPDATE changes SET by = 'nobody'",
        "UPDATE clock SET epoch = epoch - 1",
        "UPDATE clock SET nonce = 0",
        "DELETE FROM clock",
        "TRUNCATE clock",
        "UPDATE database SET id = 'x'",
        "DELETE FROM database",
    ] {
        assert_eq!(refused(&pool, sql).await.0, "MS006", "{sql}");
    }
    let rows = "SELECT string_agg(concat_ws(' ', account, epoch, flip_epoch, former_owner), ',' \
                ORDER BY account) FROM accounts";
    let before = text(&pool, rows).await;
    run(
        &pool,
        "UPDATE accounts SET epoch = 999, flip_epoch = 999, former_owner = 'x', flipped_at = now(); \
         UPDATE aliases SET epoch = 999; UPDATE domains SET epoch = 999",
    )
    .await;
    assert_eq!(text(&pool, rows).await, before);
    run(
        &pool,
        "INSERT INTO accounts (account, owner, epoch, fenced, disputed, former_owner, flip_epoch) \
         VALUES ('eve@example.org', 'old', 999, true, 'x', 'x', 999)",
    )
    .await;
    assert!(!text(&pool, rows).await.contains("999"));
}

#[tokio::test]
async fn a_delete_that_would_be_a_silent_flip_is_refused() {
    let (_database, pool) = table().await;
    run(&pool, "UPDATE accounts SET owner = 'new'").await;
    let (state, message) = refused(&pool, "DELETE FROM accounts").await;
    assert_eq!(state, "MS005");
    assert!(message.contains("@example.org") && message.contains("new"), "{message}");
    // No default to fall to: the account ends.
    run(&pool, "DELETE FROM accounts WHERE account = 'joe@strict.example'").await;
    // Back at the default: the row says nothing that the domain does not.
    run(&pool, "UPDATE accounts SET owner = 'old' WHERE account = 'bob@example.org'").await;
    run(&pool, "DELETE FROM accounts WHERE account = 'bob@example.org'").await;

    hold(&pool, "ann@example.org").await;
    run(&pool, "UPDATE domains SET default_owner = 'new'").await;
    let (state, _) = refused(&pool, "DELETE FROM accounts WHERE account = 'ann@example.org'").await;
    assert_eq!(state, "MS001");
}

#[tokio::test]
async fn names_are_in_canonical_form() {
    let (_database, pool) = table().await;
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
        let sql = format!("INSERT INTO accounts (account, owner) VALUES ('{name}', 'old')");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{name:?}");
        let sql =
            format!("INSERT INTO aliases (alias, account) VALUES ('{name}', 'ann@example.org')");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{name:?}");
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
        run(&pool, &format!("INSERT INTO accounts (account, owner) VALUES ('{name}', 'old')"))
            .await;
    }
    let long = "a".repeat(64);
    for owner in ["", "Old", "o ld", "öld", long.as_str()] {
        let sql = format!("UPDATE accounts SET owner = '{owner}'");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{owner:?}");
        let sql = format!("UPDATE domains SET default_owner = '{owner}'");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{owner:?}");
    }
    for domain in ["Example.org", "", "a@b", "a..b", "x y"] {
        let sql = format!("INSERT INTO domains (domain) VALUES ('{domain}')");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{domain:?}");
    }
    for delimiter in ["++", "@", "a", " "] {
        let sql = format!("UPDATE domains SET subaddress_delimiter = '{delimiter}'");
        assert_eq!(refused(&pool, &sql).await.0, "23514", "{delimiter:?}");
    }
}

#[tokio::test]
async fn an_alias_always_leads_to_an_account() {
    let (_database, pool) = table().await;
    let foreign_key = "23503";
    let (state, _) =
        refused(&pool, "INSERT INTO aliases (alias, account) VALUES ('x', 'nobody')").await;
    assert_eq!(state, foreign_key);
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')").await;
    assert_eq!(refused(&pool, "UPDATE aliases SET account = 'annie'").await.0, foreign_key);
    let (state, _) = refused(&pool, "DELETE FROM accounts WHERE account = 'ann@example.org'").await;
    assert_eq!(state, foreign_key);
}

#[tokio::test]
async fn a_name_is_never_both_account_and_alias() {
    let (database, pool) = table().await;
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')").await;
    let as_account = "INSERT INTO accounts (account, owner) VALUES ('annie', 'old')";
    assert_eq!(refused(&pool, as_account).await.0, "MS007");
    let as_alias =
        "INSERT INTO aliases (alias, account) VALUES ('bob@example.org', 'ann@example.org')";
    assert_eq!(refused(&pool, as_alias).await.0, "MS007");

    // Both at once, each from a transaction that cannot see the other's row yet.
    for (first, second) in [
        (
            "INSERT INTO accounts (account, owner) VALUES ('twin1', 'old')",
            "INSERT INTO aliases (alias, account) VALUES ('twin1', 'ann@example.org')",
        ),
        (
            "INSERT INTO aliases (alias, account) VALUES ('twin2', 'ann@example.org')",
            "INSERT INTO accounts (account, owner) VALUES ('twin2', 'old')",
        ),
    ] {
        let mut other = PgConnection::connect(&database.url).await.unwrap();
        other.execute("BEGIN").await.unwrap();
        other.execute(first).await.unwrap();
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.execute(second).await }
        });
        until_waiting(&pool, 1).await;
        other.execute("COMMIT").await.unwrap();
        assert_eq!(parts(&waiting.await.unwrap().unwrap_err()).0, "MS007");
    }
}

#[tokio::test]
async fn the_audit_survives_the_row() {
    let (_database, pool) = table().await;
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'joe@strict.example'").await;
    run(&pool, "DELETE FROM accounts WHERE account = 'joe@strict.example'").await;
    let ops = text(
        &pool,
        "SELECT string_agg(op, ' ' ORDER BY epoch) FROM changes WHERE name = 'joe@strict.example'",
    )
    .await;
    assert_eq!(ops, "insert update delete");
}

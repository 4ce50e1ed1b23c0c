//! What operators and backends read.

use super::{epoch, hold, node, number, run, table, text};

#[tokio::test]
async fn foreign_addresses_are_all_that_a_backend_must_hand_on() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         INSERT INTO aliases (alias, account) VALUES ('a@old.example', 'ann@example.org'), \
         ('annie', 'ann@example.org'), ('b@old.example', 'bob@example.org'); \
         INSERT INTO accounts (account, owner, login) VALUES ('list@example.org', 'new', false); \
         UPDATE accounts SET state = 'held' WHERE account = 'joe@strict.example'",
    )
    .await;
    let list = |backend: &str| {
        format!(
            "SELECT string_agg(address, ' ' ORDER BY address) FROM foreign_addresses('{backend}')"
        )
    };
    assert_eq!(
        text(&pool, &list("old")).await,
        "a@old.example ann@example.org joe@strict.example list@example.org"
    );
    assert_eq!(text(&pool, &list("new")).await, "b@old.example bob@example.org joe@strict.example");
    // A backend that owns nothing hands on everything.
    assert_eq!(number(&pool, "SELECT count(*) FROM foreign_addresses('attic')").await, 6);

    run(&pool, "INSERT INTO accounts (account, owner) VALUES ('*@strict.example', 'new')").await;
    for (address, at_old) in [
        ("ann@example.org", "true"),
        ("Ann+x@Example.ORG", "true"),
        ("a@old.example", "true"),
        ("bob+x@example.org", "false"),
        ("nobody@example.org", "false"),
        ("nobody@strict.example", "true"),
        ("joe@strict.example", "true"),
        ("x@elsewhere.example", "NULL"),
    ] {
        let sql = format!("SELECT is_foreign('old', '{address}')");
        assert_eq!(text(&pool, &sql).await, at_old, "{address}");
    }
    run(&pool, "UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org'").await;
    assert_eq!(text(&pool, "SELECT is_foreign('old', 'nobody@example.org')").await, "true");
}

#[tokio::test]
async fn the_table_says_of_each_flip_whether_it_can_go_back() {
    let (_database, pool) = table().await;
    let touched = "SELECT concat_ws(' ', owner, former_owner, touched, logins, deliveries) \
                   FROM reversible_accounts WHERE account = 'ann@example.org'";
    assert_eq!(text(&pool, touched).await, "NULL", "never flipped");
    // Of an earlier stay at new.
    run(
        &pool,
        "INSERT INTO activity (account, owner, epoch, logins) VALUES ('ann@example.org', 'new', 1, 9)",
    )
    .await;
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'").await;
    node(&pool, "a", epoch(&pool).await).await;
    assert_eq!(text(&pool, touched).await, "new old unknown 0 0", "nobody has said what was done");
    run(&pool, "UPDATE nodes SET activity_at = clock_timestamp() - interval '1 h'").await;
    assert_eq!(text(&pool, touched).await, "new old unknown 0 0", "only what was done before");
    run(&pool, "UPDATE nodes SET activity_at = clock_timestamp()").await;
    assert_eq!(text(&pool, touched).await, "new old untouched 0 0");
    run(
        &pool,
        "INSERT INTO nodes (node, service, incarnation, version, lease_until) \
         VALUES ('dead', 'login-proxy', 'i', '1', clock_timestamp())",
    )
    .await;
    assert_eq!(text(&pool, touched).await, "new old unknown 0 0");
    // A hold and its release are no flip.
    let token = hold(&pool, "ann@example.org").await;
    run(&pool, &format!("SELECT release('ann@example.org', '{token}')")).await;
    run(
        &pool,
        &format!("UPDATE activity SET epoch = {}, logins = 1, deliveries = 2", epoch(&pool).await),
    )
    .await;
    assert_eq!(text(&pool, touched).await, "new old touched 1 2");
    run(&pool, "UPDATE accounts SET owner = 'old' WHERE account = 'ann@example.org'").await;
    assert_eq!(text(&pool, touched).await, "old new unknown 0 0");
}

#[tokio::test]
async fn progress_is_counted_for_each_domain_and_owner() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         UPDATE accounts SET state = 'held' WHERE account = 'bob@example.org'; \
         INSERT INTO accounts (account, owner) VALUES ('bare', 'old')",
    )
    .await;
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', domain, owner, is_default, accounts, held) FROM migration_progress",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(
        rows,
        ["example.org new f 1 0", "example.org old t 1 1", "strict.example old f 1 0", "old f 1 0"]
    );
}

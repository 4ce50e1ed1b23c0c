//! Plain SQL: what each statement changes, numbers and writes down.

use super::{epoch, fence, hold, newest_changes, number, refused, run, table, text};

#[tokio::test]
async fn one_update_flips_and_says_who_when_from_and_to() {
    let (_database, pool) = table().await;
    let before = epoch(&pool).await;
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'").await;
    assert_eq!(
        newest_changes(&pool, 1).await,
        ["account ann@example.org update old/active/true→new/active/true"]
    );
    let row = text(
        &pool,
        "SELECT concat_ws(' ', a.owner, a.former_owner, a.epoch = c.epoch, a.flip_epoch = a.epoch, \
           a.flipped_at IS NOT NULL, c.nonce = (SELECT nonce FROM clock), c.by, c.deleted) \
         FROM accounts a JOIN changes c ON c.name = a.account ORDER BY c.epoch DESC LIMIT 1",
    )
    .await;
    assert_eq!(row, "new old t t t t postgres f");
    assert_eq!(epoch(&pool).await, before + 1);
}

#[tokio::test]
async fn the_actor_is_in_the_audit() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "BEGIN; SET LOCAL mailshift.actor = 'ticket 7'; \
         UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; COMMIT",
    )
    .await;
    let by = text(&pool, "SELECT by FROM changes ORDER BY epoch DESC LIMIT 1").await;
    assert_eq!(by, "postgres as ticket 7");
}

#[tokio::test]
async fn insert_delete_and_each_kind_write_whole_rows() {
    let (_database, pool) = table().await;
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')").await;
    run(&pool, "UPDATE aliases SET account = 'bob@example.org', login = false").await;
    run(&pool, "DELETE FROM aliases").await;
    run(&pool, "UPDATE domains SET default_owner = 'new' WHERE domain = 'strict.example'").await;
    run(&pool, "UPDATE domains SET subaddress_delimiter = '' WHERE domain = 'strict.example'")
        .await;
    run(&pool, "UPDATE accounts SET login = false WHERE account = 'bob@example.org'").await;
    run(&pool, "DELETE FROM accounts WHERE account = 'bob@example.org'").await;
    run(&pool, "DELETE FROM domains WHERE domain = 'example.org'").await;
    assert_eq!(
        newest_changes(&pool, 8).await,
        [
            "alias annie insert →ann@example.org/true",
            "alias annie update ann@example.org/true→bob@example.org/false",
            "alias annie delete bob@example.org/false→",
            "domain strict.example update +→new/+",
            "domain strict.example update new/+→new/",
            "account bob@example.org update old/active/true→old/active/false",
            "account bob@example.org delete old/active/false→",
            "domain example.org delete old/+→",
        ]
    );
}

#[tokio::test]
async fn a_statement_is_one_epoch_and_writes_only_what_differs() {
    let (_database, pool) = table().await;
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'").await;
    let before = number(&pool, "SELECT count(*) FROM changes").await;
    let ann = number(&pool, "SELECT epoch FROM accounts WHERE account = 'ann@example.org'").await;
    run(&pool, "UPDATE accounts SET owner = 'new'").await;
    assert_eq!(number(&pool, "SELECT count(*) FROM changes").await, before + 2);
    assert_eq!(
        number(&pool, "SELECT count(DISTINCT epoch) FROM accounts WHERE account NOT LIKE 'ann%'")
            .await,
        1
    );
    assert_eq!(
        number(&pool, "SELECT epoch FROM accounts WHERE account = 'ann@example.org'").await,
        ann,
        "a row that did not change keeps its version"
    );
    run(&pool, "UPDATE accounts SET owner = 'new'").await;
    run(&pool, "UPDATE accounts SET note = 'seen'").await;
    run(&pool, "DELETE FROM accounts WHERE account = 'nobody'").await;
    assert_eq!(number(&pool, "SELECT count(*) FROM changes").await, before + 2);
}

#[tokio::test]
async fn what_does_not_route_leaves_the_clock_alone() {
    let (_database, pool) = table().await;
    let token = hold(&pool, "ann@example.org").await;
    let before = epoch(&pool).await;
    run(&pool, &format!("SELECT renew('ann@example.org', '{token}', '30 s')")).await;
    run(&pool, "UPDATE accounts SET note = 'x'; UPDATE aliases SET note = 'x'").await;
    run(&pool, "SELECT expire_holds()").await;
    fence(&pool, "ann@example.org", &token).await.unwrap();
    assert_eq!(epoch(&pool).await, before);
}

#[tokio::test]
async fn statements_of_one_transaction_have_their_own_epochs() {
    let (_database, pool) = table().await;
    let before = epoch(&pool).await;
    run(
        &pool,
        "BEGIN; \
         UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         UPDATE accounts SET owner = 'old' WHERE account = 'ann@example.org'; \
         INSERT INTO aliases (alias, account) VALUES ('a', 'ann@example.org'); \
         COMMIT",
    )
    .await;
    let epochs: Vec<i64> =
        sqlx::query_scalar("SELECT epoch FROM changes WHERE epoch > $1 ORDER BY epoch")
            .bind(before)
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(epochs, [before + 1, before + 2, before + 3]);
    assert_eq!(
        number(&pool, "SELECT epoch FROM accounts WHERE account = 'ann@example.org'").await,
        before + 2
    );
    assert_eq!(number(&pool, "SELECT epoch FROM aliases").await, before + 3);
}

#[tokio::test]
async fn a_savepoint_takes_its_epoch_back() {
    let (_database, pool) = table().await;
    let before = epoch(&pool).await;
    run(
        &pool,
        "BEGIN; \
         UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         SAVEPOINT s; \
         UPDATE accounts SET owner = 'attic' WHERE account = 'ann@example.org'; \
         UPDATE accounts SET owner = 'new' WHERE account = 'bob@example.org'; \
         ROLLBACK TO s; \
         UPDATE accounts SET owner = 'cellar' WHERE account = 'joe@strict.example'; \
         COMMIT",
    )
    .await;
    assert_eq!(epoch(&pool).await, before + 2);
    assert_eq!(
        newest_changes(&pool, 2).await,
        [
            "account ann@example.org update old/active/true→new/active/true",
            "account joe@strict.example update old/active/true→cellar/active/true",
        ]
    );
    assert_eq!(
        number(
            &pool,
            "SELECT count(*) FROM accounts a JOIN changes c ON c.name = a.account \
             AND c.epoch = a.epoch AND c.new_owner = a.owner"
        )
        .await,
        3,
        "each row and its last change agree"
    );
}

#[tokio::test]
async fn upsert_copy_and_data_modifying_with_are_seen() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'new'), \
         ('eve@example.org', 'new'), ('bob@example.org', 'old') \
         ON CONFLICT (account) DO UPDATE SET owner = excluded.owner",
    )
    .await;
    assert_eq!(
        newest_changes(&pool, 2).await,
        [
            "account ann@example.org update old/active/true→new/active/true",
            "account eve@example.org insert →new/active/true",
        ]
    );
    run(
        &pool,
        "WITH moved AS (UPDATE accounts SET owner = 'old' WHERE account = 'eve@example.org' \
         RETURNING account) INSERT INTO aliases (alias, account) SELECT 'eve', account FROM moved",
    )
    .await;
    assert_eq!(
        newest_changes(&pool, 2).await,
        [
            "account eve@example.org update new/active/true→old/active/true",
            "alias eve insert →eve@example.org/true",
        ]
    );
    let mut connection = pool.acquire().await.unwrap();
    let mut copy =
        connection.copy_in_raw("COPY accounts (account, owner) FROM STDIN").await.unwrap();
    copy.send(&b"c1@example.org\told\nc2@example.org\tnew\n"[..]).await.unwrap();
    copy.finish().await.unwrap();
    assert_eq!(
        newest_changes(&pool, 2).await,
        [
            "account c1@example.org insert →old/active/true",
            "account c2@example.org insert →new/active/true",
        ]
    );
}

#[tokio::test]
async fn a_trigger_of_the_site_may_add_rows_but_not_reroute_unnoticed() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "CREATE FUNCTION site_alias() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO aliases (alias, account) VALUES (split_part(NEW.account, '@', 1), NEW.account); \
         RETURN NULL; END $$; \
         CREATE TRIGGER site AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION site_alias(); \
         INSERT INTO accounts (account, owner) VALUES ('x@example.org', 'old'), \
         ('y@example.org', 'old')",
    )
    .await;
    assert_eq!(
        number(
            &pool,
            "SELECT count(*) FROM changes c WHERE op = 'insert' AND (EXISTS (SELECT FROM accounts a \
             WHERE a.account = c.name AND a.epoch = c.epoch AND a.account ~ '^[xy]') \
             OR EXISTS (SELECT FROM aliases s WHERE s.alias = c.name AND s.epoch = c.epoch))"
        )
        .await,
        4
    );
    run(
        &pool,
        "CREATE FUNCTION site_owner() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         NEW.owner := 'new'; RETURN NEW; END $$; \
         CREATE TRIGGER a_site BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION site_owner()",
    )
    .await;
    let (state, _) = refused(&pool, "UPDATE accounts SET note = 'x'").await;
    assert_eq!(state, "MS009");
}

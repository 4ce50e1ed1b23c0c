//! The movers' functions: hold, renew, release, fence, flip; expiry and disputes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Executor};

use super::{
    epoch, fence, flip, hold, newest_changes, node, number, parts, refused, run, table, text,
};

#[tokio::test]
async fn a_hold_is_fenced_by_every_live_node_before_it_flips() {
    let (_database, pool) = table().await;
    let ann = "ann@example.org";
    let old_epoch = epoch(&pool).await;
    for name in ["a", "b", "dead", "gone"] {
        node(&pool, name, old_epoch).await;
    }
    run(
        &pool,
        "UPDATE nodes SET lease_until = clock_timestamp() - interval '1 s' WHERE node = 'dead'; \
         UPDATE nodes SET forgotten = true WHERE node = 'gone'",
    )
    .await;
    let token = hold(&pool, ann).await;
    assert_eq!(
        newest_changes(&pool, 1).await,
        ["account ann@example.org update old/active/true→old/held/true"]
    );
    let states = fence(&pool, ann, &token).await.unwrap();
    assert_eq!(states, ["a waiting", "b waiting", "dead lapsed", "gone forgotten"]);
    assert_eq!(parts(&flip(&pool, ann, "new", &token).await.unwrap_err()).0, "MS003");

    let held = epoch(&pool).await;
    node(&pool, "a", held).await;
    node(&pool, "b", held).await;
    run(
        &pool,
        &format!(
            "INSERT INTO busy (node, service, account, epoch, sessions, deliveries, in_doubt) \
             VALUES ('b', 'mx-gateway', '{ann}', {held}, 0, 2, 1)"
        ),
    )
    .await;
    let states = fence(&pool, ann, &token).await.unwrap();
    assert_eq!(states, ["a seen", "b busy", "dead lapsed", "gone forgotten"]);
    let running = text(
        &pool,
        "SELECT concat_ws(' ', settled, waiting, busy, lapsed, forgotten, sessions, deliveries, \
         in_doubt) FROM flip_status WHERE account = 'ann@example.org'",
    )
    .await;
    assert_eq!(running, "f b/mx-gateway dead/mx-gateway gone/mx-gateway 0 2 1");
    assert_eq!(parts(&flip(&pool, ann, "new", &token).await.unwrap_err()).0, "MS003");

    run(&pool, "DELETE FROM busy").await;
    let states = fence(&pool, ann, &token).await.unwrap();
    assert_eq!(states, ["a seen", "b seen", "dead lapsed", "gone forgotten"]);
    flip(&pool, ann, "new", &token).await.unwrap();
    let row = text(
        &pool,
        "SELECT concat_ws(' ', a.owner, a.state, a.fenced, a.hold_token, c.via) FROM accounts a \
         JOIN changes c ON c.epoch = a.epoch AND c.name = a.account WHERE account = 'ann@example.org'",
    )
    .await;
    assert_eq!(row, "new active f flip");
    let settled = "SELECT settled FROM flip_status WHERE account = 'ann@example.org'";
    assert_eq!(text(&pool, settled).await, "false");
    node(&pool, "a", held + 1).await;
    node(&pool, "b", held + 1).await;
    assert_eq!(text(&pool, settled).await, "true");
}

#[tokio::test]
async fn an_account_without_a_row_has_settled_when_its_domain_has() {
    let (_database, pool) = table().await;
    let status = |name: &str| format!("SELECT status FROM node_status('{name}')");
    node(&pool, "a", epoch(&pool).await).await;
    let zoe = "zoe@example.org";
    assert_eq!(text(&pool, &status(zoe)).await, "seen");
    for change in [
        "UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org'",
        "INSERT INTO accounts (account, owner) VALUES ('*@example.org', 'old')",
        "DELETE FROM domains WHERE domain = 'example.org'",
    ] {
        run(&pool, change).await;
        assert_eq!(text(&pool, &status(zoe)).await, "waiting", "{change}");
        node(&pool, "a", epoch(&pool).await).await;
        assert_eq!(text(&pool, &status(zoe)).await, "seen", "{change}");
    }
    run(&pool, "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old')").await;
    assert_eq!(text(&pool, &status("ann@example.org")).await, "seen", "its own row decides");
    for nobody in ["zoe@elsewhere.example", "zoe"] {
        assert_eq!(refused(&pool, &status(nobody)).await.0, "MS004", "{nobody}");
    }
}

#[tokio::test]
async fn an_alias_counts_for_the_account_it_leads_to_and_for_the_one_it_has_left() {
    let (_database, pool) = table().await;
    let states = |account: &str| {
        format!(
            "SELECT concat_ws(' ', n.status, f.settled, f.waiting) FROM node_status('{account}') n, \
             flip_status f WHERE f.account = '{account}'"
        )
    };
    let both = ["ann@example.org", "bob@example.org"];
    node(&pool, "a", epoch(&pool).await).await;
    for (change, concerns) in [
        ("INSERT INTO aliases (alias, account) VALUES ('lee', 'ann@example.org')", &both[..1]),
        ("UPDATE aliases SET account = 'bob@example.org'", &both[..]),
        ("DELETE FROM aliases", &both[1..]),
    ] {
        run(&pool, change).await;
        for account in both {
            let wanted =
                if concerns.contains(&account) { "waiting f a/mx-gateway" } else { "seen t" };
            assert_eq!(text(&pool, &states(account)).await, wanted, "{change}: {account}");
        }
        node(&pool, "a", epoch(&pool).await).await;
        for account in both {
            assert_eq!(text(&pool, &states(account)).await, "seen t", "{change}: {account}");
        }
    }
}

#[tokio::test]
async fn only_the_holder_renews_fences_releases_and_flips() {
    let (_database, pool) = table().await;
    let calls = |account: &str, token: &str| {
        [
            format!("SELECT renew('{account}', '{token}', '1 s')"),
            format!("SELECT release('{account}', '{token}')"),
            format!("SELECT fence('{account}', '{token}')"),
            format!("SELECT flip('{account}', 'new', '{token}')"),
        ]
    };
    for sql in calls("ann@example.org", "nobodys") {
        assert_eq!(refused(&pool, &sql).await.0, "MS002", "not held: {sql}");
    }
    for sql in calls("nobody@example.org", "x") {
        assert_eq!(refused(&pool, &sql).await.0, "MS004", "{sql}");
    }
    let token = hold(&pool, "ann@example.org").await;
    for sql in calls("ann@example.org", "nobodys") {
        assert_eq!(refused(&pool, &sql).await.0, "MS002", "another's: {sql}");
    }
    let (state, message) = refused(&pool, "SELECT hold('ann@example.org', '1 s')").await;
    assert_eq!(state, "MS001");
    assert!(message.contains("held already, until "), "{message}");

    run(&pool, &format!("SELECT release('ann@example.org', '{token}')")).await;
    for sql in calls("ann@example.org", &token) {
        assert_eq!(refused(&pool, &sql).await.0, "MS002", "ended: {sql}");
    }
    // By hand: no token opens it.
    run(&pool, "UPDATE accounts SET state = 'held' WHERE account = 'ann@example.org'").await;
    for sql in calls("ann@example.org", &token) {
        assert_eq!(refused(&pool, &sql).await.0, "MS002", "by hand: {sql}");
    }
    let null = "SELECT release('ann@example.org', NULL)";
    assert_eq!(refused(&pool, null).await.0, "40001");
    let (_, message) = refused(&pool, "SELECT hold('ann@example.org', '1 s')").await;
    assert!(message.contains("without end"), "{message}");
}

#[tokio::test]
async fn a_lease_is_bounded_and_the_isolation_level_is_read_committed() {
    let (_database, pool) = table().await;
    for lease in ["NULL", "interval '0'", "interval '-1 s'", "interval '61 min'"] {
        let sql = format!("SELECT hold('ann@example.org', {lease})");
        assert_eq!(refused(&pool, &sql).await.0, "MS009", "{lease}");
    }
    let token = hold(&pool, "ann@example.org").await;
    for call in [
        "hold('bob@example.org', '1 s')".to_owned(),
        format!("renew('ann@example.org', '{token}', '1 s')"),
        format!("fence('ann@example.org', '{token}')"),
        format!("flip('ann@example.org', 'new', '{token}')"),
        format!("release('ann@example.org', '{token}')"),
        "dispute('bob@example.org', 'old', 'x')".to_owned(),
    ] {
        let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT {call}; COMMIT");
        let mut connection = pool.acquire().await.unwrap();
        let error = connection.execute(AssertSqlSafe(sql)).await.unwrap_err();
        assert_eq!(parts(&error).0, "MS009", "{call}");
        connection.execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn a_hold_gives_an_account_without_row_one_at_its_default_owner() {
    let (_database, pool) = table().await;
    hold(&pool, "eve@example.org").await;
    assert_eq!(
        newest_changes(&pool, 2).await,
        [
            "account eve@example.org insert →old/active/true",
            "account eve@example.org update old/active/true→old/held/true",
        ]
    );
    run(&pool, "SELECT ensure_account('eve@example.org')").await;
    assert_eq!(refused(&pool, "SELECT hold('eve@strict.example', '1 s')").await.0, "MS004");
    assert_eq!(refused(&pool, "SELECT hold('eve@nowhere.example', '1 s')").await.0, "MS004");
    assert_eq!(refused(&pool, "SELECT hold('bare', '1 s')").await.0, "MS004");
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('a@example.org', 'ann@example.org')")
        .await;
    let (state, message) = refused(&pool, "SELECT hold('a@example.org', '1 s')").await;
    assert_eq!(state, "MS004");
    assert!(message.contains("alias of ann@example.org"), "{message}");
}

#[tokio::test]
async fn a_name_that_lives_by_anothers_row_is_refused_in_plain_sql_too() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'; \
         INSERT INTO accounts (account, owner) VALUES ('*@strict.example', 'new')",
    )
    .await;
    for call in ["hold('ann+lists@example.org', '1 s')", "ensure_account('ann+lists@example.org')"]
    {
        let (state, message) = refused(&pool, &format!("SELECT {call}")).await;
        assert_eq!(state, "MS010", "{call}");
        assert!(message.contains("sub-address of ann@example.org"), "{message}");
    }
    let (state, message) = refused(&pool, "SELECT hold('eve@strict.example', '1 s')").await;
    assert_eq!(state, "MS010");
    assert!(message.contains("catch-all *@strict.example (new)"), "{message}");
    assert_eq!(text(&pool, "ensure_account('eve@example.org')").await, "old");
    assert_eq!(text(&pool, "ensure_account('eve@example.org')").await, "NULL", "it is there");
}

/// The audit names the function that made a change, and no other.
#[tokio::test]
async fn a_function_signs_its_own_changes_only() {
    let (_database, pool) = table().await;
    let signed = |name: &str| {
        format!(
            "SELECT string_agg(coalesce(via, '-'), ' ' ORDER BY epoch) FROM changes \
             WHERE name = '{name}@example.org'"
        )
    };
    let plain = |name: &str| {
        format!("UPDATE accounts SET login = NOT login WHERE account = '{name}@example.org'")
    };
    for (name, calls) in [
        ("eve", "SELECT release('eve@example.org', hold('eve@example.org', '1 s'))".to_owned()),
        // An error leaves nothing behind, in a savepoint or in a block that catches it.
        (
            "bob",
            "DO $$ BEGIN PERFORM release('bob@example.org', 'x'); \
             EXCEPTION WHEN OTHERS THEN NULL; END $$"
                .to_owned(),
        ),
        ("ann", "SELECT dispute('ann@example.org', 'old', 'x')".to_owned()),
    ] {
        run(&pool, &format!("BEGIN; {calls}; {}; COMMIT", plain(name))).await;
    }
    assert_eq!(text(&pool, &signed("eve")).await, "ensure_account hold release -");
    assert_eq!(text(&pool, &signed("bob")).await, "- -");
    assert_eq!(text(&pool, &signed("ann")).await, "- dispute -");

    // Whoever has signed before goes on under that name.
    let mut connection = pool.acquire().await.unwrap();
    connection
        .execute("BEGIN; SELECT set_config('mailshift.via', 'mine', true); SAVEPOINT s")
        .await
        .unwrap();
    connection.execute("SELECT hold('ann@example.org', '1 s')").await.unwrap_err();
    connection.execute("ROLLBACK TO s; SELECT hold('bob@example.org', '1 s')").await.unwrap();
    connection.execute(AssertSqlSafe(format!("{}; COMMIT", plain("bob")))).await.unwrap();
    assert_eq!(text(&pool, &signed("bob")).await, "- - hold mine");
    run(&pool, &plain("bob")).await;
    assert_eq!(text(&pool, &signed("bob")).await, "- - hold mine -");
}

#[tokio::test]
async fn flip_refuses_an_owner_that_a_live_node_does_not_know() {
    let (_database, pool) = table().await;
    let ann = "ann@example.org";
    let token = hold(&pool, ann).await;
    node(&pool, "a", epoch(&pool).await).await;
    node(&pool, "b", epoch(&pool).await).await;
    fence(&pool, ann, &token).await.unwrap();
    let (state, message) = parts(&flip(&pool, ann, "attic", &token).await.unwrap_err());
    assert_eq!(state, "MS008");
    assert!(message.contains("a/mx-gateway, b/mx-gateway"), "{message}");

    run(
        &pool,
        "UPDATE nodes SET backends = '{\"old\": \"h1\", \"new\": \"other\"}' WHERE node = 'b'",
    )
    .await;
    let (state, message) = parts(&flip(&pool, ann, "new", &token).await.unwrap_err());
    assert_eq!(state, "MS008");
    assert!(message.contains("different addresses"), "{message}");
    // A node that serves nothing has no say.
    run(&pool, "UPDATE nodes SET forgotten = true WHERE node = 'b'").await;
    flip(&pool, ann, "new", &token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_movers_cannot_both_win() {
    let (_database, pool) = table().await;
    for _ in 0..10 {
        let movers: Vec<_> = (0..6)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    sqlx::query_scalar::<_, String>("SELECT hold('ann@example.org', '1 min')")
                        .fetch_one(&pool)
                        .await
                })
            })
            .collect();
        let mut tokens = Vec::new();
        for mover in movers {
            match mover.await.unwrap() {
                Ok(token) => tokens.push(token),
                Err(error) => assert_eq!(parts(&error).0, "MS001"),
            }
        }
        let [token] = &tokens[..] else { panic!("{} movers won", tokens.len()) };
        run(&pool, &format!("SELECT release('ann@example.org', '{token}')")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_and_flip_never_both_happen() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO accounts (account, owner, state, hold_token, hold_until) \
         SELECT 'u' || i || '@example.org', 'old', 'held', 't', \
                clock_timestamp() + i * interval '2 ms' FROM generate_series(1, 300) i; \
         UPDATE accounts SET fenced = true WHERE hold_token = 't'",
    )
    .await;
    let done = Arc::new(AtomicBool::new(false));
    let expiry = tokio::spawn({
        let (pool, done) = (pool.clone(), Arc::clone(&done));
        async move {
            while !done.load(Ordering::Relaxed) {
                sqlx::query("SELECT expire_holds()").execute(&pool).await.unwrap();
            }
        }
    });
    let (mut flipped, mut late) = (BTreeSet::new(), BTreeSet::new());
    for i in 1..=300 {
        let account = format!("u{i}@example.org");
        match flip(&pool, &account, "new", "t").await {
            Ok(()) => flipped.insert(account),
            Err(error) => {
                assert_eq!(parts(&error).0, "MS002", "{error}");
                late.insert(account)
            }
        };
    }
    while number(&pool, "SELECT count(*) FROM accounts WHERE state = 'held'").await > 0 {
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    expiry.await.unwrap();
    let ended: Vec<(String, String)> = sqlx::query_as(
        "SELECT name, string_agg(via || ' ' || new_owner, ',') FROM changes \
         WHERE old_state = 'held' GROUP BY name",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(ended.len(), 300);
    for (account, how) in ended {
        let expected = if flipped.contains(&account) { "flip new" } else { "expire_holds old" };
        assert_eq!(how, expected, "{account}");
    }
}

#[tokio::test]
async fn an_expired_hold_ends_with_its_owner_and_one_without_lease_stays() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "UPDATE accounts SET state = 'held', hold_token = 't', \
         hold_until = clock_timestamp() - interval '1 s' WHERE account = 'ann@example.org'; \
         UPDATE accounts SET state = 'held' WHERE account = 'bob@example.org'",
    )
    .await;
    // Nobody but a committed change ends it: its holder may still renew.
    run(&pool, "BEGIN; SELECT renew('ann@example.org', 't', '1 s'); ROLLBACK").await;
    assert_eq!(number(&pool, "SELECT expire_holds()").await, 1);
    assert_eq!(number(&pool, "SELECT expire_holds()").await, 0);
    let states =
        text(&pool, "SELECT string_agg(owner || ' ' || state, ',' ORDER BY account) FROM accounts")
            .await;
    assert_eq!(states, "old active,old held,old active");
}

#[tokio::test]
async fn a_dispute_holds_without_end_and_takes_the_holders_token() {
    let (_database, pool) = table().await;
    let token = hold(&pool, "ann@example.org").await;
    fence(&pool, "ann@example.org", &token).await.unwrap();
    let dispute = |account: &str| format!("SELECT dispute('{account}', 'new', 'change 7 is lost')");
    assert_eq!(text(&pool, &dispute("ann@example.org")).await, "true");
    assert_eq!(text(&pool, &dispute("ann@example.org")).await, "false", "every node may call it");
    assert_eq!(text(&pool, &dispute("lost@strict.example")).await, "true");
    assert_eq!(text(&pool, &dispute("bob@example.org")).await, "true");
    let rows = text(
        &pool,
        "SELECT string_agg(concat_ws(' ', owner, state, hold_token, hold_until, fenced, disputed), \
         ', ' ORDER BY account) FROM accounts WHERE disputed IS NOT NULL",
    )
    .await;
    assert_eq!(
        rows,
        "old held f change 7 is lost, old held f change 7 is lost, new held f change 7 is lost"
    );
    assert_eq!(parts(&flip(&pool, "ann@example.org", "new", &token).await.unwrap_err()).0, "MS002");
    run(&pool, "UPDATE accounts SET state = 'active' WHERE account = 'ann@example.org'").await;
    let row = "SELECT disputed IS NULL FROM accounts WHERE account = 'ann@example.org'";
    assert_eq!(text(&pool, row).await, "true");
}

#[tokio::test]
async fn a_disputed_alias_is_held_itself_and_not_its_account() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO aliases (alias, account) VALUES ('info@example.org', 'ann@example.org')",
    )
    .await;
    let dispute = "SELECT dispute('info@example.org', 'new', 'change 7 is lost')";
    assert_eq!(text(&pool, dispute).await, "true");
    assert_eq!(text(&pool, dispute).await, "false");
    let rows = "SELECT string_agg(concat_ws(' ', account, owner, state, disputed), ', ' ORDER BY account) \
                FROM accounts WHERE domain_of(account) = 'example.org'";
    assert_eq!(
        text(&pool, rows).await,
        "ann@example.org old active, bob@example.org old active, info@example.org new held change 7 is \
         lost; it was an alias of ann@example.org"
    );
    assert_eq!(number(&pool, "SELECT count(*) FROM aliases").await, 0);
    let audit = "SELECT string_agg(concat_ws(' ', kind, op, old_account, new_owner, new_state), ', ' \
                 ORDER BY epoch) FROM changes WHERE name = 'info@example.org' AND via = 'dispute'";
    assert_eq!(text(&pool, audit).await, "alias delete ann@example.org, account insert new held");
    // Back to what it was, in one transaction.
    run(
        &pool,
        "BEGIN; \
         UPDATE accounts SET owner = 'old', state = 'active' WHERE account = 'info@example.org'; \
         DELETE FROM accounts WHERE account = 'info@example.org'; \
         INSERT INTO aliases (alias, account) VALUES ('info@example.org', 'ann@example.org'); \
         COMMIT",
    )
    .await;
}

#[tokio::test]
async fn nodes_that_dispute_a_name_at_once_agree() {
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO aliases (alias, account) VALUES ('info@example.org', 'ann@example.org')",
    )
    .await;
    // An alias, an account, names without a row in both kinds of domains.
    for name in ["info@example.org", "ann@example.org", "gil@example.org", "zoe@strict.example"] {
        let nodes = ["new", "old", "new", "attic"].map(|owner| {
            let sql = format!("SELECT dispute('{name}', '{owner}', '{owner}')");
            sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql)).fetch_one(&pool)
        });
        let made: Vec<bool> =
            futures_util::future::join_all(nodes).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "{name}: {made:?}");
        let rows = format!(
            "SELECT count(*) FROM accounts WHERE account = '{name}' AND state = 'held' \
             AND hold_until IS NULL AND disputed IS NOT NULL"
        );
        assert_eq!(number(&pool, &rows).await, 1, "{name}");
    }
}

#[tokio::test]
async fn the_clock_is_raised_above_every_epoch_seen() {
    let (_database, pool) = table().await;
    assert_eq!(number(&pool, "SELECT raise_clock(5000)").await, 5001);
    assert_eq!(number(&pool, "SELECT raise_clock(3)").await, 5002);
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'").await;
    assert_eq!(number(&pool, "SELECT max(epoch) FROM changes").await, 5003);
}

#[tokio::test]
async fn pruning_keeps_the_newest_change_and_what_a_node_has_yet_to_read() {
    let (_database, pool) = table().await;
    assert_eq!(refused(&pool, "SELECT prune_changes('1 hour')").await.0, "MS009");
    assert_eq!(number(&pool, "SELECT prune_changes('1 day')").await, 0);
    // Time is the only thing here that the triggers give and a test cannot wait for.
    run(
        &pool,
        "ALTER TABLE changes DISABLE TRIGGER USER; UPDATE changes SET at = at - interval '2 days'; \
         ALTER TABLE changes ENABLE TRIGGER USER",
    )
    .await;
    let first = number(&pool, "SELECT min(epoch) FROM changes").await;
    node(&pool, "slow", first).await;
    assert_eq!(number(&pool, "SELECT prune_changes('1 day')").await, 0);
    node(&pool, "slow", i64::MAX).await;
    assert!(number(&pool, "SELECT prune_changes('1 day')").await > 0);
    assert_eq!(number(&pool, "SELECT min(epoch) FROM changes").await, epoch(&pool).await);
}

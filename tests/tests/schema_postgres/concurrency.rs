//! Several sessions at once: order, locks, notifications.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgListener;
use sqlx::{Connection, Executor, PgConnection};

use super::{epoch, fence, hold, node, number, parts, refused, run, table, text, until_waiting};

#[tokio::test]
async fn each_statement_that_changes_something_notifies_once() {
    let (database, pool) = table().await;
    let mut listener = PgListener::connect(&database.url).await.unwrap();
    listener.listen("mailshift").await.unwrap();
    for sql in [
        "UPDATE accounts SET owner = 'new'",
        "UPDATE accounts SET owner = 'new'",
        "UPDATE accounts SET note = 'x'",
        "INSERT INTO aliases (alias, account) VALUES ('a', 'ann@example.org')",
        "DELETE FROM aliases",
        "UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org'",
    ] {
        run(&pool, sql).await;
    }
    run(&pool, "NOTIFY mailshift, 'end'").await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|payload: &String| payload != "end") {
        heard.push(listener.recv().await.unwrap().payload().to_owned());
    }
    assert_eq!(heard, ["", "", "", "", "end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_order_is_number_order() {
    const WRITERS: usize = 6;
    const EACH: usize = 40;
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO accounts (account, owner) \
         SELECT 'w' || i || '@example.org', 'old' FROM generate_series(1, 60) i",
    )
    .await;
    let start = epoch(&pool).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for i in 0..EACH {
                    // Transactions of one to three statements, some of them rolled back.
                    let mut transaction = pool.begin().await.unwrap();
                    for _ in 0..=(i % 3) {
                        sqlx::query(
                            "UPDATE accounts SET owner = 'o' || (random() * 1e9)::bigint \
                             WHERE account = 'w' || (1 + floor(random() * 60)) || '@example.org'",
                        )
                        .execute(&mut *transaction)
                        .await
                        .unwrap();
                    }
                    if (i + writer) % 5 == 0 {
                        transaction.rollback().await.unwrap();
                    } else {
                        transaction.commit().await.unwrap();
                    }
                }
            })
        })
        .collect();
    // Reads as a node does: only what is after the last one read, never looking back.
    let mut seen: Vec<(i64, String)> = Vec::new();
    let mut cursor = (start, char::MAX.to_string());
    let mut last_round = false;
    loop {
        let finished = writers.iter().all(tokio::task::JoinHandle::is_finished);
        let page: Vec<(i64, String)> = sqlx::query_as(
            "SELECT epoch, name FROM changes WHERE kind = 'account' AND (epoch, name) > ($1, $2) \
             ORDER BY epoch, name",
        )
        .bind(cursor.0)
        .bind(&cursor.1)
        .fetch_all(&pool)
        .await
        .unwrap();
        cursor = page.last().cloned().unwrap_or(cursor);
        seen.extend(page);
        if last_round {
            break;
        }
        last_round = finished;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let all: Vec<(i64, String)> =
        sqlx::query_as("SELECT epoch, name FROM changes WHERE epoch > $1 ORDER BY epoch, name")
            .bind(start)
            .fetch_all(&pool)
            .await
            .unwrap();
    assert!(all.len() > WRITERS * EACH);
    assert!(seen == all, "read {} of {} changes", seen.len(), all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_update_is_one_epoch_and_single_updates_go_on_beside_it() {
    const ROWS: i64 = 100_000;
    let (_database, pool) = table().await;
    run(
        &pool,
        "INSERT INTO accounts (account, owner) \
         SELECT 'u' || i || '@example.org', 'old' FROM generate_series(1, 100000) i",
    )
    .await;
    let start = epoch(&pool).await;
    let done = Arc::new(AtomicBool::new(false));
    let singles: Vec<_> = (0..4)
        .map(|task| {
            let (pool, done) = (pool.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut count = 0_i64;
                // In the opposite order of the bulk, so that wrong locking would deadlock.
                for i in (0..ROWS).rev().cycle().skip(task * 7_919).step_by(31) {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let sql = "UPDATE accounts SET owner = 'single' || $2 WHERE account = $1";
                    let account = format!("u{}@example.org", i + 1);
                    loop {
                        let update = sqlx::query(sql).bind(&account).bind(count.to_string());
                        match update.execute(&pool).await {
                            Ok(_) => break,
                            // The clock is waited for at most 5 s; a slow machine may need more.
                            Err(error) => assert_eq!(parts(&error).0, "55P03", "{error}"),
                        }
                    }
                    count += 1;
                }
                count
            })
        })
        .collect();
    for owner in ["new", "old", "new"] {
        loop {
            let bulk = sqlx::query("UPDATE accounts SET owner = $1 WHERE account LIKE 'u%'");
            match bulk.bind(owner).execute(&pool).await {
                Ok(result) => break assert_eq!(result.rows_affected().cast_signed(), ROWS),
                Err(error) => assert_eq!(parts(&error).0, "55P03", "{error}"),
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    let mut count = 0;
    for single in singles {
        count += single.await.unwrap();
    }
    assert!(count > 0);
    let bulks: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT epoch, count(*) FROM changes WHERE epoch > $1 GROUP BY epoch HAVING count(*) > 1",
    )
    .bind(start)
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(bulks.len(), 3, "{bulks:?}");
    assert!(bulks.iter().all(|(_, rows)| *rows > ROWS - count && *rows <= ROWS), "{bulks:?}");
    assert_eq!(
        number(
            &pool,
            "SELECT count(*) FROM accounts a WHERE NOT EXISTS (SELECT FROM changes c \
             WHERE c.name = a.account AND c.epoch = a.epoch AND c.new_owner = a.owner)"
        )
        .await,
        0,
        "each row and its last change agree"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_gets_its_row_where_its_domain_says_when_that_changes_beside_it() {
    let (_database, pool) = table().await;
    let mut operator = pool.begin().await.unwrap();
    operator
        .execute("UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org'")
        .await
        .unwrap();
    let other = pool.clone();
    let held = tokio::spawn(async move { hold(&other, "zoe@example.org").await });
    until_waiting(&pool, 1).await;
    operator.commit().await.unwrap();
    held.await.unwrap();
    let owner = "SELECT owner FROM accounts WHERE account = 'zoe@example.org'";
    assert_eq!(text(&pool, owner).await, "new");
    // The domain is gone by the time the row is to be made.
    let mut operator = pool.begin().await.unwrap();
    operator.execute("DELETE FROM domains WHERE domain = 'example.org'").await.unwrap();
    let other = pool.clone();
    let held = tokio::spawn(async move {
        refused(&other, "SELECT hold('joy@example.org', interval '1 minute')").await
    });
    until_waiting(&pool, 1).await;
    operator.commit().await.unwrap();
    assert_eq!(held.await.unwrap().0, "MS004");
}

#[tokio::test]
async fn an_idle_transaction_stops_updates_with_its_name_and_nothing_else() {
    let (database, pool) = table().await;
    let token = hold(&pool, "bob@example.org").await;
    node(&pool, "a", 1).await;
    let mut idle = PgConnection::connect(&format!("{}&application_name=forgetful", database.url))
        .await
        .unwrap();
    idle.execute("BEGIN; UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'")
        .await
        .unwrap();
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut idle).await.unwrap();

    // Leases, renewals and reports of the nodes do not ask for the clock.
    run(&pool, &format!("SELECT renew('bob@example.org', '{token}', '30 s')")).await;
    run(&pool, "UPDATE nodes SET lease_until = clock_timestamp() + interval '1 h', seen_epoch = 2")
        .await;
    assert_eq!(number(&pool, "SELECT expire_holds()").await, 0);
    fence(&pool, "bob@example.org", &token).await.unwrap();

    for sql in [
        "UPDATE accounts SET owner = 'new' WHERE account = 'joe@strict.example'",
        "SELECT hold('joe@strict.example', '1 s')",
    ] {
        let (state, message) = refused(&pool, sql).await;
        assert_eq!(state, "55P03");
        assert!(
            message.contains(&format!("process {pid},"))
                && message.contains("forgetful")
                && message.contains("idle in transaction"),
            "{message}"
        );
    }
    idle.execute("ROLLBACK").await.unwrap();
    run(&pool, "UPDATE accounts SET owner = 'new' WHERE account = 'joe@strict.example'").await;
}

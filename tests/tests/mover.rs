//! Several movers and the services' expiry at once, in both databases: one of them wins, whoever is faster
//! (OWN-8).

use shared::backend::BackendName;
use shared::ownership::table::Table;
use std::time::Duration;
use tests::table::{Engine, Table as Place};
use tokio::task::JoinSet;

const ANN: &str = "ann@example.org";
const LEASE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 10;

macro_rules! in_both {
    ($($scenario:ident),+ $(,)?) => {
        mod in_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                super::$scenario(tests::table::Engine::Postgres).await;
            })+
        }
        mod in_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                super::$scenario(tests::table::Engine::Sqlite).await;
            })+
        }
    };
}

in_both! {
    two_movers_cannot_both_win,
    expiry_and_flip_never_both_happen,
    expiry_and_renewal_never_both_happen,
}

fn table(engine: Engine) -> Place {
    let place = Place::create(engine).unwrap();
    place.sql(&format!("INSERT INTO accounts (account, owner) VALUES ('{ANN}', 'old');")).unwrap();
    place
}

async fn open(place: &Place) -> Table {
    Table::open(&place.url()).await.unwrap()
}

fn backend(name: &str) -> BackendName {
    BackendName::parse(name).unwrap()
}

/// Owner and state, and who made the last change.
fn row(place: &Place) -> String {
    place
        .sql(&format!(
            "SELECT a.owner, a.state, c.via FROM accounts a JOIN changes c \
             ON c.epoch = a.epoch AND c.name = a.account WHERE a.account = '{ANN}';"
        ))
        .unwrap()
}

/// Makes the lease of a hold be over.
fn end_lease(place: &Place) {
    let over = "UPDATE accounts SET hold_until = '2001-01-01 00:00:00.000' WHERE state = 'held';";
    place.sql(over).unwrap();
}

async fn two_movers_cannot_both_win(engine: Engine) {
    let place = table(engine);
    for round in 0..ROUNDS {
        let (mut movers, mut won) = (JoinSet::new(), Vec::new());
        for name in ["one", "two", "three"] {
            let table = open(&place).await;
            movers.spawn(async move {
                (name, table.hold(ANN, LEASE, name).await.map(|hold| hold.token))
            });
        }
        while let Some(moved) = movers.join_next().await {
            match moved.unwrap() {
                (name, Ok(token)) => won.push((name, token)),
                (_, Err(error)) => {
                    let error = error.to_string();
                    assert!(error.contains("held already, until "), "{error}");
                }
            }
        }
        let [(name, token)] = &won[..] else { panic!("{won:?} hold it") };
        // Both have the token now, as if it had leaked: still only one flips.
        let to = if round % 2 == 0 { ["new", "attic"] } else { ["old", "cellar"] };
        open(&place).await.fence(ANN, token, name).await.unwrap();
        for owner in to {
            let (table, token) = (open(&place).await, token.clone());
            movers.spawn(async move {
                let flipped = table.flip_held(ANN, &backend(owner), &token, owner).await;
                (owner, flipped.map(|()| owner.to_owned()))
            });
        }
        let mut flipped = Vec::new();
        while let Some(moved) = movers.join_next().await {
            flipped.extend(moved.unwrap().1.ok());
        }
        assert_eq!(flipped.len(), 1, "{flipped:?}");
        assert_eq!(row(&place), format!("{}|active|flip", flipped[0]));
    }
}

async fn expiry_and_flip_never_both_happen(engine: Engine) {
    let place = table(engine);
    let (mover, service) = (open(&place).await, open(&place).await);
    let (mut flips, mut expiries) = (0, 0);
    for round in 0..ROUNDS {
        place.sql("UPDATE accounts SET owner = 'old' WHERE owner <> 'old';").unwrap();
        let token = mover.hold(ANN, LEASE, "mover").await.unwrap().token;
        mover.fence(ANN, &token, "mover").await.unwrap();
        end_lease(&place);
        let new = backend("new");
        // Now and then one of them comes first for sure.
        let (flipped, ended) = match round {
            0 => {
                let flipped = mover.flip_held(ANN, &new, &token, "mover").await;
                (flipped, service.expire_holds("service").await)
            }
            1 => {
                let ended = service.expire_holds("service").await;
                (mover.flip_held(ANN, &new, &token, "mover").await, ended)
            }
            _ => tokio::join!(
                mover.flip_held(ANN, &new, &token, "mover"),
                service.expire_holds("service")
            ),
        };
        match (flipped, ended.unwrap()) {
            (Ok(()), 0) => {
                flips += 1;
                assert_eq!(row(&place), "new|active|flip");
            }
            (Err(error), 1) => {
                expiries += 1;
                assert!(error.to_string().contains("not held (any more)"), "{error}");
                assert_eq!(row(&place), "old|active|expire_holds");
            }
            both => panic!("{both:?}"),
        }
    }
    assert!(flips > 0 && expiries > 0, "{flips} flips, {expiries} expiries");
}

async fn expiry_and_renewal_never_both_happen(engine: Engine) {
    let place = table(engine);
    let (mover, service) = (open(&place).await, open(&place).await);
    for _ in 0..ROUNDS {
        let token = mover.hold(ANN, LEASE, "mover").await.unwrap().token;
        end_lease(&place);
        let (renewed, ended) =
            tokio::join!(mover.renew(ANN, &token, LEASE, "mover"), service.expire_holds("service"));
        match (renewed, ended.unwrap()) {
            (Ok(_), 0) => mover.release(ANN, &token, "mover").await.unwrap(),
            (Err(error), 1) => {
                assert!(error.to_string().contains("not held (any more)"), "{error}");
            }
            both => panic!("{both:?}"),
        }
        assert!(row(&place).starts_with("old|active|"));
    }
}

//! The feed on real databases: what a plain SQL statement changes is what every node routes by, and a
//! node that cannot know refuses (DESIGN §2a; P2, P4, P5).

mod fence;
mod flips;
mod history;
mod lease;
mod names;
mod node;
mod pooler;
mod report;
mod spool;
mod sqlite;
mod unknown;

/// Runs each test on Postgres and on SQLite.
macro_rules! on_both_stores {
    ($($test:ident)*) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(tests::table::Table::create(tests::table::Engine::Postgres).unwrap()).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(tests::table::Table::create(tests::table::Engine::Sqlite).unwrap()).await;
            })*
        }
    };
}
use on_both_stores;

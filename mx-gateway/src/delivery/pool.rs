//! Connections to owners that are kept for the next message.
//!
//! Only those on which no client was named (XCLIENT, PROXY): the owner takes all that follows for that
//! client's. A kept connection is looked at before it is used; what the owner said meanwhile ends it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shared::backend::BackendName;
use tokio::time::Instant;

use super::Connection;

/// How long a connection is kept without use. Servers wait longer (RFC 5321 §4.5.3.2.7: 5 minutes).
const IDLE: Duration = Duration::from_secs(20);
/// Connections kept to one owner.
const MOST_KEPT: usize = 50;

/// Kept connections.
#[derive(Debug, Default)]
pub struct Pool {
    kept: Mutex<HashMap<BackendName, Vec<(Connection, Instant)>>>,
}

impl Pool {
    /// A connection that was kept, if there is one that can be used. The youngest one, so that the others
    /// grow old.
    pub fn take(&self, owner: &BackendName) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.lock().get_mut(owner)?.pop()?;
            if since.elapsed() < IDLE && connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection on which no transaction is open; returns it when it cannot be used again or
    /// there are enough.
    pub fn keep(&self, owner: &BackendName, mut connection: Connection) -> Option<Connection> {
        if !connection.is_reusable() {
            return Some(connection);
        }
        let mut kept = self.lock();
        let connections = kept.entry(owner.clone()).or_default();
        if connections.len() >= MOST_KEPT {
            return Some(connection);
        }
        connections.push((connection, Instant::now()));
        None
    }

    /// Takes out the connections that were kept too long.
    pub fn expired(&self) -> Vec<Connection> {
        let mut kept = self.lock();
        let mut expired = Vec::new();
        for connections in kept.values_mut() {
            let old = connections.iter().take_while(|(_, since)| since.elapsed() >= IDLE).count();
            expired.extend(connections.drain(..old).map(|(connection, _)| connection));
        }
        expired
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BackendName, Vec<(Connection, Instant)>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! A request that a backend answers, from its head to the end of both bodies: what it holds, and its line in
//! the log (OBS-1).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use shared::backend::BackendName;
use shared::lifecycle::Lifecycle;
use shared::ownership::{Owner, Registration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Busy;
use super::body::{Cut, Kick, Progress};
use super::pool::{Connection, Pool};

/// What a request holds until both its bodies have ended.
pub(super) struct Flight {
    pub(super) connection: Option<Connection>,
    pub(super) pool: Arc<Pool>,
    pub(super) backend: BackendName,
    /// Its place under its account; given back when nothing more is sent for it (P5).
    pub(super) place: Option<Arc<Place>>,
    pub(super) progress: Arc<Progress>,
    pub(super) lifecycle: Lifecycle,
    pub(super) octets_out: u64,
    pub(super) record: Record,
    /// The client's connection is not idle.
    pub(super) busy: Busy,
}

/// A request's place under its account, until it is given back.
#[derive(Debug)]
pub(super) struct Place {
    registration: Mutex<Option<Arc<Registration>>>,
    /// It was given back.
    left: CancellationToken,
}

impl Place {
    pub(super) fn new(registration: Arc<Registration>) -> Arc<Self> {
        let registration = Mutex::new(Some(registration));
        Arc::new(Self { registration, left: CancellationToken::new() })
    }

    pub(super) fn leave(&self) {
        let mut registration = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        drop(registration.take());
        self.left.cancel();
    }

    /// Leaves when the account has moved and its grace is over, whoever still holds the answer: a client that
    /// takes nothing keeps up no fence. The connection to the former owner is closed before.
    pub(super) async fn leave_when_moved(
        self: Arc<Self>,
        mut kick: Kick,
        cut: CancellationToken,
        closed: CancellationToken,
    ) {
        tokio::select! {
            () = kick.over() => {}
            () = self.left.cancelled() => return,
        }
        cut.cancel();
        closed.cancelled().await;
        self.leave();
    }
}

/// What the log says of a request.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) session: Box<str>,
    pub(super) client: SocketAddr,
    pub(super) method: Box<str>,
    pub(super) host: Box<str>,
    /// Without its query, which may have tokens in it.
    pub(super) path: Box<str>,
    pub(super) status: Option<StatusCode>,
    pub(super) account: Option<Box<str>>,
    pub(super) owner: Option<BackendName>,
    pub(super) epoch: Option<u64>,
    pub(super) began: Instant,
}

impl Record {
    pub(super) fn owned_by(&mut self, owner: &Owner) {
        self.account = Some(owner.account.clone());
        self.owner = Some(owner.backend.name.clone());
        self.epoch = Some(owner.epoch);
    }

    /// The line.
    pub(super) fn write(&self, octets_in: u64, octets_out: u64, ended: &str) {
        let Self { session, client, method, host, path, .. } = self;
        let owner = self.owner.as_ref().map(BackendName::as_str);
        let status = self.status.map(|status| status.as_u16());
        let ms = self.began.elapsed().as_millis();
        tracing::info!(
            %session, %client, method, host, path, status, account = self.account.as_deref(), owner,
            epoch = self.epoch, octets_in, octets_out, ms, ended, "request"
        );
    }
}

impl Flight {
    pub(super) fn note(&mut self, octets: usize) {
        self.busy.goes_on();
        self.octets_out = self.octets_out.saturating_add(u64::try_from(octets).unwrap_or(u64::MAX));
    }

    /// Both bodies have ended: the connection is free for the next request.
    pub(super) fn land(mut self) {
        self.record.write(self.progress.octets(), self.octets_out, "done");
        if let Some(place) = &self.place {
            place.leave();
        }
        if let Some(connection) = self.connection.take() {
            self.pool.give(&self.backend, connection);
        }
        drop(self.busy);
    }

    /// Has its place given back when its account has moved, whoever still holds the answer.
    pub(super) fn leave_when_moved(&self, kick: &Kick) {
        let (Some(place), Some(connection)) = (&self.place, &self.connection) else { return };
        let leaving = Arc::clone(place).leave_when_moved(
            kick.another(),
            connection.cut(),
            connection.closed(),
        );
        self.lifecycle.spawn_chore("http kick", leaving);
    }

    /// What it had become has ended, and its connections are closed.
    pub(super) fn end(self, ended: &str, octets_in: u64, octets_out: u64) {
        self.record.write(octets_in, octets_out, ended);
        if let Some(place) = &self.place {
            place.leave();
        }
    }

    /// It ends in the middle; without a reason, the client has gone. The account is not free before the
    /// connection is closed.
    pub(super) fn crash(mut self, cut: Option<Cut>) {
        let ended = cut.map_or_else(|| "closed by the client".to_owned(), |cut| cut.to_string());
        self.record.write(self.progress.octets(), self.octets_out, &ended);
        let (connection, place) = (self.connection.take(), self.place.take());
        close(&self.lifecycle, connection, place);
    }
}

/// Closes a connection in the middle of something; the registration ends when nothing more can be sent.
pub(super) fn close(
    lifecycle: &Lifecycle,
    connection: Option<Connection>,
    place: Option<Arc<Place>>,
) {
    let Some(connection) = connection else { return };
    let closed = connection.closed();
    drop(connection);
    let Some(place) = place else { return };
    lifecycle.spawn_chore("http close", async move {
        closed.cancelled().await;
        place.leave();
    });
}

//! A changed configuration, taken in while the service runs (SIGHUP), and changed certificates, which are
//! looked for now and then as well.
//!
//! The whole file is read and checked first. If anything is wrong, all of it is said and nothing changes.
//! Otherwise connections and attempts from now on go by the new one, and what has begun goes on by the old.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::table::digests;
use super::take_over::Predecessor;
use super::{Program, Service, systemd};
use crate::config::Config;
use crate::ownership::store::Known;
use crate::telemetry::Log;

/// How often certificate files are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_mins(1);

/// What takes a changed configuration in.
#[derive(Debug)]
pub(super) struct Reload<P> {
    pub(super) service: Service,
    pub(super) program: Arc<P>,
    pub(super) file: PathBuf,
    /// What counts where a restart is needed.
    pub(super) at_start: Arc<Config>,
    pub(super) log: Arc<Log>,
    /// What the table is told of the backends.
    pub(super) known: Known,
    /// Who has handed over to this process, and still has something in hand.
    pub(super) predecessor: Mutex<Option<Predecessor>>,
}

impl<P: Program> Reload<P> {
    /// Reloads at each `hangup`, and looks for changed certificates, until the service stops.
    pub(super) async fn watch(self: Arc<Self>, mut hangup: Signal) {
        let stop = self.service.lifecycle.stop().clone();
        let mut look = Instant::now() + CERTIFICATES_EVERY;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => {
                    systemd::notify_reloading();
                    if self.reload().await {
                        self.name_what_needs_a_restart();
                    }
                    systemd::notify("READY=1");
                }
                () = sleep_until(look) => {}
            }
            self.look_at_certificates();
            look = Instant::now() + CERTIFICATES_EVERY;
        }
    }

    /// Takes in what can be, if the file is right. Says whether it is.
    pub(super) async fn reload(&self) -> bool {
        let config = match super::read(&self.file, P::idle) {
            Ok(config) => Arc::new(config),
            Err(problems) => {
                for problem in &problems {
                    tracing::error!(problem, "wrong in the configuration");
                }
                let problems = problems.len();
                tracing::error!(
                    problems,
                    "the configuration was not reloaded: nothing has changed"
                );
                return false;
            }
        };
        let service = &self.service;
        if let Some(certificates) = &service.certificates
            && let Err(error) = certificates.replace(&config.tls.certificates)
        {
            tracing::error!(%error, "the configuration was not reloaded: nothing has changed");
            return false;
        }
        self.program.reload(service, &config).await;
        service.resolve_by(&config.names);
        service.ownership.set_backends(config.backends.clone());
        service.ownership.complain_of_unknown_owners();
        self.known.set(digests(&config.backends));
        if let Err(error) = self.log.set_level(&config.log.level) {
            tracing::error!(%error, "the log's level stays as it is");
        }
        service.config.store(config);
        tracing::info!("the configuration was reloaded");
        // A node that knows other backends than the others keeps flips from being made.
        let mut predecessor = self.predecessor.lock().await;
        if let Some(before) = &mut *predecessor
            && !before.reload().await
        {
            *predecessor = None;
        }
        true
    }

    fn name_what_needs_a_restart(&self) {
        for key in self.at_start.needs_restart(&self.service.config()) {
            if key == "node.state_dir" {
                tracing::warn!(
                    key,
                    "has changed, and counts only when the service is started again"
                );
            } else {
                tracing::warn!(
                    key,
                    "has changed, and counts only in a new process; SIGUSR2 starts one, which takes over \
                     without a refused connection"
                );
            }
        }
    }

    fn look_at_certificates(&self) {
        match self
            .service
            .certificates
            .as_ref()
            .map(|certificates| certificates.reload_if_changed())
        {
            Some(Ok(true)) => tracing::info!("certificates were read again"),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => {
                tracing::error!(%error, "changed certificates cannot be used; the old ones stay");
            }
        }
    }
}

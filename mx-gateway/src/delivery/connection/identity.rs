//! Who an owner is told the client is (MX-9).
//!
//! XCLIENT binds a connection to one client: the owner judges all that follows as that client's, and refuses
//! another XCLIENT, since the client has no right to it. XFORWARD is forgotten with each transaction.

use shared::address::Domain;
use shared::backend::Identity;
use shared::smtp::reply::Class;
use shared::smtp::{xclient, xforward};
use tokio::time::Instant;

use super::{Connection, DeliveryError, Introduction};

impl Connection {
    /// XCLIENT, with what is offered of it, where that is configured. An owner that does not offer it to us
    /// takes the mail all the same, but judges it by our address: that is for an operator to mend.
    ///
    /// What is said in EHLO behind it counts for the client's name, too, so that is said, if it is one.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub async fn name_client(&mut self, introduction: &Introduction) -> Result<(), DeliveryError> {
        let Introduction { hostname, client, local, helo, extended, .. } = introduction;
        let (client, local, extended) = (*client, *local, *extended);
        let subject = xclient::Subject { client, local, helo, extended, login: None };
        let commands = match self.identity {
            Identity::Xclient => xclient::commands(&self.offered, subject),
            Identity::None
            | Identity::Xforward
            | Identity::DovecotId
            | Identity::Proxy
            | Identity::ProxyV1
            | Identity::Forwarded => Vec::new(),
        };
        if commands.is_empty() {
            return Ok(());
        }
        self.bound = true;
        self.wire.deadlines.until =
            Instant::now().checked_add(self.reply_timeout.saturating_mul(2));
        for command in commands {
            self.wire.say(command).await?;
            self.expect(Class::Accepted).await?;
        }
        let helo = Domain::parse(helo).ok();
        self.hello(helo.as_ref().map_or(&**hostname, Domain::as_str)).await?;
        self.wire.deadlines.until = None;
        Ok(())
    }

    /// XFORWARD, with what is offered of it, where that is configured.
    pub(super) fn forwarded(&self, introduction: &Introduction) -> Vec<String> {
        let Introduction { client, helo, extended, session, .. } = introduction;
        let (client, extended) = (*client, *extended);
        match self.identity {
            Identity::Xforward => {
                let subject = xforward::Subject { client, helo, extended, session };
                xforward::commands(&self.offered, subject)
            }
            Identity::None
            | Identity::Xclient
            | Identity::DovecotId
            | Identity::Proxy
            | Identity::ProxyV1
            | Identity::Forwarded => Vec::new(),
        }
    }
}

//! A transaction's sender and recipients (RFC 5321 §3.3), in as few round trips as the owner allows
//! (RFC 2920).

use std::collections::VecDeque;

use shared::smtp::command::{Addressee, Mail};
use shared::smtp::reply::{Class, Reply};

use super::{Connection, DeliveryError, Introduction};

/// Commands whose replies are not read yet. Their replies, of 512 octets at most each (RFC 5321 §4.5.3.1.5),
/// are fewer octets than are read while we write ([`shared::wire::MAX_UNREAD`]), so that neither side waits
/// for the other.
const MOST_AHEAD: usize = 100;

/// What a command was.
#[derive(Debug, Clone, Copy)]
enum Said {
    Forward,
    Mail,
    Rcpt,
}

impl Connection {
    /// Begins a transaction: the reply to MAIL and, if that was accepted, one to each RCPT, in the order of
    /// `to`. Where MAIL was not accepted, there is no transaction.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub async fn begin(
        &mut self,
        introduction: &Introduction,
        mail: &Mail,
        to: &[&Addressee],
    ) -> Result<(Reply, Vec<Reply>), DeliveryError> {
        self.transactions = self.transactions.saturating_add(1);
        self.recipients = 0;
        self.wire.deadlines.read = self.reply_timeout;
        let mut commands = self.commands(introduction, mail, to).into_iter();
        let most = if self.offered.pipelining { MOST_AHEAD } else { 1 };
        let mut ahead = VecDeque::new();
        let (mut from, mut answers) = (None, Vec::with_capacity(to.len()));
        loop {
            // Many at once, rather than one for each reply.
            if ahead.len() <= most / 2 {
                while ahead.len() < most && !self.wire.output.is_full() {
                    let Some((said, command)) = commands.next() else { break };
                    self.wire.output.push(command);
                    ahead.push_back(said);
                }
                self.wire.flush().await?;
            }
            let Some(said) = ahead.pop_front() else { break };
            let reply = self.reply().await?;
            match said {
                // For its log only.
                Said::Forward => {}
                Said::Mail if reply.class() != Class::Accepted => {
                    // What is answered to the RCPTs behind it says nothing.
                    self.over |= !ahead.is_empty();
                    return Ok((reply, Vec::new()));
                }
                Said::Mail => from = Some(reply),
                Said::Rcpt => answers.push(self.counted(reply)),
            }
        }
        answers.resize_with(to.len(), too_many);
        let from = from.ok_or(DeliveryError::Protocol("no answer to MAIL"))?;
        Ok((from, answers))
    }

    /// The commands of a transaction: XFORWARD, MAIL, and a RCPT for each recipient that the owner takes in
    /// one transaction.
    fn commands(
        &mut self,
        introduction: &Introduction,
        mail: &Mail,
        to: &[&Addressee],
    ) -> Vec<(Said, String)> {
        let mut commands: Vec<_> = self
            .forwarded(introduction)
            .into_iter()
            .map(|command| (Said::Forward, command))
            .collect();
        commands.push((Said::Mail, mail.command(self.offered.takes())));
        for to in to {
            if self.may_add() {
                commands.push((Said::Rcpt, to.command(self.offered.takes())));
            }
        }
        commands
    }

    /// Adds a recipient to the transaction: the reply to its RCPT.
    ///
    /// # Errors
    ///
    /// A [`DeliveryError`]; the connection is over.
    pub async fn add(&mut self, to: &Addressee) -> Result<Reply, DeliveryError> {
        if !self.may_add() {
            return Ok(too_many());
        }
        let command = to.command(self.offered.takes());
        self.wire.say(command).await?;
        let reply = self.reply().await?;
        Ok(self.counted(reply))
    }

    /// True when a message of that size is more than the owner takes.
    pub fn is_too_large(&self, octets: u64) -> bool {
        self.offered.is_too_large(octets)
    }

    /// Most recipients that the owner takes in one transaction, where it says so (RFC 9422 §4.2).
    pub fn most_recipients(&self) -> Option<u32> {
        self.offered.rcpt_max
    }

    /// Counts one more RCPT, if the owner takes it.
    fn may_add(&mut self) -> bool {
        let may = self.most_recipients().is_none_or(|most| self.recipients < most);
        self.recipients = self.recipients.saturating_add(u32::from(may));
        may
    }

    fn counted(&mut self, reply: Reply) -> Reply {
        self.refusals = self.refusals.saturating_add(u32::from(reply.class() != Class::Accepted));
        reply
    }
}

/// What is said of a recipient over RCPTMAX, without asking: it is for another transaction (RFC 5321
/// §4.5.3.1.10).
fn too_many() -> Reply {
    Reply::new(452, (5, 3), "Too many recipients in one transaction")
}

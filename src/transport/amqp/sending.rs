//! What a session sends: requests and replies, alone or together.

use crossbeam_channel::TryRecvError;

use super::command::{Command, LinkId, Outgoing};
use super::gather::{Gathering, Group};
use super::session::{End, Session, lost};
use crate::transport::{Outcome, Publication};

/// How much is taken of what may share messages.
const MOST_GATHERED: usize = 1_024;

impl Session<'_> {
    /// Carries out what other threads ask for. Replies that may share a message and wait at
    /// this moment do.
    pub(super) fn commands(&mut self) -> Result<(), End> {
        let mut replies = Gathering::default();
        let mut then = Vec::new();
        for _ in 0..MOST_GATHERED {
            match self.io.inbox.commands.try_recv() {
                Ok(command) if self.blocked && !matches!(command, Command::Close) => {
                    self.held.push_back(command);
                }
                Ok(Command::Settle {
                    link,
                    session,
                    outcome: Outcome::Reply(reply),
                    ..
                }) if reply.sharing.is_some() => {
                    // What it answers is not settled yet, so it is of this session.
                    let limit = reply.sharing.filter(|_| session == self.number);
                    let reply = Outgoing::plain(link, *reply);
                    let full = limit.and_then(|limit| replies.add(reply, limit));
                    full.map_or(Ok(()), |full| self.publish_replies(full))?;
                }
                // What was to be done after those replies: above all to acknowledge what
                // they answer.
                Ok(command) if !replies.is_empty() => then.push(command),
                Ok(command) => self.command(command)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(End::Closed),
            }
        }
        let mut result = Ok(());
        for group in replies.groups() {
            result = result.and_then(|()| self.publish_replies(group));
        }
        for command in then {
            match result {
                Ok(()) => result = self.command(command),
                // For those who look after the connection.
                Err(_) => self.held.push_back(command),
            }
        }
        result
    }

    /// Sends what was accepted before, so that closing loses nothing.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        let waiting = self.io.registry.again.len() + self.io.inbox.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.outgoing(waiting)
    }

    /// Sends so many of those that wait, and with them those that may share messages.
    pub(super) fn outgoing(&mut self, budget: usize) -> Result<(), End> {
        let mut requests = Gathering::default();
        let mut sent = 0;
        let mut result = Ok(());
        for _ in 0..budget.max(MOST_GATHERED) {
            if sent == budget || result.is_err() {
                break;
            }
            let again = self.io.registry.again.pop_front();
            let Some(next) = again.or_else(|| self.io.inbox.outgoing.try_recv().ok()) else {
                break;
            };
            let full = match next.publication.sharing {
                Some(limit) => requests.add(next, limit),
                None => {
                    result = self.publish(next);
                    sent += 1;
                    None
                }
            };
            if let Some(full) = full {
                result = self.publish_requests(full);
            }
        }
        for group in requests.groups() {
            match result {
                Ok(()) => result = self.publish_requests(group),
                // Taken and not sent: they wait for the next connection.
                Err(_) => self.io.registry.again.extend(group.into_outgoing()),
            }
        }
        result
    }

    fn publish(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let Outgoing {
            link,
            mut publication,
            receipt,
        } = outgoing;
        let Some(lane) = self.lanes.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        if publication.start_sending() {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            lane.publish(publication, receipt).map_err(lost)?;
        }
        Ok(())
    }

    /// Sends those requests of a group whose owners still want them, in one message.
    fn publish_requests(&mut self, group: Group) -> Result<(), End> {
        let Group {
            link,
            messages: mut requests,
            ..
        } = group;
        let Some(lane) = self.lanes.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        requests.retain_mut(Publication::start_sending);
        let _armed = self.io.watchdog.arm(self.io.operation_timeout);
        match requests.len() {
            0 => Ok(()),
            1 => requests
                .into_iter()
                .try_for_each(|request| lane.publish(request, None).map_err(lost)),
            _ => lane.publish_gathered(requests).map_err(lost),
        }
    }

    /// Sends a group of replies in one message.
    fn publish_replies(&mut self, group: Group) -> Result<(), End> {
        let Some(lane) = self.lanes.get_mut(&group.link) else {
            return Ok(()); // it has been closed, and takes back what these answer
        };
        let _armed = self.io.watchdog.arm(self.io.operation_timeout);
        let reply = Publication::gather_replies(group.messages);
        reply.map_or(Ok(()), |reply| lane.publish(reply, None).map_err(lost))
    }

    fn cannot_send(&mut self, link: LinkId) {
        if self.io.registry.get_mut(link).is_some() {
            log::warn!(
                target: "coney::amqp",
                "a message is dropped: the broker refuses to open its link"
            );
        }
    }
}

use std::collections::{BTreeMap, VecDeque};

use super::command::{Command, LinkId, Outgoing, Registered};
use super::lane::Lane;
use crate::error::{Error, ErrorKind};
use crate::transport::Publication;

/// What outlives a session: the links there are, open in the present one or not,
/// and what the last one lost.
#[derive(Default)]
pub(super) struct Registry {
    links: BTreeMap<LinkId, Registered>,
    /// What was sent, may be sent again or elsewhere, and goes first. No more than was in
    /// flight.
    pub(super) again: VecDeque<Outgoing>,
    /// The link whose channel the broker closed in the last session. What it had
    /// sent may be why, and sent again would close the next one.
    pub(super) guilty: Option<LinkId>,
}

impl Registry {
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut Registered> {
        self.links.get_mut(&link)
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn add(&mut self, link: LinkId, registered: Registered) {
        self.links.insert(link, registered);
    }

    pub(super) fn remove(&mut self, link: LinkId) {
        if let Some(registered) = self.links.remove(&link) {
            registered.waiting.close();
        }
    }

    /// From now on the link only publishes, or consumes again; after a reconnect
    /// too.
    pub(super) fn pause(&mut self, link: LinkId, paused: bool) {
        if let Some(registered) = self.links.get_mut(&link) {
            registered.spec.paused = paused;
        }
    }

    /// Puts what is to be sent in place of what was returned into the queue of what goes
    /// first: there it is held while nothing may be sent.
    pub(super) fn send_instead(&mut self, link: LinkId, lane: &mut Lane<'_>) {
        self.send_first(link, lane.instead.drain(..));
    }

    /// Sends these before anything else.
    pub(super) fn send_first(
        &mut self,
        link: LinkId,
        publications: impl Iterator<Item = Publication>,
    ) {
        self.again
            .extend(publications.map(|publication| Outgoing::plain(link, publication)));
    }

    /// Carries out a command while there is no session; true if it is `Close`.
    pub(super) fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Open { link, registered } => self.add(link, registered),
            // The broker took every delivery back when the connection went.
            Command::Settle { .. } => {}
            // The next session looks for them by itself.
            Command::SendWaiting { .. } => {}
            Command::Get { queue, done, .. } => {
                let _ = done.try_send(Err(Error::new(
                    ErrorKind::ConnectionLost,
                    format!("cannot take a message off {queue:?}: the connection is down"),
                )));
            }
            Command::Consume { link, on, done } => {
                self.pause(link, !on);
                let _ = done.try_send(());
            }
            // It has gone with the connection.
            Command::DeleteOwnQueue { done, .. } => drop(done.try_send(())),
            Command::CloseLink { link } => self.remove(link),
            Command::Close => return true,
        }
        false
    }

    /// Tells every link that what was sent has an unknown outcome.
    pub(super) fn lost(&mut self, cause: &str) {
        let guilty = self.guilty.take();
        for (&link, registered) in &self.links {
            for publication in registered.sink.lost(cause, guilty != Some(link)) {
                self.again.push_back(Outgoing::plain(link, publication));
            }
        }
    }

    /// Tells every link that it is over.
    pub(super) fn closed(&mut self, cause: &str) {
        self.again.clear();
        for (_, registered) in std::mem::take(&mut self.links) {
            registered.waiting.close();
            registered.sink.closed(cause);
        }
    }
}

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::command::{Command, LinkId, Outgoing, Registered};
use super::lane::Lane;
use crate::error::{Error, ErrorKind};
use crate::transport::{Publication, Refused, Returned};

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
    /// The number of channels that this user may open, the broker's words, and the time of these.
    channel_limit: Option<(usize, String, Instant)>,
}

/// The time for which it is believed that no more channels can be opened: trying costs the
/// connection.
const CHANNEL_LIMIT_FOR: Duration = Duration::from_secs(600);

impl Registry {
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut Registered> {
        self.links.get_mut(&link)
    }

    /// The broker has closed the connection over a channel more than `open`.
    pub(super) fn learn_channel_limit(&mut self, open: usize, reason: &str) {
        self.channel_limit = Some((open, reason.to_owned(), Instant::now()));
    }

    /// The reason why a channel more than `open` cannot be opened, if that is known.
    pub(super) fn no_more_channels(&self, open: usize) -> Option<Error> {
        let (limit, reason, at) = self.channel_limit.as_ref()?;
        if open < *limit || at.elapsed() >= CHANNEL_LIMIT_FOR {
            return None;
        }
        Some(Error::new(
            ErrorKind::Broker,
            format!("the broker allows no more than {limit} channels: {reason}"),
        ))
    }

    /// Drops what is over, while nothing can be sent. `new` is what has been handed over
    /// meanwhile.
    pub(super) fn keep_waiting(&mut self, new: impl Iterator<Item = Outgoing>) {
        self.again.extend(new);
        self.again.retain(|outgoing| !outgoing.is_over());
        for registered in self.links.values() {
            registered.waiting.drop_over();
        }
    }

    /// A mandatory message with a large body had no queue to go to.
    pub(super) fn returned(&mut self, link: LinkId, returned: Returned) {
        let instead = self.links.get(&link).map(|it| it.sink.returned(returned));
        self.send_first(link, instead.into_iter().flatten());
    }

    /// The broker did not take a message with a large body.
    pub(super) fn refused(&mut self, link: LinkId, refused: Refused<'_>) {
        let instead = self.links.get(&link).map(|it| it.sink.refused(refused));
        self.send_first(link, instead.into_iter().flatten());
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
            .extend(publications.map(|publication| Outgoing::new(link, publication, None)));
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
                let queue = queue.as_deref().unwrap_or("a queue of our own");
                let _ = done.try_send(Err(is_down(&format!("take a message off {queue:?}"))));
            }
            Command::Backlog { queue, done, .. } => {
                let _ = done.try_send(Err(is_down(&format!("look into {queue:?}"))));
            }
            // What was sent before is lost, or waits for the next connection: the one that
            // waits for it is told by the end of `done`.
            Command::Flush { done, .. } => drop(done),
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
                self.again.push_back(Outgoing::new(link, publication, None));
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

fn is_down(what: &str) -> Error {
    Error::new(
        ErrorKind::ConnectionLost,
        format!("cannot {what}: the connection is down"),
    )
}

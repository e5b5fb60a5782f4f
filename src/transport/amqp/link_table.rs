use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::command::{Command, LinkId, Outgoing, RegisteredLink};
use crate::error::{Error, ErrorKind};
use crate::transport::{Publication, Refused, Returned};

/// What outlives a session: the links there are, open in the present one or not,
/// and what the last one lost.
#[derive(Default)]
pub(super) struct LinkTable {
    links: BTreeMap<LinkId, RegisteredLink>,
    /// What was sent, may be sent again or elsewhere, and goes first. No more than was in
    /// flight.
    pub(super) resend: VecDeque<Outgoing>,
    /// The link whose channel the broker closed in the last session. What it had
    /// sent may be why, and sent again would close the next one.
    pub(super) suspect_link: Option<LinkId>,
    /// The number of channels that this user may open, the broker's words, and the time of these.
    channel_limit: Option<(usize, String, Instant)>,
}

/// The time for which it is believed that no more channels can be opened: trying costs the
/// connection.
const CHANNEL_LIMIT_FOR: Duration = Duration::from_secs(600);

impl LinkTable {
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut RegisteredLink> {
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
    pub(super) fn keep_unsent(&mut self, new: impl Iterator<Item = Outgoing>) {
        self.resend.extend(new);
        self.resend.retain(|outgoing| !outgoing.is_expired());
        for registered in self.links.values() {
            registered.waiting.drop_expired();
        }
    }

    /// A mandatory message with a large body had no queue to go to.
    pub(super) fn returned(&mut self, link: LinkId, returned: Returned) {
        let fallback = self.links.get(&link).map(|it| it.sink.returned(returned));
        self.send_first(link, fallback.into_iter().flatten());
    }

    /// The broker did not take a message with a large body.
    pub(super) fn refused(&mut self, link: LinkId, refused: Refused<'_>) {
        let fallback = self.links.get(&link).map(|it| it.sink.refused(refused));
        self.send_first(link, fallback.into_iter().flatten());
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn add(&mut self, link: LinkId, registered: RegisteredLink) {
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

    /// Puts publications among those that are sent before all others. There they wait while
    /// nothing may be sent.
    pub(super) fn send_first(
        &mut self,
        link: LinkId,
        publications: impl IntoIterator<Item = Publication>,
    ) {
        self.resend.extend(
            publications
                .into_iter()
                .map(|publication| Outgoing::new(link, publication, None)),
        );
    }

    /// Carries out a command while there is no session; true if it is `Close`.
    pub(super) fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Open { link, registered } => self.add(link, registered),
            // The broker took every delivery back when the connection went.
            Command::Settler { .. } => {}
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
        let suspect_link = self.suspect_link.take();
        for (&link, registered) in &self.links {
            for publication in registered.sink.lost(cause, suspect_link != Some(link)) {
                self.resend
                    .push_back(Outgoing::new(link, publication, None));
            }
        }
    }

    /// Tells every link that it is over.
    pub(super) fn closed(&mut self, cause: &str) {
        self.resend.clear();
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

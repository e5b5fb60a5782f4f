//! The links of a connection, and what they have to resend, across its sessions.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::command::{Command, LinkId, Outgoing, RegisteredLink};
use crate::error::{Error, ErrorKind};
use crate::transport::{Publication, Refused, Returned};

/// The links of a connection, open in the present session or not, and the messages that the
/// last session lost. Outlives the sessions.
#[derive(Default)]
pub(super) struct LinkTable {
    links: BTreeMap<LinkId, RegisteredLink>,
    /// Messages that were sent and may be sent again, or elsewhere. They go before all others.
    /// There are no more than were in flight.
    pub(super) resend: VecDeque<Outgoing>,
    /// Messages that were never sent: those that were queued before expired ones were last dropped.
    /// They go after `resend`, so that the order stays, and before later ones.
    unsent: VecDeque<Outgoing>,
    /// The link whose channel the broker closed in the last session. A message that it had
    /// sent may be the cause, and sent again would close the next channel.
    pub(super) closed_link: Option<LinkId>,
    /// The number of channels that the user may open, the broker's reason, and the time at
    /// which it was learnt.
    channel_limit: Option<(usize, String, Instant)>,
}

/// The time for which a learnt limit on channels is kept: an attempt beyond it costs the
/// connection.
const CHANNEL_LIMIT_TTL: Duration = Duration::from_secs(600);

impl LinkTable {
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut RegisteredLink> {
        self.links.get_mut(&link)
    }

    /// Records that the broker closed the connection when one channel more than `open` was
    /// opened.
    pub(super) fn learn_channel_limit(&mut self, open: usize, reason: &str) {
        self.channel_limit = Some((open, reason.to_owned(), Instant::now()));
    }

    /// Returns the reason why no channel can be opened beside the `open` ones, if the limit is
    /// known.
    pub(super) fn no_more_channels(&self, open: usize) -> Option<Error> {
        let (limit, reason, at) = self.channel_limit.as_ref()?;
        if open < *limit || at.elapsed() >= CHANNEL_LIMIT_TTL {
            return None;
        }
        Some(Error::new(
            ErrorKind::Broker,
            format!("the broker allows no more than {limit} channels: {reason}"),
        ))
    }

    /// Keeps the unexpired of the messages to be sent, and drops the others. `new` are those that
    /// were queued meanwhile. Called while nothing can be sent.
    pub(super) fn keep_unsent(&mut self, new: impl Iterator<Item = Outgoing>) {
        self.unsent.extend(new);
        for waiting in [&mut self.resend, &mut self.unsent] {
            waiting.retain(|outgoing| !outgoing.is_expired());
        }
        for registered in self.links.values() {
            registered.coalesce_buffer.drop_expired();
        }
    }

    /// Takes the next message that is sent before those that are still queued.
    pub(super) fn next(&mut self) -> Option<Outgoing> {
        self.resend.pop_front().or_else(|| self.unsent.pop_front())
    }

    /// Returns the number of messages that are sent before those that are still queued.
    pub(super) fn waiting(&self) -> usize {
        self.resend.len() + self.unsent.len()
    }

    /// Passes a returned message with a large body to its link.
    pub(super) fn returned(&mut self, link: LinkId, returned: Returned) {
        let fallback = self.links.get(&link).map(|it| it.sink.returned(returned));
        self.send_first(link, fallback.into_iter().flatten());
    }

    /// Passes the refusal of a message to its link.
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

    pub(super) fn remove(&mut self, link: LinkId) -> Option<RegisteredLink> {
        let removed = self.links.remove(&link)?;
        removed.coalesce_buffer.close();
        Some(removed)
    }

    /// Sets whether the link is paused, that is, does not consume. Applies after a reconnect
    /// too.
    pub(super) fn pause(&mut self, link: LinkId, paused: bool) {
        if let Some(registered) = self.links.get_mut(&link) {
            registered.spec.paused = paused;
        }
    }

    /// Sets the prefetch of a link. Applies after a reconnect too.
    pub(super) fn set_prefetch(&mut self, link: LinkId, count: u16) {
        if let Some(registered) = self.links.get_mut(&link) {
            registered.spec.source.set_prefetch(count);
        }
    }

    /// Adds publications to those that are sent before all others. They wait while nothing can
    /// be sent.
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

    /// Executes a command without a session; returns true if it is `Close`.
    pub(super) fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Open { link, registered } => self.add(link, *registered),
            // The broker requeued every unsettled delivery when the connection was lost.
            Command::Settle { .. } => {}
            Command::SendFirst { link, publications } => self.send_first(link, publications),
            // Dropped with their session, as the broker has requeued them.
            Command::PassOnWaiting { .. } => {}
            // The next session sends what is in the coalesce buffers.
            Command::SendCoalesced { .. } => {}
            Command::Get { queue, done, .. } => {
                let queue = queue.as_deref().unwrap_or("the link's own queue");
                let _ = done.try_send(Err(is_down(&format!("get a message from {queue:?}"))));
            }
            Command::Depth { queue, done, .. } => {
                let _ = done.try_send(Err(is_down(&format!("count the messages in {queue:?}"))));
            }
            // What was sent before is lost, or waits for the next connection: dropping `done`
            // makes the flush fail.
            Command::Flush { done, .. } => drop(done),
            Command::Consume { link, on, done } => {
                self.pause(link, !on);
                let _ = done.try_send(());
            }
            Command::SetPrefetch { link, count, done } => {
                self.set_prefetch(link, count);
                let _ = done.try_send(());
            }
            // The broker deleted the exclusive queue with the connection.
            Command::DeleteOwnQueue { done, .. } => drop(done.try_send(())),
            Command::CloseLink { link } => drop(self.remove(link)),
            Command::Close => return true,
        }
        false
    }

    /// Notifies every link that the connection was lost and the outcome of what was sent is
    /// unknown, and keeps what they resend.
    pub(super) fn lost(&mut self, cause: &str) {
        let closed_link = self.closed_link.take();
        for (&link, registered) in &self.links {
            for publication in registered.sink.lost(cause, closed_link != Some(link)) {
                self.resend
                    .push_back(Outgoing::new(link, publication, None));
            }
        }
    }

    /// Notifies every link that the connection is closed, and drops all messages.
    pub(super) fn closed(&mut self, cause: &str) {
        self.resend.clear();
        self.unsent.clear();
        for (_, registered) in std::mem::take(&mut self.links) {
            registered.coalesce_buffer.close();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::SendState;

    fn message(key: &str, deadline: Instant) -> Outgoing {
        let mut publication = Publication::new("", key, Vec::new());
        publication.send_state = Some(SendState::until(deadline).into());
        Outgoing::new(1, publication, None)
    }

    /// Messages that a lost connection had sent go before those that were never sent.
    #[test]
    fn messages_that_wait_keep_their_order_and_expire() {
        let far = Instant::now() + Duration::from_secs(60);
        let mut table = LinkTable::default();
        let expired = message("expired", Instant::now());
        let queued = [message("3", far), expired, message("4", far)];
        table.keep_unsent(queued.into_iter());
        table.send_first(1, ["1", "2"].map(|key| message(key, far).publication));
        table.keep_unsent([message("5", far)].into_iter());
        assert_eq!(table.waiting(), 5);
        let sent: Vec<_> = std::iter::from_fn(|| table.next())
            .map(|next| next.publication.routing_key)
            .collect();
        assert_eq!(sent, ["1", "2", "3", "4", "5"]);
    }
}

//! The end of a session: the events that arrived before a loss, and its cause.

use std::sync::Arc;

use super::state::Session;
use crate::transport::amqp::command::{LinkId, Outgoing};

/// AMQP's reply code `not-allowed`.
const NOT_ALLOWED: u16 = 530;

impl Session<'_> {
    /// Passes on what arrived before the loss. Unconfirmed messages are resent in the next
    /// session, or their outcome is settled as lost.
    pub(super) fn drain_after_loss(&mut self, cause: &str) {
        let reason = Arc::from(cause);
        let closed_link = self.closed_link();
        for (&link, link_channel) in &mut self.link_channels {
            let fallbacks = link_channel.drain_after_loss();
            self.io.link_table.send_first(link, fallbacks);
            for (publication, confirm) in link_channel.lost(&reason, closed_link != Some(link)) {
                let resend = Outgoing::new(link, publication, Some(confirm));
                self.io.link_table.resend.push_back(resend);
            }
        }
        let _ = self.large_confirms(); // the confirms that arrived before the loss
        self.io.link_table.resend.extend(self.large.lost(&reason));
        self.io.link_table.closed_link = closed_link;
    }

    /// Records a limit on channels if exceeding it has cost the connection. The broker closes
    /// the whole connection over one channel too many, which must not happen again and again:
    /// the link that needs the channel fails, with the broker's reason.
    pub(super) fn learn_limits(&mut self) {
        if self.is_opening_channel
            && let Some((NOT_ALLOWED, reason)) = self.io.observed.server_close()
            && reason.contains("channel")
        {
            let open = self.open_channels;
            self.io.link_table.learn_channel_limit(open, &reason);
        }
    }

    /// Returns the link whose channel the broker closed.
    pub(super) fn closed_link(&self) -> Option<LinkId> {
        let (channel, _) = self.io.observed.any_channel_close()?;
        let mut link_channels = self.link_channels.iter();
        link_channels.find_map(|(&link, link_channel)| {
            (link_channel.channel_id() == channel).then_some(link)
        })
    }

    pub(super) fn operation_timed_out(&self) -> String {
        let limit = self.io.operation_timeout;
        format!("an operation took longer than {limit:?}")
    }
}

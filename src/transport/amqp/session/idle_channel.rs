//! Open channels without a link, and channels whose messages are confirmed.

use amiquip::{Channel, Confirm};
use crossbeam_channel::Receiver;

use super::unconfirmed::Unconfirmed;
use crate::transport::amqp::convert::Failure;

/// An open channel that no link uses. One that confirms does so for good, and
/// goes on counting.
pub(super) struct IdleChannel<'c> {
    pub(super) channel: &'c Channel,
    pub(super) confirms: bool,
    published: u64,
}

impl<'c> IdleChannel<'c> {
    pub(super) fn new(channel: &'c Channel, confirms: bool) -> Self {
        Self {
            channel,
            confirms,
            published: 0,
        }
    }

    /// What a lane leaves behind.
    pub(super) fn after(channel: &'c Channel, confirm_state: Option<ConfirmState>) -> Self {
        let unconfirmed = confirm_state.map(|confirm_state| confirm_state.unconfirmed);
        Self {
            channel,
            confirms: unconfirmed.is_some(),
            published: unconfirmed.map_or(0, |unconfirmed| unconfirmed.published()),
        }
    }

    /// Has the broker confirm what is published. Once a channel does, it is not asked
    /// again: it would answer, but it goes on counting.
    pub(super) fn confirm(&self) -> Result<ConfirmState, Failure> {
        let confirms = self.channel.listen_for_publisher_confirms()?;
        if self.published == 0 {
            self.channel.enable_publisher_confirms()?;
        }
        Ok(ConfirmState {
            confirms,
            unconfirmed: Unconfirmed::after(self.published),
        })
    }
}

/// The confirming half of a lane.
pub(super) struct ConfirmState {
    pub(super) confirms: Receiver<Confirm>,
    pub(super) unconfirmed: Unconfirmed,
}

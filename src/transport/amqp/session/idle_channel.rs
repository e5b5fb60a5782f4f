//! Open channels without a link, and the confirm state of a channel.

use amiquip::{Channel, Confirm};
use crossbeam_channel::Receiver;

use super::unconfirmed::Unconfirmed;
use crate::transport::amqp::convert::ChannelFailure;

/// An open channel that no link uses. A channel in confirm mode stays in it, and its
/// delivery tags go on counting.
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

    /// Creates the idle channel that a closed link's channel becomes.
    pub(super) fn after(channel: &'c Channel, confirm_state: Option<ConfirmState>) -> Self {
        let unconfirmed = confirm_state.map(|confirm_state| confirm_state.unconfirmed);
        Self {
            channel,
            confirms: unconfirmed.is_some(),
            published: unconfirmed.map_or(0, |unconfirmed| unconfirmed.published()),
        }
    }

    /// Puts the channel into confirm mode. A channel that has published in that mode is left
    /// as it is: the broker would answer a second request, but goes on counting.
    pub(super) fn confirm(&self) -> Result<ConfirmState, ChannelFailure> {
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

/// The publisher confirms of a link's channel.
pub(super) struct ConfirmState {
    pub(super) confirms: Receiver<Confirm>,
    pub(super) unconfirmed: Unconfirmed,
}

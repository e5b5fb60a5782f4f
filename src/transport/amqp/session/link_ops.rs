//! The operations on the links of a session: opening, consuming, closing, repairs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::Channel;

use super::idle_channel::IdleChannel;
use super::link_channel::{LinkChannel, SessionShared};
use super::state::lost;
use super::{Session, SessionEnd};
use crate::base::log_relay;
use crate::transport::amqp::command::LinkId;
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::amqp::link_outlet::{LinkOutlet, OpenChannel};
use crate::transport::amqp::routes::Registration;

/// The delay before the next attempt to open a link that the broker has refused to
/// open after a reconnect.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// The result of opening a channel; `Refused` holds the reason.
pub(super) enum Opened<T> {
    Yes(T),
    Refused(String),
}

impl<'c> Session<'c> {
    /// Takes an idle channel, or opens one.
    pub(super) fn open_channel(
        &mut self,
        confirms: bool,
    ) -> Result<IdleChannel<'c>, ChannelFailure> {
        let idle = self
            .idle_channels
            .iter()
            .position(|it| it.confirms == confirms);
        if let Some(at) = idle {
            return Ok(self.idle_channels.swap_remove(at));
        }
        // One channel too many would make the broker close the whole connection.
        if let Some(error) = self.io.link_table.no_more_channels(self.open_channels) {
            return Err(ChannelFailure::Refused(error));
        }
        self.is_opening_channel = true;
        let channel = self
            .connection
            .open_channel(None)
            .map_err(ChannelFailure::from);
        // After a loss it stays set, for `learn_limits`.
        self.is_opening_channel = matches!(channel, Err(ChannelFailure::Lost(_)));
        let channel = channel?;
        self.open_channels += 1;
        Ok(IdleChannel::new(self.channels.alloc(channel), confirms))
    }

    /// Removes the records of a channel that the broker has closed, once that has been handled.
    pub(super) fn forget_channel(&mut self, channel: u16) {
        self.io.observed.forget_channel_close(channel);
        self.open_channels = self.open_channels.saturating_sub(1);
    }

    /// Opens a link on a channel. If the broker refuses, the first opening fails with an error;
    /// after a reconnect the refusal is logged, kept for the handle, and the link tried
    /// again later.
    pub(super) fn open_link(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Ok(());
        };
        // Each declaration is a round trip, and so are five more steps: opening the
        // channel, confirm mode, the prefetch, declaring a queue and consuming it.
        let steps = registered.spec.topology.declarations() + 5;
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let limit = self.io.operation_timeout.saturating_mul(steps);
        let _armed = self.io.watchdog.arm(limit);
        let confirms = registered.spec.confirms;
        let channel = self.open_channel(confirms);
        let number = channel.as_ref().ok().map(|it| it.channel.channel_id());
        let Some(registered) = self.io.link_table.get_mut(link) else {
            return Ok(());
        };
        let shared = SessionShared {
            session: self.number,
            observed: Arc::clone(self.io.observed),
            writer: Arc::clone(self.io.writer),
            routes: Arc::clone(self.io.routes),
        };
        match channel.and_then(|channel| LinkChannel::open(channel, link, registered, shared)) {
            Ok(link_channel) => {
                *registered.refusal.lock() = None;
                registered.sink.opened();
                link_channel.route.start();
                self.link_channels.insert(link, link_channel);
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Ok(()));
                }
                Ok(())
            }
            Err(ChannelFailure::Refused(error)) => {
                let opening = registered.opening.take();
                *registered.refusal.lock() = opening.is_none().then(|| error.to_string());
                number.into_iter().for_each(|it| self.forget_channel(it));
                if let Some(opening) = opening {
                    let _ = opening.try_send(Err(error));
                    self.io.link_table.remove(link);
                } else {
                    log_relay::log(
                        log::Level::Error,
                        "coney::amqp",
                        format_args!(
                            "a link cannot be reopened, next attempt in {REFUSED_RETRY:?}: {error}"
                        ),
                    );
                    self.retry_refused_at = Some(Instant::now() + REFUSED_RETRY);
                }
                Ok(())
            }
            Err(ChannelFailure::Lost(cause)) => Err(SessionEnd::Lost(cause)),
        }
    }

    /// Opens an outlet for a channel of the session's own, on which only this thread publishes.
    pub(super) fn register_alone(&self, channel: &Channel) -> Registration {
        let outlet = Arc::new(LinkOutlet::default());
        let number = channel.channel_id();
        let registration = Registration::new(self.io.routes, number, Arc::clone(&outlet), None);
        outlet.open(OpenChannel {
            session: self.number,
            channel: number,
            frame_max: self.io.observed.frame_max() as usize,
            reply_queue: None,
            is_numbered: true,
            writer: Arc::clone(self.io.writer),
            observed: Arc::clone(self.io.observed),
            unsettled: Arc::default(),
        });
        registration
    }

    pub(super) fn retry_refused(&mut self) -> Result<(), SessionEnd> {
        self.retry_refused_at = None;
        for link in self.io.link_table.ids() {
            if !self.link_channels.contains_key(&link) {
                self.open_link(link)?;
            }
        }
        Ok(())
    }

    /// Starts or stops the consumer of an open link.
    pub(super) fn consume(&mut self, link: LinkId, on: bool) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            return Ok(());
        };
        if !on {
            return link_channel.stop_consuming().map_err(lost);
        }
        match self.io.link_table.get_mut(link) {
            Some(registered) => link_channel
                .resume_consuming(&registered.spec)
                .map_err(lost),
            None => Ok(()),
        }
    }

    /// Changes the prefetch of an open link.
    pub(super) fn set_prefetch(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        let registered = self.io.link_table.get_mut(link);
        let (Some(registered), Some(link_channel)) =
            (registered, self.link_channels.get_mut(&link))
        else {
            return Ok(());
        };
        link_channel.set_prefetch(&registered.spec).map_err(lost)
    }

    /// Closes a link after sending the messages accepted before.
    pub(super) fn close_link(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        self.io.link_table.remove(link);
        self.flush()?;
        let link_channel = self.link_channels.remove(&link);
        let channel = link_channel.as_ref().map(LinkChannel::channel_id);
        match link_channel.map(|link_channel| link_channel.close()) {
            Some(Ok(idle)) => self.idle_channels.push(idle),
            // The broker has closed the channel, which the link does not need any more.
            Some(Err(ChannelFailure::Refused(_))) => {
                channel.into_iter().for_each(|it| self.forget_channel(it));
            }
            None => {}
            Some(Err(failure)) => return Err(lost(failure)),
        }
        Ok(())
    }

    /// Replaces a failed channel of a link. If the broker has closed it, and the link only
    /// publishes, another channel is enough: the outcomes of its messages are settled, and nothing
    /// else is lost. Otherwise the connection has to be replaced.
    pub(super) fn link_channel_failed(
        &mut self,
        link: LinkId,
        failure: ChannelFailure,
    ) -> Result<(), SessionEnd> {
        let Some(link_channel) = self
            .link_channels
            .get_mut(&link)
            .filter(|link_channel| link_channel.only_publishes())
        else {
            return Err(lost(failure));
        };
        let channel = link_channel.channel_id();
        let Some(reason) = self.io.observed.channel_close(channel) else {
            return Err(lost(failure));
        };
        log_relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!("the broker closed a channel, which is replaced: {reason}"),
        );
        let fallbacks = link_channel.drain_after_loss();
        link_channel.refused(&reason.into());
        self.io.link_table.send_first(link, fallbacks);
        self.link_channels.remove(&link);
        self.forget_channel(channel);
        self.open_link(link)
    }
}

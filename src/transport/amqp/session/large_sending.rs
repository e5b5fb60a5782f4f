//! The sending of messages with large bodies, with their publisher confirms and returns.

use amiquip::Confirm;
use crossbeam_channel::{Select, TryRecvError};

use super::large::{InFlight, LargeChannel, UnsentFrames};
use super::link_ops::Opened;
use super::publish_refusal::PublishRefusal;
use super::state::{Session, SessionEnd, lost};
use crate::base::log_relay;
use crate::transport::amqp::convert::{self, CONNECTION_ENDED, ChannelFailure};
use crate::transport::amqp::link_outlet::ChannelClosed;
use crate::transport::{ConfirmOutcome, Disposition, Refused};

impl<'c> Session<'c> {
    /// Sends more of the message in flight, or the next one if none is.
    pub(super) fn send_large(&mut self) -> Result<(), SessionEnd> {
        self.send_pieces();
        while self.large.is_ready() && self.may_publish() {
            let Some(mut next) = self.large.waiting.pop_front() else {
                return Ok(());
            };
            if next.replies_to.is_some() && !self.link_channels.contains_key(&next.link) {
                continue; // the broker has requeued the request
            }
            if !next.publication.start_sending() {
                continue;
            }
            if self.large.channel.is_none() {
                match self.open_large()? {
                    Opened::Yes(channel) => self.large.channel = Some(channel),
                    Opened::Refused(reason) => {
                        let in_flight = InFlight::of(&mut next);
                        self.refused_large(in_flight, PublishRefusal::Other(reason))?;
                        continue;
                    }
                }
            }
            let Some(LargeChannel { registration, .. }) = &self.large.channel else {
                return Ok(());
            };
            self.large.in_flight = Some(InFlight::of(&mut next));
            let (publication, reply_queue) = (&next.publication, next.reply_queue.as_ref());
            // A closed channel shows by the end of its confirms, as if this message had closed it.
            let frames = registration.outlet.encode(publication, reply_queue);
            self.large.unsent = frames.ok().map(UnsentFrames::new);
            self.send_pieces();
        }
        Ok(())
    }

    /// Sends as much of the message in flight as there is room for.
    fn send_pieces(&mut self) {
        while self.large.unsent.is_some() && self.may_publish() {
            let (Some(unsent), Some(large)) = (&mut self.large.unsent, &self.large.channel) else {
                return;
            };
            let piece = unsent.next_piece();
            let size = piece.len();
            match large.registration.outlet.try_append(piece) {
                Ok(false) => return,
                Ok(true) if unsent.appended(size) => {}
                Ok(true) | Err(ChannelClosed) => self.large.unsent = None,
            }
        }
    }

    /// Sends the large messages that wait, one after the other. Waits for each publisher confirm
    /// at most the operation timeout.
    pub(super) fn finish_large(&mut self) -> Result<(), SessionEnd> {
        loop {
            self.send_large()?;
            if self.large.in_flight.is_none() {
                return Ok(());
            }
            let Some(confirms) = self.large.confirms().cloned() else {
                return Ok(());
            };
            let mut ready = Select::new();
            ready.recv(&confirms);
            if self.large.unsent.is_some() {
                ready.recv(self.io.writer.woken());
            }
            if ready.ready_timeout(self.io.operation_timeout).is_err() {
                return Ok(());
            }
            let _ = self.io.writer.woken().try_recv();
            self.large_confirms()?;
        }
    }

    /// Completes the flushes of the links whose large messages the broker has.
    pub(super) fn flush_links(&mut self) -> Result<(), SessionEnd> {
        let flushes = std::mem::take(&mut self.large.flushes);
        for (link, done) in flushes {
            if self.large.has_unconfirmed(link) {
                self.large.flushes.push((link, done));
                continue;
            }
            let _armed = self.arm();
            if let Some(link_channel) = self.link_channels.get_mut(&link) {
                link_channel.flush().map_err(lost)?;
            }
            let _ = done.try_send(());
        }
        Ok(())
    }

    fn open_large(&mut self) -> Result<Opened<LargeChannel<'c>>, SessionEnd> {
        let _armed = self.arm();
        let idle = self.open_channel(true);
        let number = idle.as_ref().ok().map(|it| it.channel.channel_id());
        let opened = idle.and_then(|idle| {
            let returns = idle.channel.listen_for_returns()?;
            let confirms = idle.confirm()?.confirms;
            let registration = self.register_alone(idle.channel);
            Ok(LargeChannel {
                channel: idle.channel,
                registration,
                confirms,
                returns,
            })
        });
        match opened {
            Ok(channel) => Ok(Opened::Yes(channel)),
            Err(ChannelFailure::Refused(error)) => {
                number.into_iter().for_each(|it| self.forget_channel(it));
                Ok(Opened::Refused(error.to_string()))
            }
            Err(ChannelFailure::Lost(cause)) => Err(SessionEnd::Lost(cause)),
        }
    }

    /// Handles the publisher confirm of the message in flight, if it has arrived.
    pub(super) fn large_confirms(&mut self) -> Result<(), SessionEnd> {
        // A return comes before its confirm; a closed channel shows below too.
        let _ = self.large_returned();
        let Some(large) = &self.large.channel else {
            return Ok(());
        };
        match large.confirms.try_recv() {
            Ok(confirm) => {
                let taken = matches!(confirm, Confirm::Ack(_));
                if let Some(in_flight) = self.large.in_flight.take() {
                    self.confirmed_large(in_flight, taken)?;
                }
                self.send_large()?;
                self.flush_links()
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => self.large_closed(),
        }
    }

    pub(super) fn large_returns(&mut self) -> Result<(), SessionEnd> {
        match self.large_returned() {
            Ok(()) => Ok(()),
            // A confirm that arrived before the channel was closed counts.
            Err(_) => self.large_confirms(),
        }
    }

    /// Records a return, if one has arrived; returns an error if the channel is closed.
    fn large_returned(&mut self) -> Result<(), TryRecvError> {
        let Some(large) = &self.large.channel else {
            return Ok(());
        };
        match large.returns.try_recv() {
            Ok(returned) => {
                if let Some(in_flight) = &mut self.large.in_flight {
                    in_flight.returned = Some(convert::returned(returned));
                }
                Ok(())
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(closed) => Err(closed),
        }
    }

    fn confirmed_large(&mut self, in_flight: InFlight, taken: bool) -> Result<(), SessionEnd> {
        let InFlight {
            link,
            confirm,
            replies_to,
            returned,
            ..
        } = in_flight;
        if let Some(tag) = replies_to {
            return self.settle(link, tag, Disposition::Ack { reply: None });
        }
        match (confirm, returned) {
            (Some(confirm), returned) => confirm.settle(match returned {
                Some(returned) => ConfirmOutcome::Returned(returned.reason),
                None if taken => ConfirmOutcome::Confirmed,
                None => ConfirmOutcome::Refused("a queue is full, or has failed".to_owned()),
            }),
            (None, Some(returned)) => self.io.link_table.returned(link, returned),
            (None, None) => {}
        }
        Ok(())
    }

    /// Handles the end of the channel: either the broker has closed it because of the message
    /// in flight, or the whole connection has ended.
    fn large_closed(&mut self) -> Result<(), SessionEnd> {
        self.large.unsent = None;
        let closed = self.large.channel.take().map(|it| it.channel.channel_id());
        let reason = closed.and_then(|channel| {
            let reason = self.io.observed.channel_close(channel)?;
            self.forget_channel(channel);
            Some(reason)
        });
        let Some(reason) = reason else {
            return Err(SessionEnd::Lost(CONNECTION_ENDED.to_owned()));
        };
        if let Some(in_flight) = self.large.in_flight.take() {
            self.refused_large(in_flight, PublishRefusal::parse(&reason))?;
        }
        self.send_large()?;
        self.flush_links()
    }

    fn refused_large(
        &mut self,
        in_flight: InFlight,
        refusal: PublishRefusal,
    ) -> Result<(), SessionEnd> {
        let InFlight {
            link,
            confirm,
            replies_to,
            correlation_id,
            if_too_large,
            bytes,
            ..
        } = in_flight;
        let limit = match &refusal {
            PublishRefusal::TooLarge(limit) => {
                self.io.limits.learn_max_body(bytes, *limit);
                *limit
            }
            PublishRefusal::Other(_) => None,
        };
        log_relay::log(
            log::Level::Warn,
            "coney::amqp",
            format_args!(
                "the broker refused a message of {bytes} bytes{}",
                match &refusal {
                    PublishRefusal::TooLarge(_) => ": it is too large".to_owned(),
                    PublishRefusal::Other(reason) => format!(": {reason}"),
                }
            ),
        );
        if let Some(tag) = replies_to {
            let reply = if_too_large;
            return self.settle(link, tag, Disposition::Ack { reply });
        }
        match confirm {
            Some(confirm) => confirm.settle(match refusal {
                PublishRefusal::TooLarge(limit) => ConfirmOutcome::TooLarge(limit),
                PublishRefusal::Other(reason) => ConfirmOutcome::Refused(reason),
            }),
            None if if_too_large.is_some() => {
                let fallback = if_too_large.map(|it| *it);
                self.io.link_table.send_first(link, fallback);
            }
            None => {
                let reason = match refusal {
                    PublishRefusal::TooLarge(_) => None,
                    PublishRefusal::Other(reason) => Some(reason),
                };
                let refused = Refused {
                    correlation_id: correlation_id.as_deref(),
                    bytes,
                    limit,
                    reason: reason.as_deref(),
                };
                self.io.link_table.refused(link, refused);
            }
        }
        Ok(())
    }
}

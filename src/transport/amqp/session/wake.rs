//! The events that wake the event loop of a session.

use std::time::Instant;

use crossbeam_channel::Select;

use super::{SWEEP_INTERVAL, Session};
use crate::transport::amqp::command::LinkId;

/// An event that wakes the event loop.
pub(super) enum Wake {
    Command,
    Outgoing,
    Notice,
    Deliveries(LinkId),
    Returns(LinkId),
    Confirms(LinkId),
    LargeConfirms,
    LargeReturns,
    /// amiquip has written frames, so there may be room for more.
    Room,
    RetryRefused,
    /// The interval for dropping expired messages has passed while nothing can be sent.
    Sweep,
}

impl Session<'_> {
    /// Blocks until there is an event to handle.
    pub(super) fn wait(&self) -> Wake {
        let retry_at = self.retry_refused_at.filter(|_| !self.blocked);
        // Checked first, so that a busy loop does not delay the retry.
        if retry_at.is_some_and(|at| at <= Instant::now()) {
            return Wake::RetryRefused;
        }
        let mut select = Select::new();
        let mut wakes = Vec::with_capacity(4 + 3 * self.link_channels.len());
        select.recv(&self.io.receiver.commands);
        wakes.push(Wake::Command);
        select.recv(&self.notices);
        wakes.push(Wake::Notice);
        let may_publish = self.may_publish();
        if may_publish && (!self.deferred.is_empty() || self.large.is_ready()) {
            return Wake::Room;
        }
        if may_publish {
            select.recv(&self.io.receiver.outgoing);
            wakes.push(Wake::Outgoing);
        } else {
            select.recv(self.io.transit.woken());
            wakes.push(Wake::Room);
        }
        if let Some(confirms) = self.large.confirms() {
            select.recv(confirms);
            wakes.push(Wake::LargeConfirms);
        }
        if let Some(returns) = self.large.returns() {
            select.recv(returns);
            wakes.push(Wake::LargeReturns);
        }
        for (&link, link_channel) in &self.link_channels {
            if let Some(deliveries) = link_channel.deliveries() {
                select.recv(deliveries);
                wakes.push(Wake::Deliveries(link));
            }
            if let Some(returns) = link_channel.returns() {
                select.recv(returns);
                wakes.push(Wake::Returns(link));
            }
            if let Some(confirms) = link_channel.confirms() {
                select.recv(confirms);
                wakes.push(Wake::Confirms(link));
            }
        }
        // Messages to be resent go first, but after each budget of them the other events
        // have a turn.
        if may_publish && !self.io.link_table.resend.is_empty() {
            let turn = self.yield_turn.replace(!self.yield_turn.get());
            let other = turn.then(|| select.try_ready().ok()).flatten();
            return other.map_or(Wake::Outgoing, |index| wakes.swap_remove(index));
        }
        let sweep_at = self.blocked.then(|| Instant::now() + SWEEP_INTERVAL);
        let until = [retry_at, sweep_at].into_iter().flatten().min();
        let ready = match until {
            None => Some(select.ready()),
            Some(at) => select.ready_deadline(at).ok(),
        };
        match ready {
            Some(index) => wakes.swap_remove(index),
            None if self.blocked => Wake::Sweep,
            None => Wake::RetryRefused,
        }
    }
}

//! The events that wake the event loop of a session.

use std::time::Instant;

use crossbeam_channel::Select;

use super::Session;
use crate::transport::amqp::command::LinkId;

/// An event that wakes the event loop.
pub(super) enum LoopEvent {
    Command,
    Outgoing,
    Notice,
    Deliveries(LinkId),
    /// The broker has ended a link's consumer, or its channel.
    ConsumerEnded(LinkId),
    Returns(LinkId),
    Confirms(LinkId),
    LargeConfirms,
    LargeReturns,
    /// Frames have been written, so there may be room for more.
    Room,
    RetryRefused,
    /// The session has not been used for its idle timeout.
    Idle,
    /// Messages have to wait, and it is time to drop the expired ones.
    Sweep,
}

impl Session<'_> {
    /// Blocks until there is an event to handle.
    pub(super) fn wait(&self) -> LoopEvent {
        let retry_at = self.retry_refused_at.filter(|_| !self.blocked);
        let may_publish = self.may_publish();
        let may_expire = !may_publish || !self.large.waiting.is_empty();
        let sweep_at = may_expire.then_some(self.next_sweep);
        // Checked first, so that a busy loop delays neither.
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        if is_due(retry_at) {
            return LoopEvent::RetryRefused;
        }
        if is_due(sweep_at) {
            return LoopEvent::Sweep;
        }
        let idle_at = self.idle_at();
        if is_due(idle_at) && self.io.receiver.commands.is_empty() {
            return LoopEvent::Idle;
        }
        let mut select = Select::new();
        let mut wakes = Vec::with_capacity(4 + 3 * self.link_channels.len());
        select.recv(&self.io.receiver.commands);
        wakes.push(LoopEvent::Command);
        select.recv(&self.notices);
        wakes.push(LoopEvent::Notice);
        let has_large = self.large.is_ready() || self.large.unsent.is_some();
        if may_publish && (!self.deferred.is_empty() || has_large) {
            return LoopEvent::Room;
        }
        if may_publish {
            select.recv(&self.io.receiver.outgoing);
            wakes.push(LoopEvent::Outgoing);
        } else {
            select.recv(self.io.writer.woken());
            wakes.push(LoopEvent::Room);
        }
        if let Some(confirms) = self.large.confirms() {
            select.recv(confirms);
            wakes.push(LoopEvent::LargeConfirms);
        }
        if let Some(returns) = self.large.returns() {
            select.recv(returns);
            wakes.push(LoopEvent::LargeReturns);
        }
        for (&link, link_channel) in &self.link_channels {
            if let Some(ends) = link_channel.consumer_ends() {
                select.recv(ends);
                wakes.push(LoopEvent::ConsumerEnded(link));
            }
            if let Some(deliveries) = link_channel.route.by_io_thread() {
                select.recv(deliveries);
                wakes.push(LoopEvent::Deliveries(link));
            }
            if let Some(returns) = link_channel.returns() {
                select.recv(returns);
                wakes.push(LoopEvent::Returns(link));
            }
            if let Some(confirms) = link_channel.confirms() {
                select.recv(confirms);
                wakes.push(LoopEvent::Confirms(link));
            }
        }
        // These messages go first, but after each budget of them the other events
        // have a turn.
        if may_publish && self.io.link_table.waiting() > 0 {
            let turn = self.yield_turn.replace(!self.yield_turn.get());
            let other = turn.then(|| select.try_ready().ok()).flatten();
            return other.map_or(LoopEvent::Outgoing, |index| wakes.swap_remove(index));
        }
        let until = [retry_at, sweep_at, idle_at].into_iter().flatten().min();
        let ready = match until {
            None => Some(select.ready()),
            Some(at) => select.ready_deadline(at).ok(),
        };
        match ready {
            Some(index) => wakes.swap_remove(index),
            None if is_due(retry_at) => LoopEvent::RetryRefused,
            None => LoopEvent::Sweep, // and the next wait finds whether the session is idle
        }
    }
}

//! The event loop of a session: the work of the I/O thread while it is connected.

use std::convert::Infallible;
use std::time::Instant;

use amiquip::ConnectionBlockedNotification;
use crossbeam_channel::TryRecvError;

use super::SWEEP_INTERVAL;
use super::loop_event::LoopEvent;
use super::state::{Session, SessionEnd, lost};
use crate::base::log_relay;
use crate::transport::ConnectionState;
use crate::transport::amqp::command::{Command, LinkId};
use crate::transport::amqp::convert::CONNECTION_ENDED;
use crate::transport::amqp::watchdog::Watchdog;

/// The number of events taken from one source before the others are checked again.
const BUDGET: usize = 64;

/// A guard that shuts the socket down while a panic unwinds.
struct CutOnPanic<'c>(&'c Watchdog);

impl Drop for CutOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.kill();
        }
    }
}

impl Session<'_> {
    /// Opens every registered link and serves all links until the session ends.
    pub(in crate::transport::amqp) fn run(mut self) -> SessionEnd {
        // A panic unwinds through amiquip's channels, which would wait for the broker.
        let _cut = CutOnPanic(self.io.watchdog);
        let Err(end) = self.serve();
        let end = match end {
            SessionEnd::Lost(cause) => {
                self.learn_limits();
                let closed = self.io.observed.any_channel_close();
                let cause = match closed {
                    _ if self.io.watchdog.fired() => self.operation_timed_out(),
                    Some((_, reason)) => format!("the broker closed a channel: {reason}"),
                    None => cause,
                };
                self.drain_after_loss(&cause);
                SessionEnd::Lost(cause)
            }
            SessionEnd::Closed => SessionEnd::Closed,
        };
        let _armed = self.arm();
        match &end {
            SessionEnd::Lost(_) => {
                self.io.watchdog.kill();
                for command in std::mem::take(&mut self.deferred) {
                    self.io.link_table.apply(command);
                }
            }
            // A broker that blocks publishing would not answer.
            SessionEnd::Closed if self.blocked => self.io.watchdog.kill(),
            SessionEnd::Closed => {
                for link_channel in std::mem::take(&mut self.link_channels).into_values() {
                    let _ = link_channel.end();
                }
            }
        }
        end
    }

    fn serve(&mut self) -> Result<Infallible, SessionEnd> {
        for link in self.io.link_table.ids() {
            self.open_link(link)?;
        }
        // Messages to be resent go first, as far as they can be sent at once; the loop sends
        // the rest.
        self.outgoing(self.io.link_table.waiting())?;
        for link in self.io.link_table.ids() {
            self.send_coalesced(link)?;
        }
        loop {
            if self.io.link_table.waiting() == 0 {
                self.io.writer.open_to_all();
            }
            match self.wait() {
                LoopEvent::Command => self.commands()?,
                LoopEvent::Outgoing => self.outgoing(BUDGET)?,
                LoopEvent::Notice => self.notices()?,
                LoopEvent::Deliveries(link) => {
                    if let Some(link_channel) = self.link_channels.get(&link) {
                        link_channel.route.pass_on_queued(BUDGET);
                    }
                }
                LoopEvent::ConsumerEnded(link) => {
                    if let Some(link_channel) = self.link_channels.get(&link) {
                        link_channel.consumer_ended().map_err(lost)?;
                    }
                }
                LoopEvent::Returns(link) => self.returns(link)?,
                LoopEvent::Confirms(link) => {
                    if let Some(link_channel) = self.link_channels.get_mut(&link) {
                        let result = link_channel.pass_on_confirms(BUDGET);
                        result.or_else(|failure| self.link_channel_failed(link, failure))?;
                    }
                }
                LoopEvent::LargeConfirms => self.large_confirms()?,
                LoopEvent::LargeReturns => self.large_returns()?,
                LoopEvent::Room => {
                    let _ = self.io.writer.woken().try_recv();
                    self.run_deferred()?;
                    // In turns, as a large message takes all the room that there is.
                    if self.yield_turn.replace(!self.yield_turn.get()) {
                        self.outgoing(BUDGET)?;
                    }
                    self.send_large()?;
                }
                LoopEvent::RetryRefused => self.retry_refused()?,
                LoopEvent::Idle => return Err(SessionEnd::Closed),
                LoopEvent::Sweep => {
                    self.next_sweep = Instant::now() + SWEEP_INTERVAL;
                    self.large.drop_expired();
                    if !self.may_publish() {
                        let new = self.io.receiver.outgoing.try_iter();
                        self.io.link_table.keep_unsent(new);
                    }
                }
            }
        }
    }

    fn returns(&mut self, link: LinkId) -> Result<(), SessionEnd> {
        let Some(link_channel) = self.link_channels.get_mut(&link) else {
            return Ok(());
        };
        let mut fallbacks = Vec::new();
        let result = link_channel.pass_on_returns(&mut fallbacks);
        self.io.link_table.send_first(link, fallbacks);
        result.or_else(|failure| self.link_channel_failed(link, failure))
    }

    fn commands(&mut self) -> Result<(), SessionEnd> {
        for _ in 0..BUDGET {
            let may_act = self.deferred.is_empty() && self.may_publish();
            match self.io.receiver.commands.try_recv() {
                Ok(Command::Close) => self.command(Command::Close)?,
                Ok(command) if may_act => self.command(command)?,
                // Behind the commands that wait already, to keep their order.
                Ok(command) => self.deferred.push_back(command),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(SessionEnd::Closed),
            }
        }
        Ok(())
    }

    pub(super) fn command(&mut self, command: Command) -> Result<(), SessionEnd> {
        let _armed = self.arm();
        self.last_use.set(Instant::now());
        match command {
            Command::Open { link, registered } => {
                self.io.link_table.add(link, *registered);
                self.open_link(link)
            }
            Command::Settle {
                link,
                session,
                tag,
                outcome,
            } => {
                if session != self.number {
                    return Ok(()); // the broker has requeued that delivery
                }
                self.settle(link, tag, outcome)
            }
            Command::SendFirst { link, publications } => {
                self.io.link_table.send_first(link, publications);
                Ok(())
            }
            Command::PassOnWaiting { link } => {
                if let Some(link_channel) = self.link_channels.get(&link) {
                    link_channel.route.pass_on_waiting();
                }
                Ok(())
            }
            Command::SendCoalesced { link } => self.send_coalesced(link),
            Command::Get { link, queue, done } => self.get(link, queue.as_deref(), &done),
            Command::Depth {
                queue,
                deadline,
                done,
            } => self.depth(&queue, deadline, &done),
            Command::SetPrefetch { link, count, done } => {
                self.io.link_table.set_prefetch(link, count);
                self.set_prefetch(link)?;
                let _ = done.try_send(());
                Ok(())
            }
            Command::Flush { link, done } => {
                self.large.flushes.push((link, done));
                self.flush_links()
            }
            Command::Consume { link, on, done } => {
                self.io.link_table.pause(link, !on);
                self.consume(link, on)?;
                let _ = done.try_send(());
                Ok(())
            }
            Command::DeleteOwnQueue { link, done } => {
                if let Some(link_channel) = self.link_channels.get_mut(&link) {
                    link_channel.delete_own_queue().map_err(lost)?;
                }
                let _ = done.try_send(());
                Ok(())
            }
            Command::CloseLink { link } => self.close_link(link),
            Command::Close => {
                let _ = self.finish(); // the session ends, even if this loses the connection
                Err(SessionEnd::Closed)
            }
        }
    }

    fn notices(&mut self) -> Result<(), SessionEnd> {
        match self.notices.try_recv() {
            Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                log_relay::log(
                    log::Level::Warn,
                    "coney::amqp",
                    format_args!("the broker blocks publishing: {reason}"),
                );
                self.blocked = true;
                self.io.watchdog.suspend_user_timeout(true);
                self.io
                    .state_notifier
                    .notify(ConnectionState::Blocked(reason));
            }
            Ok(ConnectionBlockedNotification::Unblocked) => {
                log_relay::log(
                    log::Level::Info,
                    "coney::amqp",
                    format_args!("the broker accepts messages again"),
                );
                self.blocked = false;
                self.io.watchdog.suspend_user_timeout(false);
                self.io.state_notifier.notify(ConnectionState::Unblocked);
                self.run_deferred()?;
                self.send_large()?;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(SessionEnd::Lost(CONNECTION_ENDED.to_owned()));
            }
        }
        Ok(())
    }
}

//! The state of a session, and its start.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::Receiver;
use typed_arena::Arena;

use super::idle_channel::IdleChannel;
use super::large::LargeMessages;
use super::link_channel::LinkChannel;
use crate::transport::Limits;
use crate::transport::amqp::command::{Command, CommandReceiver, LinkId};
use crate::transport::amqp::convert::ChannelFailure;
use crate::transport::amqp::frame_writer::FrameWriter;
use crate::transport::amqp::link_table::LinkTable;
use crate::transport::amqp::observed::Observed;
use crate::transport::amqp::routes::Routes;
use crate::transport::amqp::state_listener::StateNotifier;
use crate::transport::amqp::watchdog::{Armed, Watchdog};

/// One live connection: the event loop that owns its channels.
pub(in crate::transport::amqp) struct Session<'c> {
    pub(super) number: u64,
    pub(super) channels: &'c Arena<Channel>,
    pub(super) connection: &'c mut Connection,
    pub(super) notices: Receiver<ConnectionBlockedNotification>,
    pub(super) link_channels: BTreeMap<LinkId, LinkChannel<'c>>,
    /// Channels of links that were closed, open and ready for reuse.
    pub(super) idle_channels: Vec<IdleChannel<'c>>,
    /// True while the broker blocks publishing.
    pub(super) blocked: bool,
    /// Commands that wait for the broker to unblock, in their order: the broker reads
    /// nothing meanwhile, so an operation would hang. Beside settlements there are
    /// one or two for each attempt to open or close a link during the alarm.
    pub(super) deferred: VecDeque<Command>,
    /// The time at which the links that the broker refused to open are tried again.
    pub(super) retry_refused_at: Option<Instant>,
    /// The time of the last command, or at which the session was last found in use.
    pub(super) last_use: Cell<Instant>,
    /// True if it was in use when that was last looked at.
    pub(super) was_in_use: Cell<bool>,
    /// The time from which expired messages are dropped again, if any have to wait.
    pub(super) next_sweep: Instant,
    /// Messages with large bodies.
    pub(super) large: LargeMessages<'c>,
    pub(super) open_channels: usize,
    pub(super) is_opening_channel: bool,
    /// True if other events have their turn before the next messages to be resent.
    pub(super) yield_turn: Cell<bool>,
    pub(super) io: SessionContext<'c>,
}

/// The I/O thread's state that a session uses.
pub(in crate::transport::amqp) struct SessionContext<'c> {
    pub(in crate::transport::amqp) receiver: &'c CommandReceiver,
    pub(in crate::transport::amqp) link_table: &'c mut LinkTable,
    pub(in crate::transport::amqp) watchdog: &'c Watchdog,
    pub(in crate::transport::amqp) state_notifier: &'c StateNotifier,
    pub(in crate::transport::amqp) observed: &'c Arc<Observed>,
    pub(in crate::transport::amqp) writer: &'c Arc<FrameWriter>,
    pub(in crate::transport::amqp) routes: &'c Arc<Routes>,
    pub(in crate::transport::amqp) limits: &'c Limits,
    pub(in crate::transport::amqp) operation_timeout: Duration,
    /// The time after which the session ends if it is not used.
    pub(in crate::transport::amqp) idle_timeout: Option<Duration>,
}

/// The interval at which expired messages are dropped while messages have to wait.
pub(in crate::transport::amqp) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// The reason why a session ended.
pub(in crate::transport::amqp) enum SessionEnd {
    Closed,
    Lost(String),
}

impl<'c> Session<'c> {
    pub(in crate::transport::amqp) fn start(
        number: u64,
        connection: &'c mut Connection,
        channels: &'c Arena<Channel>,
        io: SessionContext<'c>,
    ) -> Result<Self, SessionEnd> {
        // Also detects the end of amiquip's thread, which disconnects this receiver.
        let notices = connection
            .listen_for_connection_blocked()
            .map_err(|error| SessionEnd::Lost(error.to_string()))?;
        Ok(Self {
            number,
            channels,
            connection,
            notices,
            link_channels: BTreeMap::new(),
            idle_channels: Vec::new(),
            blocked: false,
            deferred: VecDeque::new(),
            retry_refused_at: None,
            last_use: Cell::new(Instant::now()),
            was_in_use: Cell::new(false),
            next_sweep: Instant::now() + SWEEP_INTERVAL,
            large: LargeMessages::default(),
            open_channels: 0,
            is_opening_channel: false,
            yield_turn: Cell::new(false),
            io,
        })
    }

    /// Returns the time at which the session ends, unless it is used before. Deliveries are settled
    /// without a command, so a session in use is looked at again after the idle timeout.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let timeout = self.io.idle_timeout?;
        let is_in_use = self.link_channels.values().any(LinkChannel::is_in_use);
        if self.was_in_use.replace(is_in_use) || is_in_use {
            self.last_use.set(Instant::now());
        }
        Some(self.last_use.get() + timeout)
    }

    /// Guards one operation on the connection: if it takes longer than the
    /// operation timeout, the socket is shut down.
    pub(super) fn arm(&self) -> Armed<'c> {
        self.io.watchdog.arm(self.io.operation_timeout)
    }
}

/// Converts a channel's failure into the end of the session. A channel that the broker closes
/// in mid-session is replaced like a lost connection, by a reconnect. Other links pay for it
/// with an interruption; in return there is one way to recover, not two.
pub(super) fn lost(failure: ChannelFailure) -> SessionEnd {
    match failure {
        ChannelFailure::Refused(error) => SessionEnd::Lost(error.to_string()),
        ChannelFailure::Lost(cause) => SessionEnd::Lost(cause),
    }
}

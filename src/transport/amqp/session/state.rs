//! What a session holds, and how it begins.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::Receiver;
use typed_arena::Arena;

use super::idle_channel::IdleChannel;
use super::large::Large;
use super::link_channel::LinkChannel;
use crate::transport::Limits;
use crate::transport::amqp::command::{Command, CommandReceiver, LinkId};
use crate::transport::amqp::convert::Failure;
use crate::transport::amqp::link_table::LinkTable;
use crate::transport::amqp::state_listener::StateNotifier;
use crate::transport::amqp::stream::Observed;
use crate::transport::amqp::transit::Transit;
use crate::transport::amqp::watchdog::{Armed, Watchdog};

/// The cause of a loss where only amiquip's thread knows the real one.
pub(in crate::transport::amqp) const CONNECTION_ENDED: &str = "the connection has ended";

/// One live connection: the event loop that owns its channels.
pub(in crate::transport::amqp) struct Session<'c> {
    pub(super) number: u64,
    pub(super) channels: &'c Arena<Channel>,
    pub(super) connection: &'c mut Connection,
    pub(super) notices: Receiver<ConnectionBlockedNotification>,
    pub(super) link_channels: BTreeMap<LinkId, LinkChannel<'c>>,
    /// Channels of links that were closed, open and ready for reuse.
    pub(super) idle_channels: Vec<IdleChannel<'c>>,
    /// The broker asked us to publish nothing for now.
    pub(super) blocked: bool,
    /// Commands that wait for the broker to unblock, in their order: it reads
    /// nothing meanwhile, so an operation would hang. Beside settlements it holds
    /// one or two for each attempt to open or close a link during the alarm.
    pub(super) deferred: VecDeque<Command>,
    pub(super) retry_refused_at: Option<Instant>,
    /// Messages with large bodies.
    pub(super) large: Large<'c>,
    /// The number of open channels, and whether one more is being opened.
    pub(super) open_channels: usize,
    pub(super) is_opening_channel: bool,
    pub(super) yield_turn: Cell<bool>,
    pub(super) io: SessionContext<'c>,
}

/// What the I/O thread lends a session.
pub(in crate::transport::amqp) struct SessionContext<'c> {
    pub(in crate::transport::amqp) receiver: &'c CommandReceiver,
    pub(in crate::transport::amqp) link_table: &'c mut LinkTable,
    pub(in crate::transport::amqp) watchdog: &'c Watchdog,
    pub(in crate::transport::amqp) state_notifier: &'c StateNotifier,
    pub(in crate::transport::amqp) observed: &'c Arc<Observed>,
    pub(in crate::transport::amqp) transit: Arc<Transit>,
    pub(in crate::transport::amqp) limits: &'c Limits,
    pub(in crate::transport::amqp) operation_timeout: Duration,
}

/// The interval at which what is over leaves while nothing can be sent.
pub(in crate::transport::amqp) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Why a session ended.
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
        // Also a death watch: it disconnects when amiquip's thread ends.
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
            large: Large::default(),
            open_channels: 0,
            is_opening_channel: false,
            yield_turn: Cell::new(false),
            io,
        })
    }

    /// Guards one operation on the connection: it takes no longer than the
    /// operation timeout, or the connection is cut.
    pub(super) fn arm(&self) -> Armed<'c> {
        self.io.watchdog.arm(self.io.operation_timeout)
    }
}

/// A channel that the broker closes in mid-session is repaired like a lost
/// connection: by a new one. Other links pay for it with a reconnect; in
/// return there is one way to recover, not two.
pub(super) fn lost(failure: Failure) -> SessionEnd {
    match failure {
        Failure::Refused(error) => SessionEnd::Lost(error.to_string()),
        Failure::Lost(cause) => SessionEnd::Lost(cause),
    }
}

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, TryRecvError};
use typed_arena::Arena;

use super::command::{Command, Inbox, LinkId, Outgoing};
use super::convert::Failure;
use super::evidence::Evidence;
use super::lane::Lane;
use super::large::Large;
use super::registry::Registry;
use super::spare::Spare;
use super::states::{ConnectionState, States};
use super::transit::Transit;
use super::wake::Wake;
use super::watchdog::{Armed, Watchdog};
use crate::relay;
use crate::transport::Limits;

/// How much is taken from one source before the others are looked at again.
const BUDGET: usize = 64;

/// The cause of a loss where only amiquip's thread knows the real one.
pub(super) const CONNECTION_ENDED: &str = "the connection has ended";

/// One live connection: the event loop that owns its channels.
pub(super) struct Session<'c> {
    pub(super) number: u64,
    pub(super) channels: &'c Arena<Channel>,
    pub(super) connection: &'c mut Connection,
    pub(super) notices: Receiver<ConnectionBlockedNotification>,
    pub(super) lanes: BTreeMap<LinkId, Lane<'c>>,
    /// Channels of links that were closed, open and ready for reuse.
    pub(super) spare: Vec<Spare<'c>>,
    /// The broker asked us to publish nothing for now.
    pub(super) blocked: bool,
    /// Commands that wait for the broker to unblock, in their order: it reads
    /// nothing meanwhile, so an operation would hang. Beside settlements it holds
    /// one or two for each attempt to open or close a link during the alarm.
    pub(super) held: VecDeque<Command>,
    pub(super) retry_refused_at: Option<Instant>,
    /// Messages with large bodies.
    pub(super) large: Large<'c>,
    /// The number of open channels, and whether one more is being opened.
    pub(super) open_channels: usize,
    pub(super) is_opening_channel: bool,
    pub(super) others_turn: Cell<bool>,
    pub(super) io: Io<'c>,
}

/// What the I/O thread lends a session.
pub(super) struct Io<'c> {
    pub(super) inbox: &'c Inbox,
    pub(super) registry: &'c mut Registry,
    pub(super) watchdog: &'c Watchdog,
    pub(super) states: &'c States,
    pub(super) evidence: &'c Arc<Evidence>,
    pub(super) transit: Arc<Transit>,
    pub(super) limits: &'c Limits,
    pub(super) operation_timeout: Duration,
}

/// The interval at which what is over leaves while nothing can be sent.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// AMQP's code for what a user may not do.
const NOT_ALLOWED: u16 = 530;

/// Cuts the connection while a panic unwinds.
struct CutOnPanic<'c>(&'c Watchdog);

impl Drop for CutOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.kill();
        }
    }
}

/// Why a session ended.
pub(super) enum End {
    Closed,
    Lost(String),
}

impl<'c> Session<'c> {
    pub(super) fn start(
        number: u64,
        connection: &'c mut Connection,
        channels: &'c Arena<Channel>,
        io: Io<'c>,
    ) -> Result<Self, End> {
        // Also a death watch: it disconnects when amiquip's thread ends.
        let notices = connection
            .listen_for_connection_blocked()
            .map_err(|error| End::Lost(error.to_string()))?;
        Ok(Self {
            number,
            channels,
            connection,
            notices,
            lanes: BTreeMap::new(),
            spare: Vec::new(),
            blocked: false,
            held: VecDeque::new(),
            retry_refused_at: None,
            large: Large::default(),
            open_channels: 0,
            is_opening_channel: false,
            others_turn: Cell::new(false),
            io,
        })
    }

    /// Opens every registered link and serves them until the end.
    pub(super) fn run(mut self) -> End {
        // A panic unwinds through amiquip's channels, which would wait for the broker.
        let _cut = CutOnPanic(self.io.watchdog);
        let Err(end) = self.serve();
        let end = match end {
            End::Lost(cause) => {
                self.learn_limits();
                let closed = self.io.evidence.any_channel_close();
                let cause = match closed {
                    _ if self.io.watchdog.fired() => self.took_too_long(),
                    Some((_, reason)) => format!("the broker closed a channel: {reason}"),
                    None => cause,
                };
                self.last_words(&cause);
                End::Lost(cause)
            }
            End::Closed => End::Closed,
        };
        let _armed = self.arm();
        match &end {
            End::Lost(_) => {
                self.io.watchdog.kill();
                for command in std::mem::take(&mut self.held) {
                    self.io.registry.apply(command);
                }
            }
            // The broker would not answer.
            End::Closed if self.blocked => self.io.watchdog.kill(),
            End::Closed => {
                for lane in std::mem::take(&mut self.lanes).into_values() {
                    let _ = lane.end(self.number);
                }
            }
        }
        end
    }

    /// Passes on what arrived before the loss, and tells what did not, or has it
    /// sent again in the next session.
    fn last_words(&mut self, cause: &str) {
        let reason = Arc::from(cause);
        let guilty = self.guilty();
        for (&link, lane) in &mut self.lanes {
            lane.pass_on_last_words(self.number);
            self.io.registry.send_instead(link, lane);
            for (publication, receipt) in lane.lost(&reason, guilty != Some(link)) {
                let again = Outgoing::new(link, publication, Some(receipt));
                self.io.registry.again.push_back(again);
            }
        }
        let _ = self.large_confirms(); // what made it before the loss
        self.io.registry.again.extend(self.large.lost(&reason));
        self.io.registry.guilty = guilty;
    }

    /// The broker closes the whole connection over a channel too many. That must not happen
    /// again and again: the link that wanted it fails, with the broker's reason.
    fn learn_limits(&mut self) {
        if self.is_opening_channel
            && let Some((NOT_ALLOWED, reason)) = self.io.evidence.server_close()
            && reason.contains("channel")
        {
            let open = self.open_channels;
            self.io.registry.learn_channel_limit(open, &reason);
        }
    }

    /// The link whose channel the broker closed.
    fn guilty(&self) -> Option<LinkId> {
        let (channel, _) = self.io.evidence.any_channel_close()?;
        let mut lanes = self.lanes.iter();
        lanes.find_map(|(&link, lane)| (lane.channel_id() == channel).then_some(link))
    }

    fn took_too_long(&self) -> String {
        let limit = self.io.operation_timeout;
        format!("an operation took longer than {limit:?}")
    }

    fn serve(&mut self) -> Result<Infallible, End> {
        for link in self.io.registry.ids() {
            self.open_link(link)?;
        }
        // What is to be sent again goes first.
        // (As far as it can be sent at once; the loop has the rest.)
        self.outgoing(self.io.registry.again.len())?;
        for link in self.io.registry.ids() {
            self.send_waiting(link)?;
        }
        loop {
            match self.wait() {
                Wake::Command => self.commands()?,
                Wake::Outgoing => self.outgoing(BUDGET)?,
                Wake::Notice => self.notices()?,
                Wake::Deliveries(link) => {
                    let _armed = self.arm();
                    if let Some(lane) = self.lanes.get_mut(&link) {
                        let result = lane.pass_on_deliveries(self.number, BUDGET);
                        self.io.registry.send_instead(link, lane);
                        result.map_err(lost)?;
                    }
                }
                Wake::Returns(link) => {
                    if let Some(lane) = self.lanes.get_mut(&link) {
                        let result = lane.pass_on_returns();
                        self.io.registry.send_instead(link, lane);
                        result.or_else(|failure| self.lane_failed(link, failure))?;
                    }
                }
                Wake::Confirms(link) => {
                    if let Some(lane) = self.lanes.get_mut(&link) {
                        let result = lane.pass_on_confirms(BUDGET);
                        result.or_else(|failure| self.lane_failed(link, failure))?;
                    }
                }
                Wake::LargeConfirms => self.large_confirms()?,
                Wake::LargeReturns => self.large_returns()?,
                Wake::Room => {
                    let _ = self.io.transit.woken().try_recv();
                    self.deferred()?;
                    self.send_large()?;
                }
                Wake::RetryRefused => self.retry_refused()?,
                Wake::Sweep => {
                    let new = self.io.inbox.outgoing.try_iter();
                    self.io.registry.keep_waiting(new);
                }
            }
        }
    }

    fn commands(&mut self) -> Result<(), End> {
        for _ in 0..BUDGET {
            let may_act = self.held.is_empty() && self.may_publish();
            match self.io.inbox.commands.try_recv() {
                Ok(Command::Close) => self.command(Command::Close)?,
                Ok(command) if may_act => self.command(command)?,
                // In their order: behind those that wait already.
                Ok(command) => self.held.push_back(command),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(End::Closed),
            }
        }
        Ok(())
    }

    pub(super) fn command(&mut self, command: Command) -> Result<(), End> {
        let _armed = self.arm();
        match command {
            Command::Open { link, registered } => {
                self.io.registry.add(link, registered);
                self.open_link(link)
            }
            Command::Settle {
                link,
                session,
                tag,
                outcome,
            } => {
                if session != self.number {
                    return Ok(()); // the broker has taken that delivery back
                }
                self.settle(link, tag, outcome)
            }
            Command::SendWaiting { link } => self.send_waiting(link),
            Command::Get { link, queue, done } => self.get(link, queue.as_deref(), &done),
            Command::Backlog { link, queue, done } => {
                self.ask(link, &queue, &done, |lane| lane.backlog(&queue))
            }
            Command::Flush { link, done } => {
                self.large.flushes.push((link, done));
                self.flush_links()
            }
            Command::Consume { link, on, done } => {
                self.io.registry.pause(link, !on);
                self.consume(link, on)?;
                let _ = done.try_send(());
                Ok(())
            }
            Command::DeleteOwnQueue { link, done } => {
                if let Some(lane) = self.lanes.get_mut(&link) {
                    lane.delete_own_queue().map_err(lost)?;
                }
                let _ = done.try_send(());
                Ok(())
            }
            Command::CloseLink { link } => self.close_link(link),
            Command::Close => {
                let _ = self.finish(); // lost or not, it is the end
                Err(End::Closed)
            }
        }
    }

    /// Guards one operation on the connection: it takes no longer than the
    /// operation timeout, or the connection is cut.
    pub(super) fn arm(&self) -> Armed<'c> {
        self.io.watchdog.arm(self.io.operation_timeout)
    }

    fn notices(&mut self) -> Result<(), End> {
        match self.notices.try_recv() {
            Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                relay::log(
                    log::Level::Warn,
                    "coney::amqp",
                    format_args!("the broker blocks publishing: {reason}"),
                );
                self.blocked = true;
                self.io.watchdog.be_patient(true);
                self.io.states.tell(ConnectionState::Blocked(reason));
            }
            Ok(ConnectionBlockedNotification::Unblocked) => {
                relay::log(
                    log::Level::Info,
                    "coney::amqp",
                    format_args!("the broker takes messages again"),
                );
                self.blocked = false;
                self.io.watchdog.be_patient(false);
                self.io.states.tell(ConnectionState::Unblocked);
                self.deferred()?;
                self.send_large()?;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(End::Lost(CONNECTION_ENDED.to_owned()));
            }
        }
        Ok(())
    }
}

/// A channel that the broker closes in mid-session is repaired like a lost
/// connection: by a new one. Other links pay for it with a reconnect; in
/// return there is one way to recover, not two.
pub(super) fn lost(failure: Failure) -> End {
    match failure {
        Failure::Refused(error) => End::Lost(error.to_string()),
        Failure::Lost(cause) => End::Lost(cause),
    }
}

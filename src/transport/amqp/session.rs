use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, Select, TryRecvError};
use typed_arena::Arena;

use super::command::{Command, Inbox, LinkId, Outgoing};
use super::convert::Failure;
use super::lane::Lane;
use super::registry::Registry;
use super::watchdog::{Armed, Watchdog};

/// How much is taken from one source before the others are looked at again.
const BUDGET: usize = 64;

/// How long a link that the broker refuses to open again after a reconnect
/// waits for the next attempt.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// The cause of a loss where only amiquip's thread knows the real one.
pub(super) const CONNECTION_ENDED: &str = "the connection has ended";

/// One live connection: the event loop that owns its channels.
pub(super) struct Session<'c> {
    number: u64,
    channels: &'c Arena<Channel>,
    connection: &'c mut Connection,
    notices: Receiver<ConnectionBlockedNotification>,
    lanes: BTreeMap<LinkId, Lane<'c>>,
    /// Channels of links that were closed, open and ready for reuse.
    spare: Vec<&'c Channel>,
    /// The broker asked us to publish nothing for now.
    blocked: bool,
    /// Commands that wait for the broker to unblock, in their order: it reads
    /// nothing meanwhile, so an operation would hang. Beside settlements it holds
    /// one or two for each attempt to open or close a link during the alarm.
    held: VecDeque<Command>,
    retry_refused_at: Option<Instant>,
    io: Io<'c>,
}

/// What the I/O thread lends a session.
pub(super) struct Io<'c> {
    pub(super) inbox: &'c Inbox,
    pub(super) registry: &'c mut Registry,
    pub(super) watchdog: &'c Watchdog,
    pub(super) operation_timeout: Duration,
}

/// Everything that can wake the event loop.
enum Wake {
    Command,
    Outgoing,
    Notice,
    Deliveries(LinkId),
    Returns(LinkId),
    RetryRefused,
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
            io,
        })
    }

    /// Opens every registered link and serves them until the end.
    pub(super) fn run(mut self) -> End {
        let Err(end) = self.serve();
        let end = match end {
            End::Lost(cause) => {
                for lane in self.lanes.values_mut() {
                    lane.pass_on_last_words(self.number);
                }
                let timed_out = self.io.watchdog.fired();
                End::Lost(if timed_out {
                    self.took_too_long()
                } else {
                    cause
                })
            }
            End::Closed => End::Closed,
        };
        let _armed = self.arm();
        match &end {
            // Nobody is left to say goodbye to.
            End::Lost(_) => {
                self.io.watchdog.kill();
                for command in std::mem::take(&mut self.held) {
                    self.io.registry.apply(command);
                }
            }
            // Nobody who would answer.
            End::Closed if self.blocked => self.io.watchdog.kill(),
            End::Closed => {
                for lane in std::mem::take(&mut self.lanes).into_values() {
                    let _ = lane.close();
                }
            }
        }
        end
    }

    fn took_too_long(&self) -> String {
        let limit = self.io.operation_timeout;
        format!("an operation took longer than {limit:?}")
    }

    fn serve(&mut self) -> Result<Infallible, End> {
        for link in self.io.registry.ids() {
            self.open_link(link)?;
        }
        loop {
            match self.wait() {
                Wake::Command => self.commands()?,
                Wake::Outgoing => self.outgoing(BUDGET)?,
                Wake::Notice => self.notices()?,
                Wake::Deliveries(link) => {
                    let _armed = self.arm();
                    if let Some(lane) = self.lanes.get_mut(&link) {
                        lane.pass_on_deliveries(self.number, BUDGET).map_err(lost)?;
                    }
                }
                Wake::Returns(link) => {
                    if let Some(lane) = self.lanes.get(&link) {
                        lane.pass_on_returns().map_err(lost)?;
                    }
                }
                Wake::RetryRefused => self.retry_refused()?,
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Wake {
        let retry_at = self.retry_refused_at.filter(|_| !self.blocked);
        // However much there is to do, the retry comes.
        if retry_at.is_some_and(|at| at <= Instant::now()) {
            return Wake::RetryRefused;
        }
        let mut select = Select::new();
        let mut wakes = Vec::with_capacity(4 + 2 * self.lanes.len());
        select.recv(&self.io.inbox.commands);
        wakes.push(Wake::Command);
        select.recv(&self.notices);
        wakes.push(Wake::Notice);
        if !self.blocked {
            select.recv(&self.io.inbox.outgoing);
            wakes.push(Wake::Outgoing);
        }
        for (&link, lane) in &self.lanes {
            if let Some(deliveries) = lane.deliveries() {
                select.recv(deliveries);
                wakes.push(Wake::Deliveries(link));
            }
            select.recv(lane.returns());
            wakes.push(Wake::Returns(link));
        }
        let ready = match retry_at {
            None => Some(select.ready()),
            Some(at) => select.ready_deadline(at).ok(),
        };
        ready.map_or(Wake::RetryRefused, |index| wakes.swap_remove(index))
    }

    fn commands(&mut self) -> Result<(), End> {
        for _ in 0..BUDGET {
            match self.io.inbox.commands.try_recv() {
                Ok(command) if self.blocked && !matches!(command, Command::Close) => {
                    self.held.push_back(command);
                }
                Ok(command) => self.command(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(End::Closed),
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), End> {
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
                match self.lanes.get_mut(&link) {
                    Some(lane) => lane.settle(tag, outcome).map_err(lost),
                    None => Ok(()),
                }
            }
            Command::StopConsuming { link, done } => {
                self.io.registry.stop_consuming(link);
                if let Some(lane) = self.lanes.get_mut(&link) {
                    lane.stop_consuming().map_err(lost)?;
                }
                let _ = done.try_send(());
                Ok(())
            }
            Command::CloseLink { link } => {
                self.io.registry.remove(link);
                self.flush()?;
                match self.lanes.remove(&link).map(Lane::close) {
                    Some(Ok(channel)) => self.spare.push(channel),
                    // The broker has closed the channel: nobody's loss now.
                    Some(Err(Failure::Refused(_))) | None => {}
                    Some(Err(failure)) => return Err(lost(failure)),
                }
                Ok(())
            }
            Command::Close => {
                let _ = self.flush(); // lost or not, it is the end
                Err(End::Closed)
            }
        }
    }

    /// Sends what was accepted before, so that closing loses nothing.
    fn flush(&mut self) -> Result<(), End> {
        let waiting = self.io.inbox.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.outgoing(waiting)
    }

    /// Guards one operation on the connection: it takes no longer than the
    /// operation timeout, or the connection is cut.
    fn arm(&self) -> Armed<'c> {
        self.io.watchdog.arm(self.io.operation_timeout)
    }

    fn outgoing(&mut self, budget: usize) -> Result<(), End> {
        for Outgoing { link, publication } in self.io.inbox.outgoing.try_iter().take(budget) {
            let Some(lane) = self.lanes.get(&link) else {
                if self.io.registry.get_mut(link).is_some() {
                    log::warn!(
                        target: "coney::amqp",
                        "a message is dropped: the broker refuses to open its link"
                    );
                }
                continue;
            };
            if publication.start_sending() {
                let _armed = self.arm();
                lane.publish(publication).map_err(lost)?;
            }
        }
        Ok(())
    }

    fn notices(&mut self) -> Result<(), End> {
        match self.notices.try_recv() {
            Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                log::warn!(target: "coney::amqp", "the broker blocks publishing: {reason}");
                self.blocked = true;
            }
            Ok(ConnectionBlockedNotification::Unblocked) => {
                log::info!(target: "coney::amqp", "the broker takes messages again");
                self.blocked = false;
                while let Some(command) = self.held.pop_front() {
                    self.command(command)?;
                }
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(End::Lost(CONNECTION_ENDED.to_owned()));
            }
        }
        Ok(())
    }

    /// Opens a link's lane. A broker that refuses is its owner's error the
    /// first time; after a reconnect it is logged and tried again later.
    fn open_link(&mut self, link: LinkId) -> Result<(), End> {
        let _armed = self.arm();
        let channel = match self.spare.pop() {
            Some(channel) => Ok(channel),
            None => self
                .connection
                .open_channel(None)
                .map(|channel| &*self.channels.alloc(channel))
                .map_err(Failure::from),
        };
        let Some(registered) = self.io.registry.get_mut(link) else {
            return Ok(());
        };
        match channel.and_then(|channel| Lane::open(channel, registered)) {
            Ok(lane) => {
                self.lanes.insert(link, lane);
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Ok(()));
                }
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                if let Some(opening) = registered.opening.take() {
                    let _ = opening.try_send(Err(error));
                    self.io.registry.remove(link);
                } else {
                    log::error!(
                        target: "coney::amqp",
                        "a link cannot be opened again, next attempt in {REFUSED_RETRY:?}: {error}"
                    );
                    self.retry_refused_at = Some(Instant::now() + REFUSED_RETRY);
                }
                Ok(())
            }
            Err(Failure::Lost(cause)) => Err(End::Lost(cause)),
        }
    }

    fn retry_refused(&mut self) -> Result<(), End> {
        self.retry_refused_at = None;
        for link in self.io.registry.ids() {
            if !self.lanes.contains_key(&link) {
                self.open_link(link)?;
            }
        }
        Ok(())
    }
}

/// A channel that the broker closes in mid-session is repaired like a lost
/// connection: by a new one. Other links pay for it with a reconnect; in
/// return there is one way to recover, not two.
fn lost(failure: Failure) -> End {
    match failure {
        Failure::Refused(error) => End::Lost(error.to_string()),
        Failure::Lost(cause) => End::Lost(cause),
    }
}

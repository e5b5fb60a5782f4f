use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, Select, TryRecvError};
use typed_arena::Arena;

use super::command::{Command, Inbox, LinkId, Outgoing};
use super::convert::Failure;
use super::evidence::Evidence;
use super::lane::Lane;
use super::registry::Registry;
use super::spare::Spare;
use super::states::{ConnectionState, States};
use super::watchdog::{Armed, Watchdog};

/// How much is taken from one source before the others are looked at again.
const BUDGET: usize = 64;

/// The cause of a loss where only amiquip's thread knows the real one.
pub(super) const CONNECTION_ENDED: &str = "the connection has ended";

/// One live connection: the event loop that owns its channels.
pub(super) struct Session<'c> {
    pub(super) number: u64,
    pub(super) channels: &'c Arena<Channel>,
    pub(super) connection: &'c mut Connection,
    notices: Receiver<ConnectionBlockedNotification>,
    pub(super) lanes: BTreeMap<LinkId, Lane<'c>>,
    /// Channels of links that were closed, open and ready for reuse.
    pub(super) spare: Vec<Spare<'c>>,
    /// The broker asked us to publish nothing for now.
    blocked: bool,
    /// Commands that wait for the broker to unblock, in their order: it reads
    /// nothing meanwhile, so an operation would hang. Beside settlements it holds
    /// one or two for each attempt to open or close a link during the alarm.
    held: VecDeque<Command>,
    pub(super) retry_refused_at: Option<Instant>,
    others_turn: Cell<bool>,
    pub(super) io: Io<'c>,
}

/// What the I/O thread lends a session.
pub(super) struct Io<'c> {
    pub(super) inbox: &'c Inbox,
    pub(super) registry: &'c mut Registry,
    pub(super) watchdog: &'c Watchdog,
    pub(super) states: &'c States,
    pub(super) evidence: &'c Evidence,
    pub(super) operation_timeout: Duration,
}

/// Everything that can wake the event loop.
enum Wake {
    Command,
    Outgoing,
    Notice,
    Deliveries(LinkId),
    Returns(LinkId),
    Confirms(LinkId),
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
            others_turn: Cell::new(false),
            io,
        })
    }

    /// Opens every registered link and serves them until the end.
    pub(super) fn run(mut self) -> End {
        let Err(end) = self.serve();
        let end = match end {
            End::Lost(cause) => {
                let closed = self.io.evidence.channel_close();
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
                    let _ = lane.end();
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
                self.io.registry.again.push_back(Outgoing {
                    link,
                    publication,
                    receipt: Some(receipt),
                });
            }
        }
        self.io.registry.guilty = guilty;
    }

    /// The link whose channel the broker closed.
    fn guilty(&self) -> Option<LinkId> {
        let (channel, _) = self.io.evidence.channel_close()?;
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
        while !self.io.registry.again.is_empty() {
            self.outgoing(self.io.registry.again.len())?;
        }
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
                        result.map_err(lost)?;
                    }
                }
                Wake::Confirms(link) => {
                    if let Some(lane) = self.lanes.get_mut(&link) {
                        lane.pass_on_confirms(BUDGET).map_err(lost)?;
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
        let mut wakes = Vec::with_capacity(4 + 3 * self.lanes.len());
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
            if let Some(returns) = lane.returns() {
                select.recv(returns);
                wakes.push(Wake::Returns(link));
            }
            if let Some(confirms) = lane.confirms() {
                select.recv(confirms);
                wakes.push(Wake::Confirms(link));
            }
        }
        // What is to be sent again goes first, but for every budget of it the
        // broker and the other threads have their say.
        if !self.blocked && !self.io.registry.again.is_empty() {
            let turn = self.others_turn.replace(!self.others_turn.get());
            let other = turn.then(|| select.try_ready().ok()).flatten();
            return other.map_or(Wake::Outgoing, |index| wakes.swap_remove(index));
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
            Command::SendWaiting { link } => self.send_waiting(link),
            Command::Get { link, queue, done } => self.get(link, &queue, &done),
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
                let _ = self.flush(); // lost or not, it is the end
                Err(End::Closed)
            }
        }
    }

    /// Sends what was accepted before, so that closing loses nothing.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        let waiting = self.io.registry.again.len() + self.io.inbox.outgoing.len();
        if self.blocked || waiting == 0 {
            return Ok(());
        }
        self.outgoing(waiting)
    }

    /// Guards one operation on the connection: it takes no longer than the
    /// operation timeout, or the connection is cut.
    pub(super) fn arm(&self) -> Armed<'c> {
        self.io.watchdog.arm(self.io.operation_timeout)
    }

    fn outgoing(&mut self, budget: usize) -> Result<(), End> {
        for _ in 0..budget {
            let again = self.io.registry.again.pop_front();
            let Some(next) = again.or_else(|| self.io.inbox.outgoing.try_recv().ok()) else {
                return Ok(());
            };
            self.publish(next)?;
        }
        Ok(())
    }

    fn publish(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let Outgoing {
            link,
            mut publication,
            receipt,
        } = outgoing;
        let Some(lane) = self.lanes.get_mut(&link) else {
            self.cannot_send(link);
            return Ok(());
        };
        if publication.start_sending() {
            let _armed = self.io.watchdog.arm(self.io.operation_timeout);
            lane.publish(publication, receipt).map_err(lost)?;
        }
        Ok(())
    }

    pub(super) fn cannot_send(&mut self, link: LinkId) {
        if self.io.registry.get_mut(link).is_some() {
            log::warn!(
                target: "coney::amqp",
                "a message is dropped: the broker refuses to open its link"
            );
        }
    }

    fn notices(&mut self) -> Result<(), End> {
        match self.notices.try_recv() {
            Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                log::warn!(target: "coney::amqp", "the broker blocks publishing: {reason}");
                self.blocked = true;
                self.io.watchdog.be_patient(true);
                self.io.states.tell(ConnectionState::Blocked(reason));
            }
            Ok(ConnectionBlockedNotification::Unblocked) => {
                log::info!(target: "coney::amqp", "the broker takes messages again");
                self.blocked = false;
                self.io.watchdog.be_patient(false);
                self.io.states.tell(ConnectionState::Unblocked);
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

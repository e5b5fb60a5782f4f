//! The public handle on a message broker.

use super::connection_state::ConnectionState;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::admin_connection::AdminConnection;
use super::confirm_link::ConfirmLinks;
use super::memory::MemoryTransport;
use super::{
    ConfirmOutcome, ConfirmReceiver, LinkHandle, LinkSpec, Publication, QueueDepth, Room,
    SendState, Sink, Transport,
};
use crate::base::callbacks::{LazyCallbackThread, Watched};
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::name::check_short_string;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Result};

/// The longest time in which the broker may declare what a link needs.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The time in which a large message may be sent over its own connection, plus the same again for
/// every 4 MiB.
const LARGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time for which dropping the last handle blocks until the broker has closed the
/// connection.
const CLOSE_ON_DROP: Duration = Duration::from_secs(2);

/// The longest time for which dropping the last handle blocks until queued log lines are written.
const FLUSH_ON_DROP: Duration = Duration::from_millis(100);

/// A handle on a message broker, which clients and servers are created from.
///
/// Cheap to clone and to use from several threads; all clones, and every client and server created
/// from them, use one connection, which closes when the last of them is dropped. (Subscribers whose
/// events are [in order](crate::Subscription::ordered_by) have a second one of their own, and
/// [counting a queue](Broker::queue_depth) opens one for a while.)
///
/// ```
/// use coney::Broker;
///
/// let broker = match std::env::var("AMQP_URL") {
///     Ok(url) => Broker::connect(&url)?,
///     Err(_) => Broker::memory(),
/// };
/// # let _ = broker;
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    owner: OwnerProcess,
    transport: Box<dyn Transport>,
    confirmed: ConfirmLinks,
    admin: AdminConnection,
    /// The connections that close along with this one.
    second_connections: Mutex<Vec<Weak<Inner>>>,
    /// The lock held by the one scan of the dead letters that may run.
    scan_lock: Mutex<()>,
    /// The thread that runs the callbacks of confirms.
    callbacks: LazyCallbackThread,
}

impl Broker {
    /// Creates a broker inside this process: queues, prefetch, acknowledgements, expiry and
    /// returned messages as in RabbitMQ, with nothing to install. It stores nothing on disk, serves
    /// this process only, and starts one thread at most, when the first queue with a dead-letter
    /// target is declared. Each call creates another broker: clone one to use it in several places.
    pub fn memory() -> Self {
        Self::over(MemoryTransport::new())
    }

    /// Closes the connection at once, for every client and server that uses it: their calls fail
    /// with [`ErrorKind::Closed`](crate::ErrorKind::Closed). To let running handlers finish, shut
    /// the servers down first. Messages that were accepted before are sent; of those that other
    /// threads publish without a confirm while it closes, some may be dropped.
    ///
    /// Blocks until the connection's threads have ended, at most `timeout`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if they have not ended by
    /// then; they end by themselves later.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let second_connections = self.inner.second_connections.lock().clone();
        let second_connections = second_connections.iter().filter_map(Weak::upgrade);
        let second_connections = second_connections.map(|other| other.transport.close(deadline));
        let result = self.inner.admin.close(deadline);
        let result = second_connections.fold(result, Result::and);
        let result = result.and(self.inner.transport.close(deadline));
        log_relay::flush(deadline);
        result
    }

    /// Returns the address: `memory`, or host, port and virtual host.
    pub fn address(&self) -> &str {
        self.inner.transport.address()
    }

    /// Returns the state of the connection, for a readiness probe. Does not block.
    ///
    /// Never [`Unblocked`](ConnectionState::Unblocked): the state after
    /// [`Blocked`](ConnectionState::Blocked) is [`Connected`](ConnectionState::Connected) again.
    /// The memory broker is connected until it is closed.
    ///
    /// ```
    /// # use coney::{Broker, ConnectionState};
    /// let broker = Broker::memory();
    /// assert_eq!(broker.state(), ConnectionState::Connected);
    /// ```
    pub fn state(&self) -> ConnectionState {
        if self.is_forked() {
            let cause = "the connection belongs to the process from which this one was forked";
            return ConnectionState::Closed(cause.to_owned());
        }
        self.inner.transport.state()
    }

    /// Returns true if there is a connection, blocked or not. Does not block.
    pub fn is_connected(&self) -> bool {
        self.state().is_connected()
    }

    /// Returns the number of messages that wait in a queue, and of its consumers, for example for an
    /// autoscaler. The requests of a service wait in `service.NAME.request`, the events of a
    /// subscription in `event.SERVICE.SUBSCRIPTION`.
    ///
    /// Blocks until the broker has answered, at most 10 s. Over RabbitMQ it is asked over a second
    /// connection, which opens when it is first needed and ends after [30 s without
    /// use](crate::BrokerBuilder::admin_idle_timeout): the first one does not wait for the answer,
    /// and a queue that does not exist costs it nothing.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::NoRoute`](crate::ErrorKind::NoRoute) if the queue does not exist,
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if it is exclusive to another connection,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if the broker does not answer in time,
    /// [`ErrorKind::Connect`](crate::ErrorKind::Connect) or
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) if the second connection
    /// cannot be made or is lost, and [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the
    /// broker was closed.
    ///
    /// ```
    /// use coney::{Broker, ErrorKind, ServiceServer};
    ///
    /// let broker = Broker::memory();
    /// let queue = "service.user-service.request";
    /// assert_eq!(broker.queue_depth(queue).unwrap_err().kind(), ErrorKind::NoRoute);
    /// let server = ServiceServer::builder(&broker, "user-service")
    ///     .respond("ping", |()| ())
    ///     .start()?;
    /// let depth = broker.queue_depth(queue)?;
    /// assert_eq!((depth.messages, depth.consumers), (0, 1));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn queue_depth(&self, queue: &str) -> Result<QueueDepth> {
        self.queue_depth_until(queue, deadline::after(OPEN_TIMEOUT))
    }

    /// Counts as [`queue_depth`](Broker::queue_depth) does; blocks at most until `deadline`.
    pub(crate) fn queue_depth_until(&self, queue: &str, deadline: Instant) -> Result<QueueDepth> {
        check_short_string("queue", queue)?;
        self.check_not_forked()?;
        let Inner {
            transport, admin, ..
        } = &*self.inner;
        admin.queue_depth(&**transport, queue, deadline)
    }

    /// Opens a link on the administration connection, for queries. Blocks until the broker has
    /// declared everything, at most 10 s and at most until `deadline`.
    pub(crate) fn open_for_queries(
        &self,
        spec: &LinkSpec,
        sink: &Arc<dyn Sink>,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn LinkHandle>> {
        spec.check()?;
        self.check_not_forked()?;
        let longest = deadline::after(OPEN_TIMEOUT);
        let deadline = deadline.map_or(longest, |deadline| deadline.min(longest));
        let Inner {
            transport, admin, ..
        } = &*self.inner;
        admin.open(&**transport, spec, sink, deadline)
    }

    /// Returns the largest message body that the broker accepts, in bytes: the configured limit, or
    /// RabbitMQ's own if that is known and lower.
    pub fn max_body(&self) -> usize {
        self.inner.transport.limits().max_body()
    }

    /// Returns the size of the largest message over `max_body` that is dead-lettered with its body,
    /// in bytes.
    pub(crate) fn max_dead_letter(&self) -> u64 {
        self.inner.transport.limits().max_dead_letter()
    }

    /// Locks the dead letters for one scan at a time. Blocks while another scan runs; returns
    /// `None` if it still runs at `deadline`.
    pub(crate) fn lock_dead_letters(&self, deadline: Instant) -> Option<MutexGuard<'_, ()>> {
        self.inner.scan_lock.try_lock_until(deadline)
    }

    /// Returns the size of the largest header table that can be sent, in bytes.
    pub(crate) fn max_headers(&self) -> usize {
        self.inner.transport.limits().max_headers()
    }

    /// Returns true if the transport's connections may be lost and reconnected.
    pub(crate) fn can_reconnect(&self) -> bool {
        self.inner.transport.can_reconnect()
    }

    /// Reserves room among the messages that are queued to be sent. Blocks while there is none, at
    /// most until `deadline`, and not at all without a deadline.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
        deadline: Option<Instant>,
    ) -> Result<Option<Arc<Room>>> {
        self.inner.transport.reserve(bytes, deadline)
    }

    /// Publishes a message larger than `max_body` over a connection of its own. Blocks until the
    /// broker has confirmed it, for a time that grows with its size.
    pub(crate) fn publish_oversized(&self, mut publication: Publication) -> Result<ConfirmOutcome> {
        let bytes = publication.body.len();
        let deadline = deadline::after(LARGE_TIMEOUT + LARGE_TIMEOUT * (bytes >> 22) as u32);
        publication.send_state = Some(SendState::until(deadline).into());
        let Some(another) = self.inner.transport.second_connection(Some(bytes))? else {
            return Ok(ConfirmOutcome::TooLarge(Some(self.max_body())));
        };
        let another = Self::from_transport(another);
        let confirmation = another.publish_confirmed(publication, deadline)?;
        let outcome = confirmation.wait(deadline);
        let _ = another.close(CLOSE_ON_DROP);
        Ok(outcome.unwrap_or(ConfirmOutcome::Dropped))
    }

    pub(crate) fn spin_for(&self) -> Duration {
        self.inner.transport.spin_for()
    }

    /// Opens a link. Blocks until the broker has declared and started everything, at most 10 s.
    pub(crate) fn open(&self, spec: LinkSpec, sink: Arc<dyn Sink>) -> Result<Arc<dyn LinkHandle>> {
        self.open_until(spec, sink, None)
    }

    /// Opens a link. Blocks until the broker has declared and started everything, at most 10 s and
    /// at most until `deadline`.
    pub(crate) fn open_until(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn LinkHandle>> {
        spec.check()?;
        let longest = deadline::after(OPEN_TIMEOUT);
        let deadline = deadline.map_or(longest, |deadline| deadline.min(longest));
        self.inner.transport.open(spec, sink, deadline)
    }

    /// Publishes a message with a publisher confirm. Blocks while too many messages are
    /// unconfirmed, at most until `deadline`; an error means that the message will not be sent.
    pub(crate) fn publish_confirmed(
        &self,
        publication: Publication,
        deadline: Instant,
    ) -> Result<ConfirmReceiver> {
        let Inner {
            transport,
            confirmed,
            ..
        } = &*self.inner;
        confirmed.publish(&**transport, publication, deadline)
    }

    /// Opens a second connection to the same broker, for links that cannot use the first; the
    /// memory broker has none and returns itself. Blocks until it is open, as long as the first
    /// connection may take.
    pub(crate) fn second_connection(&self) -> Result<Self> {
        let Some(another) = self.inner.transport.second_connection(None)? else {
            return Ok(self.clone());
        };
        let another = Self::from_transport(another);
        let mut second_connections = self.inner.second_connections.lock();
        second_connections.retain(|other| other.strong_count() > 0);
        second_connections.push(Arc::downgrade(&another.inner));
        Ok(another)
    }

    /// Returns an error in a forked child, for a message that its parent sent: only the parent
    /// receives the outcome.
    pub(crate) fn check_owner_process(&self, begun: &dyn fmt::Display) -> Result<()> {
        if !self.is_forked() {
            return Ok(());
        }
        let fault = format!(
            "{begun} was sent by the process from which this one was forked: whether it ran is \
             not known here"
        );
        Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(false))
    }

    /// Returns true in a forked child, where no lock may be taken and nothing shared dropped.
    pub(crate) fn is_forked(&self) -> bool {
        self.inner.owner.is_another()
    }

    /// Returns an error in a forked child, before any lock is taken.
    pub(crate) fn check_not_forked(&self) -> Result<()> {
        self.inner.owner.check(self.address())
    }

    /// Watches a result on the connection's callback thread, which starts with the first.
    pub(crate) fn watch(&self, watched: Box<dyn Watched>) -> Result<()> {
        self.check_owner_process(&"a message")?;
        self.inner.callbacks.watch(self.address(), watched)
    }

    pub(crate) fn is_another(&self, than: &Self) -> bool {
        !Arc::ptr_eq(&self.inner, &than.inner)
    }

    pub(super) fn over(transport: impl Transport + 'static) -> Self {
        Self::from_transport(Box::new(transport))
    }

    fn from_transport(transport: Box<dyn Transport>) -> Self {
        Self {
            inner: Arc::new(Inner {
                owner: OwnerProcess::current(),
                transport,
                confirmed: ConfirmLinks::new(),
                admin: AdminConnection::default(),
                second_connections: Mutex::default(),
                scan_lock: Mutex::default(),
                callbacks: LazyCallbackThread::default(),
            }),
        }
    }
}

/// In a forked child, keeps what all clones share for ever: threads that do not exist there may
/// have held its locks at the fork.
impl Drop for Broker {
    fn drop(&mut self) {
        if self.is_forked() {
            std::mem::forget(Arc::clone(&self.inner));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let deadline = Instant::now() + CLOSE_ON_DROP;
        let closed = self.admin.close(deadline);
        let closed = closed.and(self.transport.close(deadline));
        log_relay::flush(Instant::now() + FLUSH_ON_DROP);
        if let Err(error) = closed {
            log::warn!(
                target: "coney::transport",
                "the connection to {} did not close: {error}",
                self.transport.address()
            );
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("address", &self.address())
            .finish()
    }
}

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::confirm_link::ConfirmLinks;
use super::memory::MemoryTransport;
use super::{
    ConfirmOutcome, ConfirmReceiver, LinkHandle, LinkSpec, Publication, Room, SendState, Sink,
    Transport,
};
use crate::base::callbacks::{CallbackThread, Watched};
use crate::base::deadline;
use crate::base::log_relay;
use crate::base::thread::OwnerProcess;
use crate::error::{Error, ErrorKind, Result};

/// How long declaring what a link needs may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which a large message of its own connection may take, and again for every 4 MiB.
const LARGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which dropping the last handle may wait for the broker to close the connection.
const CLOSE_ON_DROP: Duration = Duration::from_secs(2);

/// The longest time to wait for the log lines of its threads.
const FLUSH_ON_DROP: Duration = Duration::from_millis(100);

/// A handle on a message broker: the one thing that clients and servers need.
///
/// Cheap to clone and free to share between threads; all clones, and every
/// client and server made from them, use one connection, which closes when the
/// last of them is dropped. (Subscribers whose events are
/// [in order](crate::Subscription::ordered_by) have another one of their own.)
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
    home: OwnerProcess,
    transport: Box<dyn Transport>,
    confirmed: ConfirmLinks,
    /// Connections that end with this one.
    others: Mutex<Vec<Weak<Inner>>>,
    /// Held by the one that looks through the dead letters.
    turn: Mutex<()>,
    /// The callbacks of confirms.
    callbacks: Mutex<Option<CallbackThread>>,
}

impl Broker {
    /// A broker inside this process: queues, prefetch, acknowledgements,
    /// expiry and returns as RabbitMQ has them, with nothing to install. It
    /// keeps nothing on disk, serves this process only, and has one thread, once
    /// there is a queue that moves on what expires.
    /// Each call makes another broker: clone one to share it.
    pub fn memory() -> Self {
        Self::over(MemoryTransport::new())
    }

    /// Closes the connection, now, for every client and server that uses it:
    /// their calls fail with [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    /// To let running handlers finish, shut the servers down first.
    ///
    /// Blocks until the connection's threads have ended, at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if they have not;
    /// they end by themselves later.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        let others = self.inner.others.lock().clone();
        let others = others.iter().filter_map(Weak::upgrade);
        let others = others.map(|other| other.transport.close(deadline));
        let result = others.fold(Ok(()), Result::and);
        let result = result.and(self.inner.transport.close(deadline));
        log_relay::flush(deadline);
        result
    }

    /// Where it is: `memory`, or host, port and virtual host.
    pub fn address(&self) -> &str {
        self.inner.transport.address()
    }

    /// The largest message body it takes, in bytes: what was set, or what RabbitMQ is known
    /// to take if that is less.
    pub fn max_body(&self) -> usize {
        self.inner.transport.limits().max_body()
    }

    /// The largest message over `max_body` that is dead-lettered with its body, in bytes.
    pub(crate) fn max_dead_letter(&self) -> u64 {
        self.inner.transport.limits().max_dead_letter()
    }

    /// For one look through the dead letters at a time. `None` if it is not over by then.
    pub(crate) fn take_turn(&self, deadline: Instant) -> Option<MutexGuard<'_, ()>> {
        self.inner.turn.try_lock_until(deadline)
    }

    /// The largest header table it takes, in bytes.
    pub(crate) fn max_headers(&self) -> usize {
        self.inner.transport.limits().max_headers()
    }

    /// True if its connections may be lost and made again.
    pub(crate) fn has_sessions(&self) -> bool {
        self.inner.transport.has_sessions()
    }

    /// Room for a message among those that wait to be sent. Blocks while there is none, at
    /// most until `deadline`, and without one not at all.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
        deadline: Option<Instant>,
    ) -> Result<Option<Arc<Room>>> {
        self.inner.transport.reserve(bytes, deadline)
    }

    /// Publishes a message that is larger than `max_body`, over a connection of its own,
    /// and waits until the broker has confirmed it. Blocks for a time that grows with it.
    pub(crate) fn publish_oversized(&self, mut publication: Publication) -> Result<ConfirmOutcome> {
        let bytes = publication.body.len();
        let deadline = deadline::after(LARGE_TIMEOUT + LARGE_TIMEOUT * (bytes >> 22) as u32);
        publication.send_state = Some(SendState::until(deadline).into());
        let Some(another) = self.inner.transport.second_connection(Some(bytes))? else {
            return Ok(ConfirmOutcome::TooLarge(Some(self.max_body())));
        };
        let another = Self::over_box(another);
        let confirmation = another.publish_confirmed(publication, deadline)?;
        let outcome = confirmation.wait(deadline);
        let _ = another.close(CLOSE_ON_DROP);
        Ok(outcome.unwrap_or(ConfirmOutcome::Dropped))
    }

    pub(crate) fn spin_for(&self) -> Duration {
        self.inner.transport.spin_for()
    }

    /// Opens a link. Blocks until the broker has done it, at most 10 s.
    pub(crate) fn open(&self, spec: LinkSpec, sink: Arc<dyn Sink>) -> Result<Arc<dyn LinkHandle>> {
        self.open_until(spec, sink, None)
    }

    /// The same, and at most until then.
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

    /// Publishes a message that the broker is to confirm. Blocks while too many
    /// are under way, at most until `deadline`; an error means that it will not
    /// be sent.
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

    /// A connection of one's own to the same broker, where one in common does not do.
    /// Blocks until it is made, at most the connect timeout.
    pub(crate) fn second_connection(&self) -> Result<Self> {
        let Some(another) = self.inner.transport.second_connection(None)? else {
            return Ok(self.clone());
        };
        let another = Self::over_box(another);
        let mut others = self.inner.others.lock();
        others.retain(|other| other.strong_count() > 0);
        others.push(Arc::downgrade(&another.inner));
        Ok(another)
    }

    /// An error in a forked child, for what was begun in its parent: only that hears how it
    /// ends.
    pub(crate) fn check_home(&self, begun: &dyn fmt::Display) -> Result<()> {
        if !self.inner.home.is_another() {
            return Ok(());
        }
        let fault = format!(
            "{begun} was sent by the process from which this one was forked: whether it ran is \
             not known here"
        );
        Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(false))
    }

    /// Watches a result on the connection's callback thread, which starts with the first.
    pub(crate) fn watch(&self, watched: Box<dyn Watched>) -> Result<()> {
        let mut callbacks = self.inner.callbacks.lock();
        if callbacks.is_none() {
            let started = CallbackThread::start(self.address()).map_err(|error| {
                let fault = format!("{}: cannot start the callback thread", self.address());
                // The message is on its way.
                Error::new(ErrorKind::Io, fault)
                    .with_source(error)
                    .with_nothing_ran(false)
            })?;
            *callbacks = Some(started);
        }
        if let Some(thread) = &*callbacks {
            thread.watch(watched);
        }
        Ok(())
    }

    pub(crate) fn is_another(&self, than: &Self) -> bool {
        !Arc::ptr_eq(&self.inner, &than.inner)
    }

    pub(super) fn over(transport: impl Transport + 'static) -> Self {
        Self::over_box(Box::new(transport))
    }

    fn over_box(transport: Box<dyn Transport>) -> Self {
        Self {
            inner: Arc::new(Inner {
                home: OwnerProcess::current(),
                transport,
                confirmed: ConfirmLinks::new(),
                others: Mutex::default(),
                turn: Mutex::default(),
                callbacks: Mutex::default(),
            }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let closed = self.transport.close(Instant::now() + CLOSE_ON_DROP);
        log_relay::flush(Instant::now() + FLUSH_ON_DROP);
        if let Err(error) = closed {
            log::warn!("closing {}: {error}", self.transport.address());
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("peer", &self.address())
            .finish()
    }
}

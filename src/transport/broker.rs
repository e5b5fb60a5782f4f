use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::amqp::{AmqpTransport, BrokerBuilder};
use super::confirmed::ConfirmedLink;
use super::memory::MemoryTransport;
use super::{Confirmation, LinkSpec, Publication, Sink, Transport, Wire};
use crate::deadline;
use crate::error::Result;

/// How long declaring what a link needs may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long dropping the last handle may wait for the broker to say goodbye.
const CLOSE_ON_DROP: Duration = Duration::from_secs(2);

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
    transport: Box<dyn Transport>,
    confirmed: ConfirmedLink,
    /// Connections that end with this one.
    others: Mutex<Vec<Weak<Inner>>>,
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

    /// Connects to RabbitMQ with the default options.
    ///
    /// The URL is `amqp://user:password@host:port/vhost`; what is left out is
    /// `guest`, `guest`, `localhost`, `5672` and `/`. It may end in
    /// `?heartbeat=SECONDS&connection_timeout=MILLISECONDS&name=NAME`. Blocks until connected,
    /// at most the connect timeout of 10 s. Starts the connection's threads.
    /// Later losses of the connection are repaired in the background.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if the URL
    /// cannot be used, [`ErrorKind::Connect`](crate::ErrorKind::Connect) if no
    /// connection can be made. Neither ever contains the password.
    ///
    /// ```no_run
    /// let broker = coney::Broker::connect("amqp://localhost")?;
    /// # let _ = broker;
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect()
    }

    /// Options for a connection to RabbitMQ: see [`BrokerBuilder`].
    pub fn builder(url: &str) -> BrokerBuilder {
        BrokerBuilder::new(url)
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
        result.and(self.inner.transport.close(deadline))
    }

    /// Where it is: `memory`, or host, port and virtual host.
    pub fn peer(&self) -> &str {
        self.inner.transport.peer()
    }

    /// The largest message body it takes, in bytes.
    pub fn max_body(&self) -> usize {
        self.inner.transport.max_body()
    }

    pub(crate) fn awake(&self) -> Duration {
        self.inner.transport.awake()
    }

    pub(super) fn over_amqp(transport: AmqpTransport) -> Self {
        Self::over(transport)
    }

    /// Opens a link. Blocks until the broker has done it, at most 10 s.
    pub(crate) fn open(&self, spec: LinkSpec, sink: Arc<dyn Sink>) -> Result<Arc<dyn Wire>> {
        self.open_until(spec, sink, None)
    }

    /// The same, and at most until then.
    pub(crate) fn open_until(
        &self,
        spec: LinkSpec,
        sink: Arc<dyn Sink>,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn Wire>> {
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
    ) -> Result<Confirmation> {
        let Inner {
            transport,
            confirmed,
            ..
        } = &*self.inner;
        confirmed.publish(&**transport, publication, deadline)
    }

    /// A connection of one's own to the same broker, where one in common does not do.
    /// Blocks until it is made, at most the connect timeout.
    pub(crate) fn another(&self) -> Result<Self> {
        let Some(another) = self.inner.transport.another()? else {
            return Ok(self.clone());
        };
        let another = Self::over_box(another);
        let mut others = self.inner.others.lock();
        others.retain(|other| other.strong_count() > 0);
        others.push(Arc::downgrade(&another.inner));
        Ok(another)
    }

    pub(crate) fn is_another(&self, than: &Self) -> bool {
        !Arc::ptr_eq(&self.inner, &than.inner)
    }

    fn over(transport: impl Transport + 'static) -> Self {
        Self::over_box(Box::new(transport))
    }

    fn over_box(transport: Box<dyn Transport>) -> Self {
        Self {
            inner: Arc::new(Inner {
                transport,
                confirmed: ConfirmedLink::new(),
                others: Mutex::default(),
            }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.transport.close(Instant::now() + CLOSE_ON_DROP) {
            log::warn!("closing {}: {error}", self.transport.peer());
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("peer", &self.peer())
            .finish()
    }
}

//! Raw access to the broker.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::{Broker, Delivery, LinkHandle, LinkSpec, NoSink, Publication, Returned, Sink};
use crate::base::deadline;
use crate::base::name::check_short_string;
use crate::error::{ErrorKind, Result};

/// The largest number of deliveries on a reply queue, and of returned messages, that are queued for
/// [`Link::recv_timeout`] and [`Link::returned_timeout`]; further ones are dropped. A link that
/// consumes with acknowledgements never holds more deliveries than its prefetch.
const QUEUE_BOUND: usize = 1_024;

/// A raw link to the broker, for peers that do not follow coney's contract.
///
/// Declares and consumes as its [`LinkSpec`] says, publishes any message, and returns deliveries
/// one at a time. It survives reconnects, except that a message sent just before the connection is
/// lost may be lost with it, and so are messages while the broker, after a reconnect, refuses the
/// link's declarations. Dropping the link closes it; the broker requeues its unsettled deliveries.
///
/// ```
/// use std::time::Duration;
/// use coney::Broker;
/// use coney::transport::{Link, LinkSpec, Publication, Topology};
///
/// let spec = LinkSpec::new(Topology::new().queue("jobs")).consume("jobs", 10);
/// let link = Link::open(&Broker::memory(), spec)?;
/// link.publish(Publication::new("", "jobs", b"{}".to_vec()), Duration::from_secs(1))?;
/// let delivery = link.recv_timeout(Duration::from_secs(1)).unwrap();
/// assert_eq!(delivery.message().body, b"{}");
/// delivery.ack();
/// # Ok::<(), coney::Error>(())
/// ```
pub struct Link {
    /// Keeps the connection open for as long as the link exists.
    broker: Broker,
    handle: Arc<dyn LinkHandle>,
    /// The link over which messages are got, on the administration connection.
    getter: Mutex<Option<Arc<dyn LinkHandle>>>,
    deliveries: Receiver<Delivery>,
    returns: Receiver<Returned>,
}

struct LinkSink {
    deliveries: Sender<Delivery>,
    /// The receiver of the deliveries that need an acknowledgement, to discard those that are
    /// queued when the connection is lost.
    unsettled: Option<Receiver<Delivery>>,
    returns: Sender<Returned>,
}

impl Link {
    /// Opens a link: declares its topology and starts consuming. Blocks until the broker has done
    /// so, at most 10 s.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Broker`](crate::ErrorKind::Broker) if the broker refuses,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if it does not answer, and
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the broker was closed.
    pub fn open(broker: &Broker, spec: LinkSpec) -> Result<Self> {
        // Deliveries that must be settled are bounded by the prefetch, which may change.
        let is_settled = spec.source.prefetch().is_some();
        let (deliveries_in, deliveries) = match is_settled {
            true => crossbeam_channel::unbounded(),
            false => crossbeam_channel::bounded(QUEUE_BOUND),
        };
        let (returns_in, returns) = crossbeam_channel::bounded(QUEUE_BOUND);
        let sink = Arc::new(LinkSink {
            deliveries: deliveries_in,
            unsettled: is_settled.then(|| deliveries.clone()),
            returns: returns_in,
        });
        let handle = broker.open(spec, sink)?;
        Ok(Self {
            broker: broker.clone(),
            handle,
            getter: Mutex::default(),
            deliveries,
            returns,
        })
    }

    /// Queues a message for sending; `Ok` means accepted, not yet sent. Blocks while the send queue
    /// is full, at most `timeout`.
    ///
    /// Messages are sent in the order in which they were accepted, except those with bodies over 1
    /// MiB, which use a channel of their own. A settlement ([`Delivery::ack`]) may overtake a
    /// message that was accepted before it, as settlements never wait: to acknowledge only with a
    /// reply, use [`Delivery::ack_with`].
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if a name does not
    /// fit a frame, [`ErrorKind::PayloadTooLarge`](crate::ErrorKind::PayloadTooLarge) if the body
    /// or the headers are over the limit, [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if
    /// the send queue stays full, and [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the
    /// broker was closed.
    pub fn publish(&self, publication: Publication, timeout: Duration) -> Result<()> {
        self.handle
            .publish(publication, None, deadline::after(timeout))
    }

    /// Takes the first message off any queue without consuming from it; returns `None` if the queue
    /// is empty. Blocks at most `timeout`.
    ///
    /// Each message takes a round trip: a consumer is much faster. Over RabbitMQ it is got over the
    /// [administration connection](crate::BrokerBuilder::admin_idle_timeout), which stays open
    /// until the message is settled. So a queue that is exclusive to this connection is refused.
    /// After a refusal the broker requeues the messages that this link has got and not settled.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Broker`](crate::ErrorKind::Broker) if there is no such queue,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if the broker does not answer in time,
    /// [`ErrorKind::Connect`](crate::ErrorKind::Connect) or
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) if that connection cannot be
    /// made or is lost, and [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the broker was
    /// closed.
    pub fn get(&self, queue: &str, timeout: Duration) -> Result<Option<Delivery>> {
        check_short_string("queue", queue)?;
        self.broker.check_not_forked()?;
        let deadline = deadline::after(timeout);
        let present = self.getter.lock().clone();
        let got = match present {
            // It may have ended since, with its connection or over a refusal.
            Some(getter) => match getter.get(queue, deadline) {
                Err(error) if error.kind() == ErrorKind::Closed => None,
                got => Some(got),
            },
            None => None,
        };
        let got = match got {
            Some(got) => got,
            None => self.open_getter(deadline)?.get(queue, deadline),
        };
        Ok(got?.map(|(delivery, _)| delivery))
    }

    /// Opens another link to get messages over.
    fn open_getter(&self, deadline: Instant) -> Result<Arc<dyn LinkHandle>> {
        let sink: Arc<dyn Sink> = Arc::new(NoSink);
        let broker = &self.broker;
        let opened = broker.open_for_queries(&LinkSpec::default(), &sink, Some(deadline))?;
        let before = self.getter.lock().replace(Arc::clone(&opened));
        if let Some(before) = before {
            before.close();
        }
        Ok(opened)
    }

    /// Sets the largest number of unsettled deliveries of a link that
    /// [consumes a queue](LinkSpec::consume), at least 1. Blocks until the broker has answered, at
    /// most `timeout`.
    ///
    /// Deliveries stay valid, and nothing is redelivered. After a higher prefetch further deliveries
    /// arrive at once, after a lower one when enough of the earlier ones are settled. RabbitMQ
    /// itself then may hold more messages for the link, up to both numbers in all, until those
    /// that were unsettled before are settled. If the link declares its queue with a
    /// [single active consumer](crate::transport::QueueOptions::single_active_consumer), a higher
    /// prefetch applies when it next consumes, after a reconnect.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if the broker does not answer
    /// in time, and [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the broker was closed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use coney::Broker;
    /// # use coney::transport::{Link, LinkSpec, Publication, Topology};
    /// let second = Duration::from_secs(1);
    /// let spec = LinkSpec::new(Topology::new().queue("jobs")).consume("jobs", 1);
    /// let link = Link::open(&Broker::memory(), spec)?;
    /// for job in [b"a", b"b"] {
    ///     link.publish(Publication::new("", "jobs", job.to_vec()), second)?;
    /// }
    /// let first = link.recv_timeout(second).unwrap();
    /// link.set_prefetch(2, second)?;
    /// let next = link.recv_timeout(second).unwrap(); // although the first is not settled
    /// first.ack();
    /// next.ack();
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn set_prefetch(&self, count: u16, timeout: Duration) -> Result<()> {
        let deadline = deadline::after(timeout);
        self.handle.set_prefetch(count, deadline)
    }

    /// Returns the next delivery, or `None` if none arrives within `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Delivery> {
        self.deliveries.recv_timeout(timeout).ok()
    }

    /// Returns the next returned message, one published as mandatory that no queue was bound for,
    /// or `None` if none arrives within `timeout`.
    pub fn returned_timeout(&self, timeout: Duration) -> Option<Returned> {
        self.returns.recv_timeout(timeout).ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(getter) = self.getter.get_mut() {
            getter.close();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Sink for LinkSink {
    fn delivery(&self, delivery: Delivery) -> std::result::Result<Vec<Publication>, Delivery> {
        match self.deliveries.try_send(delivery) {
            Ok(()) => Ok(Vec::new()),
            Err(error) => Err(error.into_inner()),
        }
    }

    fn returned(&self, returned: Returned) -> Vec<Publication> {
        let _ = self.returns.try_send(returned);
        Vec::new()
    }

    /// Discards the queued deliveries, which the broker has requeued and will deliver again.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        for delivery in self.unsettled.iter().flat_map(Receiver::try_iter) {
            delivery.forget();
        }
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}

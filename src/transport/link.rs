use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::{Broker, Delivery, LinkHandle, LinkSpec, Publication, Returned, Sink};
use crate::base::deadline;
use crate::base::name::check_short_string;
use crate::error::Result;

/// How many deliveries and returns wait for [`Link::recv_timeout`]. A link
/// that consumes with acknowledgements never holds more than its prefetch; on
/// a reply queue what comes beyond this is dropped.
const INBOX_BOUND: usize = 1_024;

/// Raw access to the broker, for peers that do not follow coney's contract.
///
/// Declares what its [`LinkSpec`] asks for, publishes any message, and hands
/// out deliveries one at a time. It survives reconnects, except that a message
/// sent just before a loss may be lost with it, and so are messages while the
/// broker, after a reconnect, refuses what the link declares. Dropping it ends
/// it; what was not settled goes back into its queue.
///
/// ```
/// use std::time::Duration;
/// use coney::Broker;
/// use coney::transport::{Link, LinkSpec, Publication, Topology};
///
/// let spec = LinkSpec::new(Topology::default().queue("jobs")).consume("jobs", 10);
/// let link = Link::open(&Broker::memory(), spec)?;
/// link.publish(Publication::new("", "jobs", b"{}".to_vec()), Duration::from_secs(1))?;
/// let delivery = link.recv_timeout(Duration::from_secs(1)).unwrap();
/// assert_eq!(delivery.message().body, b"{}");
/// delivery.ack();
/// # Ok::<(), coney::Error>(())
/// ```
pub struct Link {
    /// Keeps the connection open as long as the link is.
    _broker: Broker,
    handle: Arc<dyn LinkHandle>,
    deliveries: Receiver<Delivery>,
    returns: Receiver<Returned>,
}

struct LinkSink {
    deliveries: Sender<Delivery>,
    /// What has to be acknowledged and nobody has taken yet.
    unsettled: Option<Receiver<Delivery>>,
    returns: Sender<Returned>,
}

impl Link {
    /// Opens a link: declares and starts consuming. Blocks until the broker
    /// has done it, at most 10 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if the broker refuses,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) if it does not answer,
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) after the broker was closed.
    pub fn open(broker: &Broker, spec: LinkSpec) -> Result<Self> {
        let prefetch = spec.source.prefetch().map(usize::from);
        let bound = prefetch.unwrap_or(INBOX_BOUND);
        let (deliveries_in, deliveries) = crossbeam_channel::bounded(bound);
        let (returns_in, returns) = crossbeam_channel::bounded(INBOX_BOUND);
        let sink = Arc::new(LinkSink {
            deliveries: deliveries_in,
            unsettled: prefetch.map(|_| deliveries.clone()),
            returns: returns_in,
        });
        let handle = broker.open(spec, sink)?;
        Ok(Self {
            _broker: broker.clone(),
            handle,
            deliveries,
            returns,
        })
    }

    /// Hands a message over for sending; `Ok` means accepted, not yet sent.
    /// Blocks while too much waits to be sent, at most `timeout`.
    ///
    /// Messages leave in the order they were accepted, but for those with bodies over 1 MiB,
    /// which take a channel of their own. A settlement ([`Delivery::ack`]) may leave before a
    /// message that was accepted before it, as settlements never wait: to acknowledge only
    /// with a reply, let the delivery send it ([`Delivery::ack_with`]).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for names
    /// that do not fit a frame, [`ErrorKind::Encode`](crate::ErrorKind::Encode)
    /// for a body over the limit, [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut)
    /// and [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    pub fn publish(&self, publication: Publication, timeout: Duration) -> Result<()> {
        self.handle
            .publish(publication, None, deadline::after(timeout))
    }

    /// Takes the first message off `queue`, any queue, without consuming from
    /// it: `None` if it is empty. Blocks at most `timeout`.
    ///
    /// A round trip for each message: a consumer is faster by far.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker) if there is no such queue,
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) and
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    pub fn get(&self, queue: &str, timeout: Duration) -> Result<Option<Delivery>> {
        check_short_string("queue", queue)?;
        let got = self.handle.get(queue, deadline::after(timeout))?;
        Ok(got.map(|(delivery, _)| delivery))
    }

    /// The next delivery; `None` if there is none within `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Delivery> {
        self.deliveries.recv_timeout(timeout).ok()
    }

    /// The next mandatory message that fitted no queue; `None` if there is
    /// none within `timeout`.
    pub fn returned_timeout(&self, timeout: Duration) -> Option<Returned> {
        self.returns.recv_timeout(timeout).ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.handle.close();
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

    /// The broker has these back and delivers them again.
    fn lost(&self, _cause: &str, _may_send_again: bool) -> Vec<Publication> {
        for delivery in self.unsettled.iter().flat_map(Receiver::try_iter) {
            delivery.forget();
        }
        Vec::new()
    }

    fn closed(&self, _cause: &str) {}
}

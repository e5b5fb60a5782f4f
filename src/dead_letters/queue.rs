//! Operations on the queue of dead letters.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::DeadLetter;
use crate::base::deadline;
use crate::base::name::shown;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::{self, DEAD_QUEUE};
use crate::transport::{
    Broker, ConfirmOutcome, Delivery, LinkHandle, LinkSpec, NoSink, Publication, SendState, Sink,
};

/// The longest time in which the broker may return or confirm one message.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time for which one scan waits for another to end.
const SCAN_WAIT: Duration = Duration::from_secs(30);

/// The interval at which a scan checks whether one in another process has ended.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// An exclusive queue that serves as a lock: only one connection at a time can have it.
const LOCK_QUEUE: &str = "coney.dead-letters.turn";

/// The dead letters of all services on a broker: messages that failed for good.
///
/// A message is dead-lettered when its handler has failed on every attempt or ruled out another,
/// when it cannot be decoded, when there is no handler for it, or when workers died while they
/// handled it. Calls, which are not retried, are dead-lettered for the last three reasons too,
/// besides the error for their callers. A dead letter keeps its body and its properties; the
/// history of its failure is in the [`DeadLetter`].
///
/// Dead letters stay in their queue, in order, unless they are replayed or purged. While one of
/// these methods runs, it holds the dead letters that it has passed, so only one runs at a time:
/// another, in any process, waits at most 30 s and then fails with [`ErrorKind::Busy`]. If its
/// process dies, the broker requeues the dead letters. Each method scans the dead letters that
/// exist when it starts, with one round trip to the broker for each; the broker holds those that it
/// has passed, and they take no memory in this process. Over RabbitMQ they are scanned over the
/// [administration connection](crate::BrokerBuilder::admin_idle_timeout), so that nothing else waits
/// for it.
///
/// ```
/// use std::time::{Duration, Instant};
/// use coney::{Broker, DeadLetters, HandlerError, ServiceClient, ServiceServer};
///
/// let broker = Broker::memory();
/// let server = ServiceServer::builder(&broker, "mailer")
///     .handler("mail", |_: String| Err::<(), _>(HandlerError::new("no such user").do_not_retry()))
///     .start()?;
/// ServiceClient::new(&broker, "shop")?.send("mailer", "mail", "张三")?;
///
/// let dead = DeadLetters::open(&broker)?;
/// let deadline = Instant::now() + Duration::from_secs(10);
/// while dead.list(1)?.is_empty() && Instant::now() < deadline {
///     std::thread::sleep(Duration::from_millis(10)); // the handler runs meanwhile
/// }
/// let letter = dead.list(10)?.remove(0);
/// assert_eq!(letter.queue(), "service.mailer.request");
/// assert_eq!(letter.last_error(), Some("no such user"));
/// assert_eq!(letter.payload::<String>()?, "张三");
/// assert_eq!(dead.purge(|letter| letter.action() == Some("mail"))?, 1);
/// # Ok::<(), coney::Error>(())
/// ```
pub struct DeadLetters {
    broker: Broker,
}

/// The result of [`DeadLetters::replay`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// The number of dead letters that were sent back to their queues.
    pub sent: usize,
    /// The number of dead letters that stay, because their queues are gone, or because they are
    /// larger than this broker's `max_body`.
    pub unroutable: usize,
}

/// The next step of a scan after one dead letter.
enum Step {
    /// Keep the dead letter and go on.
    Keep,
    /// Go on: the dead letter is acknowledged.
    Gone,
    /// Keep the dead letter and end the scan.
    Stop,
}

impl DeadLetters {
    /// Declares the queue of dead letters, if it does not exist. Blocks until the broker has done
    /// so, at most 10 s.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Broker`] if the broker refuses, [`ErrorKind::TimedOut`] if it does
    /// not answer, [`ErrorKind::Connect`] if the administration connection cannot be made, and
    /// [`ErrorKind::Closed`] after the broker was closed.
    pub fn open(broker: &Broker) -> Result<Self> {
        let spec = LinkSpec::new(topology::for_dead_letters());
        let sink: Arc<dyn Sink> = Arc::new(NoSink);
        broker.open_for_queries(&spec, &sink, None)?.close();
        Ok(Self {
            broker: broker.clone(),
        })
    }

    /// Returns the oldest dead letters, at most `limit`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Busy`] if another scan runs for over 30 s, [`ErrorKind::TimedOut`]
    /// if the broker takes over 10 s for a step, [`ErrorKind::Connect`] or
    /// [`ErrorKind::ConnectionLost`] if the administration connection cannot be made or is lost, and
    /// [`ErrorKind::Closed`] after the broker was closed.
    pub fn list(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.find(|_| true, limit)
    }

    /// Returns the oldest dead letters for which `filter` returns true, at most `limit`, wherever
    /// they are in the queue.
    ///
    /// # Errors
    ///
    /// Fails as [`list`](DeadLetters::list) does.
    ///
    /// ```
    /// # use coney::{Broker, DeadLetters};
    /// let dead = DeadLetters::open(&Broker::memory())?;
    /// let letters = dead.find(|letter| letter.is_of("order-service"), 100)?;
    /// # assert!(letters.is_empty());
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn find(
        &self,
        mut filter: impl FnMut(&DeadLetter) -> bool,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let mut letters = Vec::new();
        if limit > 0 {
            self.scan(|letter, delivery| {
                if !filter(&letter) {
                    return Ok((Step::Keep, Some(delivery)));
                }
                letters.push(letter.without_large_body());
                let step = if letters.len() < limit {
                    Step::Keep
                } else {
                    Step::Stop
                };
                Ok((step, Some(delivery)))
            })?;
        }
        Ok(letters)
    }

    /// Returns the oldest dead letter with this message id.
    ///
    /// # Errors
    ///
    /// Fails as [`list`](DeadLetters::list) does.
    pub fn show(&self, message_id: &str) -> Result<Option<DeadLetter>> {
        let mut found = None;
        self.scan(|letter, delivery| {
            if letter.message_id() != Some(message_id) {
                return Ok((Step::Keep, Some(delivery)));
            }
            found = Some(letter.without_large_body());
            Ok((Step::Stop, Some(delivery)))
        })?;
        Ok(found)
    }

    /// Sends the dead letters for which `filter` returns true back to the queues in which they
    /// died, at most `per_second` per second, with all their attempts anew. A dead letter is
    /// deleted only when the broker has confirmed its copy. A call is then handled like a command:
    /// its caller no longer waits. A message that fails again is dead-lettered again.
    ///
    /// Blocks until all are sent. Other dead letters are held meanwhile, and RabbitMQ by default
    /// closes a channel that holds a message for 30 minutes: to replay many slowly, call this
    /// several times.
    ///
    /// # Errors
    ///
    /// Fails as [`list`](DeadLetters::list) does, and with [`ErrorKind::InvalidConfig`] for a rate
    /// of zero. Dead letters sent before the error stay sent.
    pub fn replay(
        &self,
        mut filter: impl FnMut(&DeadLetter) -> bool,
        per_second: u32,
    ) -> Result<ReplayReport> {
        if per_second == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "the rate of a replay is zero, so no dead letter would ever be sent; set at least 1",
            ));
        }
        let pace = Duration::from_secs(1) / per_second;
        let mut next = Instant::now();
        let mut replayed = ReplayReport::default();
        self.scan(|letter, delivery| {
            if !filter(&letter) {
                return Ok((Step::Keep, Some(delivery)));
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = next.max(Instant::now() - pace) + pace;
            if self.send_back(&letter)? {
                delivery.ack();
                replayed.sent += 1;
                return Ok((Step::Gone, None));
            }
            replayed.unroutable += 1;
            Ok((Step::Keep, Some(delivery)))
        })?;
        Ok(replayed)
    }

    /// Deletes the dead letters for which `filter` returns true; returns their number. They cannot
    /// be restored.
    ///
    /// # Errors
    ///
    /// Fails as [`list`](DeadLetters::list) does. Dead letters deleted before the error stay
    /// deleted.
    pub fn purge(&self, mut filter: impl FnMut(&DeadLetter) -> bool) -> Result<usize> {
        let mut purged = 0;
        self.scan(|letter, delivery| {
            if !filter(&letter) {
                return Ok((Step::Keep, Some(delivery)));
            }
            delivery.ack();
            purged += 1;
            Ok((Step::Gone, None))
        })?;
        Ok(purged)
    }

    /// Passes the dead letters to `look` one by one, the oldest first. Those that stay are requeued
    /// when the link ends, all at once and in order.
    fn scan(
        &self,
        mut look: impl FnMut(DeadLetter, Delivery) -> Result<(Step, Option<Delivery>)>,
    ) -> Result<()> {
        let lock_deadline = deadline::after(SCAN_WAIT);
        let Some(_scan) = self.broker.lock_dead_letters(lock_deadline) else {
            return Err(self.busy());
        };
        let handle = self.open_scan(lock_deadline)?;
        let mut left = None;
        while left != Some(0) {
            let deadline = deadline::after(STEP_TIMEOUT);
            let Some((delivery, behind)) = handle.get(DEAD_QUEUE, deadline)? else {
                break;
            };
            // Dead letters that arrive during the scan are left to the next one.
            left = Some(left.map_or(behind, |left| left - 1));
            let letter = DeadLetter::new(delivery.share_message());
            let (step, delivery) = look(letter, delivery)?;
            if let Some(delivery) = delivery {
                delivery.hold();
            }
            if matches!(step, Step::Stop) {
                break;
            }
        }
        // The acknowledged dead letters are deleted even if the program ends now.
        handle.flush(deadline::after(STEP_TIMEOUT))
    }

    /// Opens a link for one scan, which excludes scans on all other connections.
    fn open_scan(&self, deadline: Instant) -> Result<ScanLink> {
        let spec = LinkSpec::new(topology::for_dead_letters()).exclusive_queue(LOCK_QUEUE);
        let sink: Arc<dyn Sink> = Arc::new(NoSink);
        loop {
            match self.broker.open_for_queries(&spec, &sink, None) {
                Ok(handle) => return Ok(ScanLink(handle)),
                Err(error) if !error.to_string().contains("RESOURCE_LOCKED") => return Err(error),
                Err(_) if Instant::now() >= deadline => return Err(self.busy()),
                Err(_) => thread::sleep(LOCK_RETRY_INTERVAL),
            }
        }
    }

    fn busy(&self) -> Error {
        Error::new(
            ErrorKind::Busy,
            format!(
                "another thread or process has been scanning the dead letters of {} for over \
                 {SCAN_WAIT:?}; try again",
                self.broker.address()
            ),
        )
    }

    /// Sends a dead letter back to its queue. Returns false if the queue is gone or the message is
    /// too large.
    fn send_back(&self, letter: &DeadLetter) -> Result<bool> {
        let deadline = deadline::after(STEP_TIMEOUT);
        let mut publication = Publication {
            properties: letter.properties_as_new(),
            mandatory: true,
            send_state: Some(SendState::until(deadline).into()),
            ..Publication::new("", letter.queue(), letter.body().to_vec())
        };
        publication.properties.drop_unsendable();
        if letter.body_is_missing() {
            log::warn!(
                target: "coney::dead_letters",
                "a dead letter of {} is not replayed: its body is larger than this connection \
                 accepts (max_body)",
                shown(letter.queue())
            );
            return Ok(false);
        }
        let failed = |text: &str| {
            let queue = letter.queue();
            format!("a dead letter cannot be sent back to {queue:?}: {text}")
        };
        let confirmation = self.broker.publish_confirmed(publication, deadline)?;
        match confirmation.wait(deadline) {
            Some(ConfirmOutcome::Confirmed) => Ok(true),
            Some(ConfirmOutcome::Returned(_)) => Ok(false),
            Some(ConfirmOutcome::TooLarge(_)) => Ok(false),
            Some(ConfirmOutcome::Refused(reason)) => Err(Error::new(
                ErrorKind::Broker,
                failed(&format!("refused: {reason}")),
            )),
            Some(ConfirmOutcome::Lost(cause)) => {
                Err(Error::new(ErrorKind::ConnectionLost, failed(&cause)))
            }
            Some(ConfirmOutcome::Dropped) => Err(Error::new(
                ErrorKind::Closed,
                failed("the broker was closed"),
            )),
            None => Err(Error::timed_out(
                Phase::Confirm,
                failed("it was not confirmed in time"),
            )),
        }
    }
}

/// A link that is closed at the end of its scan.
struct ScanLink(Arc<dyn LinkHandle>);

impl Deref for ScanLink {
    type Target = dyn LinkHandle;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Drop for ScanLink {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

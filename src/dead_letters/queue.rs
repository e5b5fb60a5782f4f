use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::DeadLetter;
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::{self, DEAD_QUEUE};
use crate::transport::{
    Broker, ConfirmOutcome, Delivery, LinkHandle, LinkSpec, NoSink, Publication, SendState,
};

/// How long the broker may take over one message.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which one look waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// The time for which it waits before it tries again whether another process has finished.
const TURN_INTERVAL: Duration = Duration::from_millis(100);

/// A queue that one connection at a time can have.
const TURN_QUEUE: &str = "coney.dead-letters.turn";

/// The dead letters of every service on a broker: messages that failed for good.
///
/// A message gets there when its handler has failed on every attempt or said
/// that there is no point in another, when it cannot be decoded, when there is
/// no handler for it, or when its workers died on it. Of calls, which are not
/// tried again, the last three are kept too, besides the error their callers get. A
/// letter keeps its body and its properties; what is known about its end is in the [`DeadLetter`].
///
/// The letters stay in their queue, in order, unless they are replayed or purged.
/// While one of these methods runs, it holds the letters it has passed, so one runs at a
/// time: another, of another process too, waits for its turn, at most 30 s, and fails with
/// [`ErrorKind::Busy`] then. If one dies, the broker puts the letters back. Each looks at all
/// the letters there are when it starts, at one round trip to the broker each; what it
/// passes is held by the broker and takes no memory here. No threads of its own.
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
/// let patience = Instant::now() + Duration::from_secs(10);
/// while dead.list(1)?.is_empty() && Instant::now() < patience {
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

/// What [`DeadLetters::replay`] has done.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// So many are back in the queues they came from.
    pub sent: usize,
    /// So many are dead letters still, because their queues are gone, or they are
    /// larger than this broker's `max_body`.
    pub unroutable: usize,
}

/// What to do with a letter that has been looked at.
enum Step {
    /// It stays.
    Keep,
    /// It has been dealt with.
    Gone,
    /// It stays, and the rest is not looked at.
    Stop,
}

impl DeadLetters {
    /// Declares the queue of dead letters, if it is not there. Blocks until the broker has done it, at most 10 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`] if the broker refuses, [`ErrorKind::TimedOut`] if it
    /// does not answer, [`ErrorKind::Closed`] after the broker was closed.
    pub fn open(broker: &Broker) -> Result<Self> {
        let spec = LinkSpec::new(topology::for_dead_letters());
        broker.open(spec, Arc::new(NoSink))?.close();
        Ok(Self {
            broker: broker.clone(),
        })
    }

    /// The oldest letters, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if another look goes on for over 30 s,
    /// [`ErrorKind::TimedOut`] if the broker takes over 10 s for a step,
    /// [`ErrorKind::ConnectionLost`] and [`ErrorKind::Closed`].
    pub fn list(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.find(|_| true, limit)
    }

    /// The oldest letters that `filter` picks, at most `limit`, wherever they are among the
    /// others.
    ///
    /// # Errors
    ///
    /// As [`list`](DeadLetters::list).
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

    /// The oldest letter with this message id.
    ///
    /// # Errors
    ///
    /// As [`list`](DeadLetters::list).
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

    /// Sends the letters that `filter` picks back to the queues they were taken
    /// from, at most `per_second` a second, for all their attempts anew. A letter
    /// goes from here only when the broker has confirmed that it is there. What was a
    /// call is carried out like a command: its caller waits no more. What fails again
    /// comes back here.
    ///
    /// Blocks until all are sent. Letters that are not picked are held meanwhile, and
    /// RabbitMQ by default closes a channel that holds a message for 30 minutes: replay
    /// many slowly in several turns.
    ///
    /// # Errors
    ///
    /// As [`list`](DeadLetters::list), and [`ErrorKind::InvalidConfig`] for a rate
    /// of zero. What was sent before the error has been sent.
    pub fn replay(
        &self,
        mut filter: impl FnMut(&DeadLetter) -> bool,
        per_second: u32,
    ) -> Result<ReplayReport> {
        if per_second == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "at a rate of zero no dead letter would ever be replayed",
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

    /// Deletes the letters that `filter` picks; returns how many. There is no way
    /// back.
    ///
    /// # Errors
    ///
    /// As [`list`](DeadLetters::list). What was deleted before the error is gone.
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

    /// Looks at the letters there are, one by one and the oldest first. What stays goes back
    /// when the link ends, all at once and in order.
    fn scan(
        &self,
        mut look: impl FnMut(DeadLetter, Delivery) -> Result<(Step, Option<Delivery>)>,
    ) -> Result<()> {
        let turn_deadline = deadline::after(TURN_TIMEOUT);
        let Some(_turn) = self.broker.take_turn(turn_deadline) else {
            return Err(self.busy());
        };
        let handle = self.open_scan(turn_deadline)?;
        let mut left = None;
        while left != Some(0) {
            let deadline = deadline::after(STEP_TIMEOUT);
            let Some((delivery, behind)) = handle.get(DEAD_QUEUE, deadline)? else {
                break;
            };
            // Those that come while it looks are for the next look.
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
        // What has been dealt with is gone, also if the program ends now.
        handle.flush(deadline::after(STEP_TIMEOUT))
    }

    /// Opens a link for one look, which no other connection can do meanwhile.
    fn open_scan(&self, deadline: Instant) -> Result<ScanLink> {
        loop {
            let spec = LinkSpec::new(topology::for_dead_letters()).exclusively(TURN_QUEUE);
            match self.broker.open(spec, Arc::new(NoSink)) {
                Ok(handle) => return Ok(ScanLink(handle)),
                Err(error) if !error.to_string().contains("RESOURCE_LOCKED") => return Err(error),
                Err(_) if Instant::now() >= deadline => return Err(self.busy()),
                Err(_) => thread::sleep(TURN_INTERVAL),
            }
        }
    }

    fn busy(&self) -> Error {
        Error::new(
            ErrorKind::Busy,
            format!(
                "the dead letters of {} are being looked through by another for over \
                 {TURN_TIMEOUT:?}; try again",
                self.broker.address()
            ),
        )
    }

    /// False if its queue is gone.
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
                "a dead letter stays: its body is larger than this connection takes (max_body)"
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

/// A link that ends with the look it is for.
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

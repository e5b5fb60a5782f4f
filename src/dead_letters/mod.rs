//! What services gave up: a look into the queue of dead letters, and ways out.

mod letter;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub use self::letter::DeadLetter;
use crate::deadline;
use crate::error::{Error, ErrorKind, Phase, Result};
use crate::topology::{self, DEAD_QUEUE};
use crate::transport::{Broker, Delivery, Fate, LinkSpec, NoSink, Publication, Ticket, Wire};

/// How long the broker may take over one message.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How many messages that are not wanted are held at a time while those behind
/// them are looked at. Their bodies are not held.
const MOST_HELD: usize = 100_000;

/// The dead letters of every service on a broker: messages that failed for good.
///
/// A message gets there when its handler has failed on every attempt or said
/// that there is no point in another, when it cannot be decoded, when there is
/// no handler for it, or when its workers died on it. Of calls, which are not
/// tried again, the last three are kept too, besides the error their callers get. A
/// letter keeps its body and its properties; what is known about its end is in the [`DeadLetter`].
///
/// The letters stay in their queue, in order, unless they are replayed or purged.
/// While one of these methods runs, it holds the letters it has passed, and
/// another that runs meanwhile does not see them; if it dies, the broker puts
/// them back. Each looks at the letters there are when it starts, at one round
/// trip to the broker each, and stops after 100,000 that it does not want. No
/// threads of its own.
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
    wire: Arc<dyn Wire>,
}

/// What [`DeadLetters::replay`] has done.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
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
    /// Declares the queue of dead letters, if it is not there, and opens a link
    /// to it. Blocks until the broker has done it, at most 10 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`] if the broker refuses, [`ErrorKind::TimedOut`] if it
    /// does not answer, [`ErrorKind::Closed`] after the broker was closed.
    pub fn open(broker: &Broker) -> Result<Self> {
        let spec = LinkSpec::new(topology::for_dead_letters());
        Ok(Self {
            wire: broker.open(spec, Arc::new(NoSink))?,
            broker: broker.clone(),
        })
    }

    /// The oldest letters, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`] if the broker takes over 10 s for a step,
    /// [`ErrorKind::ConnectionLost`] and [`ErrorKind::Closed`].
    pub fn list(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        let mut letters = Vec::new();
        if limit > 0 {
            self.scan(|letter, delivery| {
                letters.push(letter);
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
            found = Some(letter);
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
    ) -> Result<Replayed> {
        if per_second == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "at a rate of zero no dead letter would ever be replayed",
            ));
        }
        let pace = Duration::from_secs(1) / per_second;
        let mut next = Instant::now();
        let mut replayed = Replayed::default();
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

    /// Looks at the letters there are, the oldest first. Those that stay go back
    /// to their places at the end, however it ends.
    fn scan(
        &self,
        mut look: impl FnMut(DeadLetter, Delivery) -> Result<(Step, Option<Delivery>)>,
    ) -> Result<()> {
        let mut held = Held(Vec::new());
        let mut left = None;
        while left != Some(0) && held.0.len() < MOST_HELD {
            let deadline = deadline::after(STEP_TIMEOUT);
            let Some((delivery, behind)) = self.wire.get(DEAD_QUEUE, deadline)? else {
                return Ok(());
            };
            left = Some(left.map_or(behind, |left| left - 1));
            let letter = DeadLetter::new(delivery.share_message());
            let (step, delivery) = look(letter, delivery)?;
            held.0.extend(delivery.map(Delivery::without_message));
            if matches!(step, Step::Stop) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// False if its queue is gone.
    fn send_back(&self, letter: &DeadLetter) -> Result<bool> {
        let deadline = deadline::after(STEP_TIMEOUT);
        let mut publication = Publication {
            properties: letter.properties_as_new(),
            mandatory: true,
            ticket: Some(Ticket::until(deadline).into()),
            ..Publication::new("", letter.queue(), letter.body().to_vec())
        };
        publication.drop_unsendable();
        if let Err(fault) = publication.check(self.broker.max_body()) {
            log::warn!(target: "coney::dead_letters", "a dead letter stays: {fault}");
            return Ok(false);
        }
        let failed = |text: &str| {
            let queue = letter.queue();
            format!("a dead letter cannot be sent back to {queue:?}: {text}")
        };
        let confirmation = self.broker.publish_confirmed(publication, deadline)?;
        match confirmation.wait(deadline) {
            Some(Fate::Confirmed) => Ok(true),
            Some(Fate::Returned(_)) => Ok(false),
            Some(Fate::Refused) => Err(Error::new(
                ErrorKind::Broker,
                failed("the broker refuses it; is the queue full?"),
            )),
            Some(Fate::Lost(cause)) => Err(Error::new(ErrorKind::ConnectionLost, failed(&cause))),
            Some(Fate::Dropped) => Err(Error::new(
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

/// Letters that were looked at and stay. They go back the last first, so that
/// the broker finds the place of each at the head of the queue.
struct Held(Vec<Delivery>);

impl Drop for Held {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        self.wire.close();
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

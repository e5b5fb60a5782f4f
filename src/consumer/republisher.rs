//! Where messages go that are not done with: back for another attempt, or among
//! the dead letters. Each move is confirmed by the broker before the original is
//! acknowledged, so a message may be doubled by a fault, and never lost.

use super::options::POSTPONE_FOR;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::failure::{Failure, Reason, describe};
use super::local_retry::LocalRetry;
use super::republish_confirms::{MOVE_TIMEOUT, PendingRepublish};
use super::tracked::Tracked;
use super::{ConsumedQueue, HandlerError, LocalAttempts};
use crate::base::deadline;
use crate::message::Body;
use crate::topology::DEAD_EXCHANGE;
use crate::transport::x_death::{
    ATTEMPTS, Death, FIRST_ERROR, GIVEN_UP, LAST_ERROR, LEFT_OUT, REDELIVERIES,
};
use crate::transport::{Broker, ConfirmOutcome, Delivery, Publication, SendState};

/// What a quorum queue counts itself.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// How much of an error a header holds, in bytes.
pub(super) const LONGEST_ERROR: usize = 1_000;

/// The time for which a worker waits after it could not dead-letter a message with a large body.
const OVERSIZED_AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct Republisher {
    pub(crate) broker: Broker,
    pub(crate) queue: ConsumedQueue,
    pub(crate) retries: Retries,
    pub(crate) republishes: Sender<PendingRepublish>,
}

/// Where a message waits that has failed, and how long before its second attempt, its
/// third, and so on.
pub(crate) enum Retries {
    /// In a queue of the broker for each delay: it holds nothing else up.
    Queued {
        delays: Vec<Duration>,
        /// The delay of the queue for what cannot be processed, or dead-lettered, now.
        parking: Duration,
    },
    /// Here, unacknowledged: where its place in the queue matters, or the queue goes
    /// with this process.
    Held {
        delays: Vec<Duration>,
        parking: Duration,
    },
}

impl Retries {
    fn delays(&self) -> &[Duration] {
        let (Self::Queued { delays, .. } | Self::Held { delays, .. }) = self;
        delays
    }

    fn parking(&self) -> Duration {
        let (Self::Queued { parking, .. } | Self::Held { parking, .. }) = self;
        *parking
    }

    fn are_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

impl Republisher {
    /// The queues in which messages wait for another attempt; none if they wait here.
    pub(super) fn queues_of_waiting(&self) -> Vec<String> {
        match &self.retries {
            Retries::Held { .. } => Vec::new(),
            Retries::Queued { delays, parking } => {
                let delays = delays.iter().chain([parking]);
                let mut queues: Vec<_> = delays.map(|it| self.queue.retry_queue(*it)).collect();
                queues.push(self.queue.suspect_queue());
                queues.dedup();
                queues
            }
        }
    }

    /// Was it delivered before, by the queue's mark or by our count?
    pub(super) fn was_redelivered(&self, delivery: &Delivery) -> bool {
        let headers = &delivery.message().properties.headers;
        delivery.is_redelivered() || headers.int(REDELIVERIES).is_some_and(|count| count > 0)
    }

    /// How many attempts have failed, before it came here and since.
    pub(super) fn failed_attempts(&self, delivery: &Delivery, attempt: &LocalAttempts) -> usize {
        let before = delivery.message().properties.headers.int(ATTEMPTS);
        let before = before.map_or(0, |attempts| usize::try_from(attempts).unwrap_or(0));
        before.saturating_add(attempt.failed)
    }

    /// Moves a message that may be what its worker died of to the queue of suspects,
    /// where it is handled alone.
    pub(super) fn suspect(&self, delivery: Tracked) {
        let mut copy = self.copy(delivery.delivery(), "", self.queue.suspect_queue());
        copy.properties.expiration = delivery.message().properties.expiration;
        let headers = &mut copy.properties.headers;
        let before = headers.int(REDELIVERIES).unwrap_or(0);
        headers.insert(REDELIVERIES, before.saturating_add(1));
        self.move_to(delivery, copy, None, None);
    }

    /// Puts a message that was fetched and not begun back into its queue, as new: it goes
    /// to another worker, and nothing counts against it.
    ///
    /// Blocks at most until `deadline`; what is too late goes back by itself, and counts as
    /// delivered.
    pub(crate) fn give_back(&self, delivery: Tracked, deadline: Instant) {
        let mut copy = self.copy(delivery.delivery(), "", self.queue.queue.clone());
        copy.properties.expiration = delivery.message().properties.expiration;
        if delivery.delivery().is_redelivered() {
            // Another worker may have begun with it.
            let headers = &mut copy.properties.headers;
            let before = headers.int(REDELIVERIES).unwrap_or(0);
            headers.insert(REDELIVERIES, before.max(1));
        }
        let soon = deadline::after(MOVE_TIMEOUT);
        self.move_until(deadline.min(soon), delivery, copy, None, None);
    }

    /// After a one-way message's handler has failed: another attempt later, or
    /// the end.
    pub(super) fn failed(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        error: HandlerError,
    ) -> Option<LocalRetry> {
        let before = self.failed_attempts(delivery.delivery(), &attempt);
        let delay = match self.retries.delays().get(before) {
            Some(&delay) if error.may_be_retried() => delay,
            _ => {
                let reason = match error.may_be_retried() {
                    true => Reason::RetriesExhausted,
                    false if error.is_undecodable() => Reason::Undecodable,
                    false => Reason::Rejected,
                };
                let failure = Failure::new(reason, error.message());
                self.dead_letter(delivery, &failure, &attempt, None);
                return None;
            }
        };
        log::info!(
            target: "coney::worker",
            "{}: attempt {} at {} failed, the next is in {delay:?}: {}",
            self.queue.owner, before + 1, describe(delivery.message()),
            clip(error.message(), LONGEST_ERROR).escape_debug()
        );
        if self.retries.are_held() {
            let error = clip(error.message(), LONGEST_ERROR).to_owned();
            let attempt = LocalAttempts {
                failed: attempt.failed + 1,
                first_error: attempt.first_error.or(Some(error)),
            };
            return Some(LocalRetry {
                delivery,
                attempt,
                delay: jittered(delay),
            });
        }
        let mut copy = self.copy(delivery.delivery(), "", self.queue.retry_queue(delay));
        copy.properties.expiration = Some(jittered(delay));
        let headers = &mut copy.properties.headers;
        Death::forget(headers);
        headers.remove(REDELIVERIES); // its worker has survived it
        headers.insert(ATTEMPTS, i64::try_from(before + 1).unwrap_or(i64::MAX));
        if headers.text(FIRST_ERROR).is_none() {
            headers.insert(FIRST_ERROR, clip(error.message(), self.longest_error()));
        }
        self.move_to(delivery, copy, None, None);
        None
    }

    /// Another worker is at the same message: to be looked at again later.
    pub(super) fn postpone(&self, delivery: Tracked, attempt: LocalAttempts) -> Option<LocalRetry> {
        self.put_off(delivery, attempt, POSTPONE_FOR)
    }

    /// It cannot be processed now, whatever is in it: to be looked at again after the
    /// longest of the delays. Nothing ran, so no attempt is used up.
    pub(super) fn park(&self, delivery: Tracked, attempt: LocalAttempts) -> Option<LocalRetry> {
        self.put_off(delivery, attempt, self.retries.parking())
    }

    fn put_off(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        delay: Duration,
    ) -> Option<LocalRetry> {
        if self.retries.are_held() {
            return Some(LocalRetry {
                delivery,
                attempt,
                delay,
            });
        }
        let mut copy = self.copy(delivery.delivery(), "", self.queue.retry_queue(delay));
        Death::forget(&mut copy.properties.headers);
        self.move_to(delivery, copy, None, None);
        None
    }

    /// Keeps a message among the dead letters, and then sends the reply.
    pub(super) fn dead_letter(
        &self,
        delivery: Tracked,
        failure: &Failure,
        attempt: &LocalAttempts,
        reply: Option<Publication>,
    ) {
        self.log_dead_letter(&delivery, failure);
        let (mut copy, death) = self.dead_copy(&delivery, failure, attempt);
        let parked = self.given_up(&copy, failure, death.count);
        death.add(&mut copy.properties.headers);
        self.move_to(delivery, copy, reply, parked);
    }

    /// Keeps a message among the dead letters whose body is larger than `max_body`. It goes
    /// out over a connection of its own, so it holds up nothing but this worker.
    pub(super) fn dead_letter_oversized(
        &self,
        delivery: Tracked,
        failure: &Failure,
        body: Arc<Vec<u8>>,
        reply: Option<Publication>,
    ) {
        self.log_dead_letter(&delivery, failure);
        let (mut copy, death) = self.dead_copy(&delivery, failure, &LocalAttempts::default());
        copy.body = Body::from_shared(body);
        copy.properties.headers.remove(LEFT_OUT);
        death.add(&mut copy.properties.headers);
        let fault = match self.broker.publish_oversized(copy) {
            Ok(ConfirmOutcome::Confirmed) => return delivery.done(reply),
            Ok(outcome) => format!("{outcome:?}"),
            Err(error) => error.to_string(),
        };
        log::error!(
            target: "coney::worker",
            "{}: a message cannot be dead-lettered with its body, and goes back into its queue: \
             {fault}",
            self.queue.owner
        );
        thread::sleep(OVERSIZED_AGAIN);
    }

    fn log_dead_letter(&self, delivery: &Tracked, failure: &Failure) {
        log::warn!(
            target: "coney::worker",
            "{}: {} is dead-lettered ({}): {}",
            self.queue.owner, describe(delivery.message()), failure.reason.as_str(),
            clip(&failure.error, LONGEST_ERROR).escape_debug()
        );
    }

    /// The copy for the dead letters, and the entry that its `x-death` still lacks.
    fn dead_copy(
        &self,
        delivery: &Tracked,
        failure: &Failure,
        attempt: &LocalAttempts,
    ) -> (Publication, Death) {
        let queue = self.queue.queue.clone();
        let message = delivery.message();
        let mut copy = self.copy(delivery.delivery(), DEAD_EXCHANGE, queue.clone());
        let longest = self.longest_error();
        let headers = &mut copy.properties.headers;
        headers.remove(GIVEN_UP);
        headers.remove(ATTEMPTS);
        let failed = self.failed_attempts(delivery.delivery(), attempt);
        let attempts = i64::try_from(failed).unwrap_or(i64::MAX - 1);
        let given_up_before = message.properties.headers.get(GIVEN_UP).is_some();
        let attempts = match failure.reason {
            _ if given_up_before => attempts.max(1),
            Reason::Rejected | Reason::RetriesExhausted => attempts.saturating_add(1),
            _ => attempts.max(1),
        };
        Death::forget(headers);
        if headers.text(FIRST_ERROR).is_none() {
            let first = attempt.first_error.as_deref().unwrap_or(&failure.error);
            headers.insert(FIRST_ERROR, clip(first, longest));
        }
        headers.insert(LAST_ERROR, clip(&failure.error, longest));
        if let Some(oversized) = message.oversized() {
            let what = format!("the body of {} bytes", oversized.bytes());
            headers.insert(LEFT_OUT, what.as_str());
        }
        let death = Death {
            queue,
            reason: failure.reason.as_str().to_owned(),
            exchange: message.exchange.clone().into_owned(),
            routing_key: message.routing_key.clone(),
            count: attempts,
            time: deadline::unix_millis_after(Duration::ZERO) / 1_000,
        };
        (copy, death)
    }

    /// The copy to park if the dead letters do not take the message: it comes again after
    /// the longest delay, is not handled again, and is tried among the dead letters once
    /// more. So a full queue of dead letters takes no place among the fetched messages.
    fn given_up(
        &self,
        copy: &Publication,
        failure: &Failure,
        attempts: i64,
    ) -> Option<Publication> {
        let Retries::Queued { parking, .. } = &self.retries else {
            return None;
        };
        let mut parked = copy.clone();
        parked.exchange = "".into();
        parked.routing_key = self.queue.retry_queue(*parking);
        let headers = &mut parked.properties.headers;
        headers.insert(GIVEN_UP, failure.reason.as_str());
        headers.insert(ATTEMPTS, attempts);
        Some(parked)
    }

    /// The reason why a message was given up that the dead letters did not take then.
    pub(super) fn was_given_up(&self, delivery: &Delivery) -> Option<Failure> {
        let headers = &delivery.message().properties.headers;
        let reason = Reason::parse(headers.text(GIVEN_UP)?)?;
        let error = headers.text(LAST_ERROR).unwrap_or_default();
        Some(Failure::new(reason, error))
    }

    /// Publishes the copy. Once the broker has it, another thread replies and
    /// acknowledges the original.
    fn move_to(
        &self,
        delivery: Tracked,
        copy: Publication,
        reply: Option<Publication>,
        parked: Option<Publication>,
    ) {
        let deadline = deadline::after(MOVE_TIMEOUT);
        self.move_until(deadline, delivery, copy, reply, parked);
    }

    fn move_until(
        &self,
        deadline: Instant,
        delivery: Tracked,
        mut copy: Publication,
        reply: Option<Publication>,
        parked: Option<Publication>,
    ) {
        let to = copy.routing_key.clone();
        copy.send_state = Some(SendState::until(deadline).into());
        let confirmation = self.broker.publish_confirmed(copy, deadline);
        // Fails when the server has given up waiting for its workers; then the
        // delivery goes back as it is dropped.
        let _ = self.republishes.send(PendingRepublish {
            delivery,
            to,
            reply,
            parked,
            confirmation,
            deadline,
        });
    }
}

/// As much of an error as a header holds.
fn clip(error: &str, longest: usize) -> &str {
    crate::base::text::prefix(error, longest)
}

/// Up to a fifth less, so that what failed together is not tried again together.
fn jittered(delay: Duration) -> Duration {
    delay
        .mul_f64(1.0 - 0.2 * fastrand::f64())
        .max(Duration::from_millis(1))
}

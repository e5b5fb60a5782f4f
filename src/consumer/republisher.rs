//! Republishing: copies of messages go to a retry queue for another attempt, or to the dead
//! letters. The broker confirms each copy before the original is acknowledged, so a fault may
//! duplicate a message, but never lose it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::failure::{MessageFailure, Reason, describe};
use super::local_retry::LocalRetry;
use super::options::POSTPONE_DELAY;
use super::republish_confirms::{PendingRepublish, REPUBLISH_TIMEOUT, SecondCopy};
use super::retries::Retries;
use super::tracked::Tracked;
use super::{ConsumedQueue, HandlerError, LocalAttempts};
use crate::base::deadline;
use crate::base::text::prefix;
use crate::message::Body;
use crate::topology::DEAD_EXCHANGE;
use crate::transport::x_death::{
    ATTEMPTS, COPIES, Death, FIRST_ERROR, GIVEN_UP, LAST_ERROR, LEFT_OUT, REDELIVERIES,
};
use crate::transport::{Broker, ConfirmOutcome, Delivery, Publication, SendState};

/// The header in which a quorum queue counts the deliveries of a message.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The largest part of an error that a header holds, in bytes.
pub(super) const MAX_ERROR_BYTES: usize = 1_000;

/// The time for which a worker waits before it requeues an oversized message that cannot be
/// dead-lettered.
const OVERSIZED_FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// The republishing of one queue's messages.
pub(crate) struct Republisher {
    pub(crate) broker: Broker,
    pub(crate) queue: ConsumedQueue,
    pub(crate) retries: Retries,
    pub(crate) republishes: Sender<PendingRepublish>,
}

impl Republisher {
    /// Returns the queues in which messages wait for another attempt; none if they wait in this
    /// process.
    pub(super) fn retry_queues(&self) -> BTreeSet<String> {
        match &self.retries {
            Retries::Held { .. } => BTreeSet::new(),
            Retries::Queued { delays, parking } => {
                let delays = delays.iter().chain([parking]);
                let queues = delays.map(|delay| self.queue.retry_queue(*delay));
                queues.chain([self.queue.suspect_queue()]).collect()
            }
        }
    }

    /// Returns true if the message was delivered before, by the broker's redelivered flag or by the
    /// count in its headers.
    pub(super) fn was_redelivered(&self, delivery: &Delivery) -> bool {
        let headers = &delivery.message().properties.headers;
        delivery.is_redelivered() || headers.int(REDELIVERIES).is_some_and(|count| count > 0)
    }

    /// Returns the number of failed attempts, those before this delivery included.
    pub(super) fn failed_attempts(&self, delivery: &Delivery, attempt: &LocalAttempts) -> usize {
        let before = delivery.message().properties.headers.int(ATTEMPTS);
        let before = before.map_or(0, |attempts| usize::try_from(attempts).unwrap_or(0));
        before.saturating_add(attempt.failed)
    }

    /// Moves a message that may be poison to the suspect queue, where it is handled alone.
    pub(super) fn suspect(&self, delivery: Tracked) {
        let mut copy = self.copy(delivery.delivery(), "", self.queue.suspect_queue());
        copy.properties.expiration = delivery.message().properties.expiration;
        let headers = &mut copy.properties.headers;
        let before = headers.int(REDELIVERIES).unwrap_or(0);
        headers.insert(REDELIVERIES, before.saturating_add(1));
        self.republish(delivery, copy, None, None);
    }

    /// Republishes a message that was fetched and not started to its own queue, as new: another
    /// worker gets it, and it does not count as redelivered.
    ///
    /// Blocks at most until `deadline`. A message that is not republished by then is requeued, and
    /// counts as redelivered.
    pub(crate) fn give_back(&self, delivery: Tracked, deadline: Instant) {
        let mut copy = self.copy(delivery.delivery(), "", self.queue.queue.clone());
        copy.properties.expiration = delivery.message().properties.expiration;
        if delivery.delivery().is_redelivered() {
            // Another worker may have started it.
            let headers = &mut copy.properties.headers;
            let before = headers.int(REDELIVERIES).unwrap_or(0);
            headers.insert(REDELIVERIES, before.max(1));
        }
        let limit = deadline::after(REPUBLISH_TIMEOUT);
        self.republish_until(deadline.min(limit), delivery, copy, None, None);
    }

    /// Schedules the next attempt of a one-way message whose handler has failed, or dead-letters
    /// the message.
    pub(super) fn failed(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        error: HandlerError,
    ) -> Option<LocalRetry> {
        let before = self.failed_attempts(delivery.delivery(), &attempt);
        let delay = match self.retries.delays().get(before) {
            Some(&delay) if error.is_retryable() => delay,
            _ => {
                let reason = match error.is_retryable() {
                    true => Reason::RetriesExhausted,
                    false if error.is_undecodable() => Reason::Undecodable,
                    false => Reason::Rejected,
                };
                let failure = MessageFailure::new(reason, error.message());
                self.dead_letter(delivery, &failure, &attempt, None);
                return None;
            }
        };
        log::info!(
            target: "coney::worker",
            "{}: attempt {} at {} failed, the next is in {delay:?}: {}",
            self.queue.owner, before + 1, describe(delivery.message()),
            clip(error.message(), MAX_ERROR_BYTES).escape_debug()
        );
        if self.retries.are_held() {
            let error = clip(error.message(), MAX_ERROR_BYTES).to_owned();
            let attempt = LocalAttempts {
                failed: attempt.failed + 1,
                refused: 0,
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
        headers.remove(REDELIVERIES); // the worker has survived the attempt
        headers.insert(ATTEMPTS, i64::try_from(before + 1).unwrap_or(i64::MAX));
        if headers.text(FIRST_ERROR).is_none() {
            headers.insert(FIRST_ERROR, clip(error.message(), self.max_error_bytes()));
        }
        let second = self.stand_in_copy(&copy, delay);
        self.republish(delivery, copy, None, second);
        None
    }

    /// Schedules a message for later that another worker is handling now.
    pub(super) fn postpone(&self, delivery: Tracked, attempt: LocalAttempts) -> Option<LocalRetry> {
        self.put_off(delivery, attempt, POSTPONE_DELAY)
    }

    /// Schedules a message that cannot be processed now for after the longest of the delays.
    /// Nothing ran, so no attempt is used up.
    pub(super) fn park(&self, delivery: Tracked, attempt: LocalAttempts) -> Option<LocalRetry> {
        self.put_off(delivery, attempt, self.retries.parking())
    }

    /// Schedules a message for later whose handler refused it as busy. Nothing was done, so no
    /// attempt is used up. The delay grows with the number of times that the message was
    /// republished, or refused in this process, so that a handler that stays busy is run rarely.
    pub(super) fn refused(
        &self,
        delivery: Tracked,
        mut attempt: LocalAttempts,
        after: Duration,
    ) -> Option<LocalRetry> {
        let copies = delivery.message().properties.headers.int(COPIES);
        let copies = copies.map_or(0, |copies| usize::try_from(copies).unwrap_or(0));
        let delay = self
            .retries
            .refusal_delay(after, copies.saturating_add(attempt.refused));
        attempt.refused += 1;
        self.put_off(delivery, attempt, delay)
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
        let second = self.stand_in_copy(&copy, delay);
        self.republish(delivery, copy, None, second);
        None
    }

    /// Returns the copy to publish if the retry queue with `delay` does not take the first one. It
    /// waits there as long as it would have here, unless the other delay is shorter.
    pub(super) fn stand_in_copy(&self, copy: &Publication, delay: Duration) -> Option<SecondCopy> {
        let other = self.retries.stand_in(delay)?;
        let mut second = copy.clone();
        second.routing_key = self.queue.retry_queue(other);
        second.properties.expiration.get_or_insert(delay);
        Some(SecondCopy::Retry(second))
    }

    /// Publishes a message to the dead letters, and then sends the reply.
    pub(super) fn dead_letter(
        &self,
        delivery: Tracked,
        failure: &MessageFailure,
        attempt: &LocalAttempts,
        reply: Option<Publication>,
    ) {
        self.log_dead_letter(&delivery, failure);
        let (mut copy, death) = self.dead_copy(&delivery, failure, attempt);
        let parked = self.parked_copy(&copy, failure, death.count);
        death.add(&mut copy.properties.headers);
        self.republish(delivery, copy, reply, parked.map(SecondCopy::Parked));
    }

    /// Publishes a message whose body is larger than `max_body` to the dead letters, and then sends
    /// the reply. A separate connection is used, so only this worker is blocked.
    pub(super) fn dead_letter_oversized(
        &self,
        delivery: Tracked,
        failure: &MessageFailure,
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
            "{}: an oversized message cannot be dead-lettered and is requeued: {fault}",
            self.queue.owner
        );
        thread::sleep(OVERSIZED_FAILURE_PAUSE);
        drop(delivery); // requeues it
    }

    fn log_dead_letter(&self, delivery: &Tracked, failure: &MessageFailure) {
        log::warn!(
            target: "coney::worker",
            "{}: {} is dead-lettered ({}): {}",
            self.queue.owner, describe(delivery.message()), failure.reason.as_str(),
            clip(&failure.error, MAX_ERROR_BYTES).escape_debug()
        );
    }

    /// Returns the copy for the dead letters, and the entry to be added to its `x-death`.
    fn dead_copy(
        &self,
        delivery: &Tracked,
        failure: &MessageFailure,
        attempt: &LocalAttempts,
    ) -> (Publication, Death) {
        let queue = self.queue.queue.clone();
        let message = delivery.message();
        let mut copy = self.copy(delivery.delivery(), DEAD_EXCHANGE, queue.clone());
        let max_error = self.max_error_bytes();
        let headers = &mut copy.properties.headers;
        headers.remove(GIVEN_UP);
        headers.remove(ATTEMPTS);
        let failed = self.failed_attempts(delivery.delivery(), attempt);
        let attempts = i64::try_from(failed).unwrap_or(i64::MAX - 1);
        let was_parked = message.properties.headers.get(GIVEN_UP).is_some();
        let attempts = match failure.reason {
            _ if was_parked => attempts.max(1),
            Reason::Rejected | Reason::RetriesExhausted => attempts.saturating_add(1),
            _ => attempts.max(1),
        };
        Death::forget(headers);
        if headers.text(FIRST_ERROR).is_none() {
            let first = attempt.first_error.as_deref().unwrap_or(&failure.error);
            headers.insert(FIRST_ERROR, clip(first, max_error));
        }
        headers.insert(LAST_ERROR, clip(&failure.error, max_error));
        if let Some(oversized) = message.oversized() {
            let left_out = format!("the body of {} bytes", oversized.bytes());
            headers.insert(LEFT_OUT, left_out.as_str());
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

    /// Returns the copy to park if the message cannot be dead-lettered: it comes back after the
    /// longest delay, is not handled again, and is dead-lettered in a new attempt. So a full
    /// dead-letter queue does not use up the prefetch.
    fn parked_copy(
        &self,
        copy: &Publication,
        failure: &MessageFailure,
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

    /// Returns the failure of a message that was parked because it could not be dead-lettered.
    pub(super) fn parked_failure(&self, delivery: &Delivery) -> Option<MessageFailure> {
        let headers = &delivery.message().properties.headers;
        let reason = Reason::parse(headers.text(GIVEN_UP)?)?;
        let error = headers.text(LAST_ERROR).unwrap_or_default();
        Some(MessageFailure::new(reason, error))
    }

    /// Publishes the copy. Once the broker has confirmed it, another thread replies and
    /// acknowledges the original.
    pub(super) fn republish(
        &self,
        delivery: Tracked,
        copy: Publication,
        reply: Option<Publication>,
        second: Option<SecondCopy>,
    ) {
        let deadline = deadline::after(REPUBLISH_TIMEOUT);
        self.republish_until(deadline, delivery, copy, reply, second);
    }

    fn republish_until(
        &self,
        deadline: Instant,
        delivery: Tracked,
        mut copy: Publication,
        reply: Option<Publication>,
        second: Option<SecondCopy>,
    ) {
        let to = copy.routing_key.clone();
        copy.send_state = Some(SendState::of_copy(deadline).into());
        let confirmation = self.broker.publish_confirmed(copy, deadline);
        // Fails if the shutdown has timed out and the receiving thread has ended; the delivery is
        // then requeued as it is dropped.
        let _ = self.republishes.send(PendingRepublish {
            delivery,
            to,
            reply,
            second,
            confirmation,
            deadline,
        });
    }
}

/// Cuts an error to at most `max` bytes.
fn clip(error: &str, max: usize) -> &str {
    prefix(error, max)
}

/// Shortens a delay by up to a fifth at random, so that messages that failed at the same time are
/// not retried at the same time.
fn jittered(delay: Duration) -> Duration {
    delay
        .mul_f64(1.0 - 0.2 * fastrand::f64())
        .max(Duration::from_millis(1))
}

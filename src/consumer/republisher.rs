//! Republishing: copies of messages go to a delay's queue for another attempt, or to the dead
//! letters. The broker confirms each copy before the original is acknowledged, so a fault may
//! duplicate a message, but never lose it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::failure::{MessageFailure, Reason, describe};
use super::republish_confirms::{
    DelayedCopy, PendingRepublish, REPUBLISH_TIMEOUT, Republish, SecondCopy,
};
use super::retries::Retries;
use super::tracked::Tracked;
use super::waiting_copies::WaitingCopies;
use super::{ConsumedQueue, LocalAttempts};
use crate::base::deadline;
use crate::base::text::prefix;
use crate::message::Body;
use crate::topology::{self, DEAD_EXCHANGE, RETURN_EXCHANGE};
use crate::transport::x_death::{
    ATTEMPTS, Death, FIRST_ERROR, GIVEN_UP, LAST_ERROR, LEFT_OUT, REDELIVERIES,
};
use crate::transport::{Broker, ConfirmOutcome, Delivery, Publication};

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
    pub(crate) waiting: Arc<WaitingCopies>,
    pub(crate) republishes: Sender<PendingRepublish>,
}

impl Republisher {
    /// Returns the queue whose messages the queue's depth does not count: that of suspects; none if
    /// they stay in their queue.
    pub(super) fn suspect_queue(&self) -> Option<String> {
        (!self.retries.are_held()).then(|| self.queue.suspect_queue())
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

    /// Moves a command to the queue of its action's bound. Nothing was done, so no attempt is used
    /// up.
    pub(super) fn move_to(&self, delivery: Tracked, queue: &str) {
        let mut copy = self.copy(delivery.delivery(), "", queue.to_owned());
        copy.properties.expiration = delivery.message().properties.expiration;
        Death::forget(&mut copy.properties.headers);
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
        self.republish(delivery, copy, reply, parked);
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
            // After a delay it is in its queue as if it had been published there.
            exchange: match &*message.exchange {
                RETURN_EXCHANGE => String::new(),
                exchange => exchange.to_owned(),
            },
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
    ) -> Option<SecondCopy> {
        if self.retries.are_held() {
            return None;
        }
        let delay = self.retries.parking();
        let mut parked = copy.clone();
        parked.exchange = topology::delay_exchange(delay).into();
        parked.routing_key = self.queue.queue.clone();
        let headers = &mut parked.properties.headers;
        headers.insert(GIVEN_UP, failure.reason.as_str());
        headers.insert(ATTEMPTS, attempts);
        Some(SecondCopy::Parked(DelayedCopy {
            publication: parked,
            delay,
        }))
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
    fn republish(
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
        copy: Publication,
        reply: Option<Publication>,
        second: Option<SecondCopy>,
    ) {
        let republish = Republish {
            delivery,
            copy,
            ticket: None,
            reply,
            second,
        };
        self.publish(republish, deadline);
    }

    /// Publishes a copy that comes back after a delay, as [`republish`](Self::republish).
    pub(super) fn republish_delayed(
        &self,
        delivery: Tracked,
        copy: DelayedCopy,
        second: Option<DelayedCopy>,
    ) {
        let ticket = self.waiting.add(&copy.publication, copy.delay);
        let republish = Republish {
            delivery,
            copy: copy.publication,
            ticket: Some(ticket),
            reply: None,
            second: second.map(SecondCopy::Retry),
        };
        self.publish(republish, deadline::after(REPUBLISH_TIMEOUT));
    }

    fn publish(&self, republish: Republish, deadline: Instant) {
        let pending = republish.publish(&self.broker, &self.waiting, deadline);
        // Fails if the shutdown has timed out and the receiving thread has ended; the delivery is
        // then requeued as it is dropped.
        let _ = self.republishes.send(pending);
    }
}

/// Cuts an error to at most `max` bytes.
pub(super) fn clip(error: &str, max: usize) -> &str {
    prefix(error, max)
}

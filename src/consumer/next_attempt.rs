//! The next attempt at a message: when it is, and where the message waits for it.

use std::time::Duration;

use super::failure::{MessageFailure, Reason, describe};
use super::local_retry::LocalRetry;
use super::options::POSTPONE_DELAY;
use super::republish_confirms::DelayedCopy;
use super::republisher::{MAX_ERROR_BYTES, Republisher, clip};
use super::tracked::Tracked;
use super::{HandlerError, LocalAttempts};
use crate::topology::{self, DelayPath, LONGEST_DELAY};
use crate::transport::Publication;
use crate::transport::x_death::{ATTEMPTS, COPIES, Death, FIRST_ERROR, REDELIVERIES};

/// The delay of a message that waits in the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The delay of a queue of this server's.
    Queue(Duration),
    /// Any other one.
    Levels(Duration),
}

impl Republisher {
    /// Schedules the next attempt of a one-way message whose handler has failed, or dead-letters
    /// the message.
    pub(super) fn failed(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        action: &str,
        error: HandlerError,
    ) -> Option<LocalRetry> {
        let before = self.failed_attempts(delivery.delivery(), &attempt);
        let own = error.retry_delay().map(|own| own.min(LONGEST_DELAY));
        let delay = match self.retries.next_delay(action, before) {
            Some(delay) if error.is_retryable() => own.unwrap_or(delay),
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
            let delay = match own {
                Some(own) => self.retries.held(own),
                None => jittered(delay),
            };
            return Some(LocalRetry {
                delivery,
                attempt,
                delay,
            });
        }
        let wait = match self.retries.has_queue(delay) {
            true => Wait::Queue(delay),
            false => Wait::Levels(delay),
        };
        let mut copy = self.delayed_copy(&delivery, wait);
        let headers = &mut copy.publication.properties.headers;
        headers.remove(REDELIVERIES); // the worker has survived the attempt
        headers.insert(ATTEMPTS, i64::try_from(before + 1).unwrap_or(i64::MAX));
        if headers.text(FIRST_ERROR).is_none() {
            headers.insert(FIRST_ERROR, clip(error.message(), self.max_error_bytes()));
        }
        if own.is_none() {
            copy.publication.properties.expiration = Some(jittered(delay));
        }
        let second = self.stand_in_copy(&copy, wait);
        self.republish_delayed(delivery, copy, second);
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
        action: &str,
        after: Duration,
    ) -> Option<LocalRetry> {
        let copies = delivery.message().properties.headers.int(COPIES);
        let copies = copies.map_or(0, |copies| usize::try_from(copies).unwrap_or(0));
        let step = copies.saturating_add(attempt.refused);
        let delay = self.retries.refusal_delay(action, after, step);
        attempt.refused += 1;
        self.put_off(delivery, attempt, delay)
    }

    /// Schedules a message for its turn in a rate limit. Nothing was done, so no attempt is used up.
    pub(super) fn put_off_by_limit(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        turn: Duration,
    ) -> Option<LocalRetry> {
        if self.retries.are_held() {
            return Some(LocalRetry {
                delivery,
                attempt,
                delay: self.retries.held(turn),
            });
        }
        // A time of its own in a queue of other delays would hold up those behind it.
        let copy = self.delayed_copy(&delivery, Wait::Levels(turn));
        let second = self.stand_in_copy(&copy, Wait::Levels(turn));
        self.republish_delayed(delivery, copy, second);
        None
    }

    /// Schedules a message for after `delay`, which one of this server's queues has.
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
        let wait = Wait::Queue(delay);
        let copy = self.delayed_copy(&delivery, wait);
        let second = self.stand_in_copy(&copy, wait);
        self.republish_delayed(delivery, copy, second);
        None
    }

    /// Copies a message, to be in its queue again after a delay.
    fn delayed_copy(&self, delivery: &Tracked, wait: Wait) -> DelayedCopy {
        let key = self.queue.queue.clone();
        let (exchange, path) = match wait {
            Wait::Queue(delay) => (topology::delay_exchange(delay), None),
            Wait::Levels(delay) => {
                let path = DelayPath::of(delay);
                (path.exchange(), Some(path))
            }
        };
        let mut publication = self.copy(delivery.delivery(), exchange, key);
        let headers = &mut publication.properties.headers;
        Death::forget(headers);
        headers.extend(path.iter().flat_map(DelayPath::headers));
        DelayedCopy {
            publication,
            delay: match wait {
                Wait::Queue(delay) => delay,
                Wait::Levels(delay) => path.map_or(delay, |path| path.delay()),
            },
        }
    }

    /// Returns the copy to publish if the broker does not take the first one: for the queue of the
    /// next longer of this server's delays, or the longest. It comes back as the first one would
    /// have, or when those before it there do.
    fn stand_in_copy(&self, copy: &DelayedCopy, wait: Wait) -> Option<DelayedCopy> {
        let (Wait::Queue(delay) | Wait::Levels(delay)) = wait;
        let other = self.retries.stand_in(delay)?;
        let mut publication: Publication = copy.publication.clone();
        publication.exchange = topology::delay_exchange(other).into();
        publication.properties.expiration.get_or_insert(delay);
        publication.properties.remove_delay();
        Some(DelayedCopy {
            publication,
            delay: other,
        })
    }
}

/// Shortens a delay by up to a tenth at random, so that messages that failed at the same time are
/// not retried at the same time.
///
/// Messages expire at the head of their queue only, so one with a shorter time waits for those before
/// it: it is late by less than the tenth, and never later than after the whole delay.
fn jittered(delay: Duration) -> Duration {
    delay
        .mul_f64(1.0 - 0.1 * fastrand::f64())
        .max(Duration::from_millis(1))
}

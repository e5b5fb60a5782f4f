//! Where messages go that are not done with: back for another attempt, or among
//! the dead letters. Each move is confirmed by the broker before the original is
//! acknowledged, so a message may be doubled by a fault, and never lost.

use std::time::Duration;

use crossbeam_channel::Sender;

use super::moves::{MOVE_TIMEOUT, Move};
use super::{Again, Attempt, HandlerError, Inbox};
use crate::deadline;
use crate::topology::DEAD_EXCHANGE;
use crate::transport::death::{ATTEMPTS, Death, FIRST_ERROR, LAST_ERROR, REDELIVERIES};
use crate::transport::{
    Broker, Delivery, HeaderTable, LARGEST_HEADERS, Properties, Publication, Ticket,
};

/// What a quorum queue counts itself.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// How much of an error a header holds, in bytes.
const LONGEST_ERROR: usize = 1_000;

/// How long a repeated request waits for the first to end; what deduplicates has a
/// queue for it.
pub(crate) const POSTPONE_FOR: Duration = Duration::from_secs(1);

/// Room for the headers that a move adds.
const OUR_HEADERS: usize = 8_000;

/// Why a message is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its handler said so.
    Rejected,
    RetriesExhausted,
    Undecodable,
    NoHandler,
    DeliveryLimit,
}

impl Reason {
    /// RabbitMQ's own words where it has them.
    fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RetriesExhausted => "retries_exhausted",
            Self::Undecodable => "undecodable",
            Self::NoHandler => "no_handler",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// Why a message is given up, and what there is to say about it.
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) error: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, error: impl Into<String>) -> Self {
        Self {
            reason,
            error: error.into(),
        }
    }
}

pub(crate) struct Mover {
    pub(crate) broker: Broker,
    pub(crate) inbox: Inbox,
    pub(crate) retries: Retries,
    pub(crate) redelivery_limit: u32,
    pub(crate) moves: Sender<Move>,
}

/// Where a message waits that has failed, and how long before its second attempt, its
/// third, and so on.
pub(crate) enum Retries {
    /// In a queue of the broker for each delay: it holds nobody up.
    Queued(Vec<Duration>),
    /// Here, unacknowledged: where its place in the queue matters, or the queue goes
    /// with this process.
    Held(Vec<Duration>),
}

impl Mover {
    /// Lets a delivery pass unless it has been delivered before.
    ///
    /// A classic queue only marks redeliveries and does not count them, so one
    /// that is marked goes back to the end of its queue as a new message with
    /// the count in a header, before anything else is done with it: that
    /// survives the next worker's death too. A message over the limit is given
    /// to `refuse`.
    pub(super) fn count_redelivery(
        &self,
        delivery: Delivery,
        refuse: impl FnOnce(Delivery, Failure),
    ) -> Option<Delivery> {
        let headers = &delivery.message().properties.headers;
        let marked = delivery.is_redelivered() && !self.inbox.counts;
        let count = match self.inbox.counts {
            true => headers.int(DELIVERY_COUNT),
            false => headers.int(REDELIVERIES),
        };
        let count = count.unwrap_or(0).max(0).saturating_add(i64::from(marked));
        if count > i64::from(self.redelivery_limit) {
            let error = format!(
                "delivered {} times without being settled; the workers that had it died or lost \
                 their connections",
                count.saturating_add(1)
            );
            refuse(delivery, Failure::new(Reason::DeliveryLimit, error));
            return None;
        }
        if !marked {
            return Some(delivery);
        }
        let mut copy = self.copy(&delivery, "", self.inbox.queue.clone());
        copy.properties.expiration = delivery.message().properties.expiration;
        copy.properties.headers.insert(REDELIVERIES, count);
        self.move_to(delivery, copy, None);
        None
    }

    /// Was it delivered before, by the queue's mark or by our count?
    pub(super) fn was_redelivered(&self, delivery: &Delivery) -> bool {
        let headers = &delivery.message().properties.headers;
        delivery.is_redelivered() || headers.int(REDELIVERIES).is_some_and(|count| count > 0)
    }

    /// How many attempts have failed, before it came here and since.
    pub(super) fn failed_attempts(&self, delivery: &Delivery, attempt: &Attempt) -> usize {
        let before = delivery.message().properties.headers.int(ATTEMPTS);
        let before = before.map_or(0, |attempts| usize::try_from(attempts).unwrap_or(0));
        before.saturating_add(attempt.failed)
    }

    /// After a one-way message's handler has failed: another attempt later, or
    /// the end.
    pub(super) fn failed(
        &self,
        delivery: Delivery,
        attempt: Attempt,
        error: HandlerError,
    ) -> Option<Again> {
        let before = self.failed_attempts(&delivery, &attempt);
        let (Retries::Queued(delays) | Retries::Held(delays)) = &self.retries;
        let delay = match delays.get(before) {
            Some(&delay) if error.may_be_retried() => delay,
            delay => {
                let reason = match delay {
                    Some(_) => Reason::Rejected,
                    None if error.may_be_retried() => Reason::RetriesExhausted,
                    None => Reason::Rejected,
                };
                let failure = Failure::new(reason, error.message());
                self.bury(delivery, &failure, &attempt, None);
                return None;
            }
        };
        log::info!(
            target: "coney::worker",
            "{}: attempt {} failed, the next is in {delay:?}: {}",
            self.inbox.owner, before + 1, clip(error.message()).escape_debug()
        );
        if let Retries::Held(_) = self.retries {
            let error = clip(error.message()).to_owned();
            let attempt = Attempt {
                failed: attempt.failed + 1,
                first_error: attempt.first_error.or(Some(error)),
            };
            return Some(Again {
                delivery,
                attempt,
                delay,
            });
        }
        let mut copy = self.copy(&delivery, "", self.inbox.retry_queue(delay));
        let headers = &mut copy.properties.headers;
        Death::forget(headers);
        headers.remove(REDELIVERIES); // its worker has survived it
        headers.insert(ATTEMPTS, i64::try_from(before + 1).unwrap_or(i64::MAX));
        if headers.text(FIRST_ERROR).is_none() {
            headers.insert(FIRST_ERROR, clip(error.message()));
        }
        self.move_to(delivery, copy, None);
        None
    }

    /// Another worker is at the same message: to be looked at again later.
    pub(super) fn postpone(&self, delivery: Delivery, attempt: Attempt) -> Option<Again> {
        let delay = POSTPONE_FOR;
        if let Retries::Held(_) = self.retries {
            return Some(Again {
                delivery,
                attempt,
                delay,
            });
        }
        let mut copy = self.copy(&delivery, "", self.inbox.retry_queue(delay));
        Death::forget(&mut copy.properties.headers);
        self.move_to(delivery, copy, None);
        None
    }

    /// Keeps a message among the dead letters, and then sends the reply.
    pub(super) fn bury(
        &self,
        delivery: Delivery,
        failure: &Failure,
        attempt: &Attempt,
        reply: Option<Publication>,
    ) {
        let queue = self.inbox.queue.clone();
        log::warn!(
            target: "coney::worker",
            "{}: a message is dead-lettered ({}): {}",
            self.inbox.owner, failure.reason.as_str(), clip(&failure.error).escape_debug()
        );
        let mut copy = self.copy(&delivery, DEAD_EXCHANGE, queue.clone());
        let headers = &mut copy.properties.headers;
        headers.remove(ATTEMPTS);
        let failed = self.failed_attempts(&delivery, attempt);
        let attempts = i64::try_from(failed).unwrap_or(i64::MAX - 1);
        let attempts = match failure.reason {
            Reason::Rejected | Reason::RetriesExhausted => attempts.saturating_add(1),
            _ => attempts.max(1),
        };
        Death::forget(headers);
        if headers.text(FIRST_ERROR).is_none() {
            let first = attempt.first_error.as_deref();
            headers.insert(FIRST_ERROR, first.unwrap_or(clip(&failure.error)));
        }
        headers.insert(LAST_ERROR, clip(&failure.error));
        let message = delivery.message();
        let death = Death {
            queue,
            reason: failure.reason.as_str().to_owned(),
            exchange: message.exchange.clone().into_owned(),
            routing_key: message.routing_key.clone(),
            count: attempts,
            time: deadline::unix_millis_after(Duration::ZERO) / 1_000,
        };
        death.add(headers);
        self.move_to(delivery, copy, reply);
    }

    /// The message as it is, but kept on disk and without an expiry of its own.
    fn copy(&self, delivery: &Delivery, exchange: &'static str, key: String) -> Publication {
        let message = delivery.message();
        let mut properties = Properties {
            persistent: true,
            expiration: None,
            ..message.properties.clone()
        };
        // A quorum queue's count is of one queue alone.
        properties.headers.remove(DELIVERY_COUNT);
        if properties.headers.size() > LARGEST_HEADERS - OUR_HEADERS {
            log::warn!(
                target: "coney::worker",
                "{}: headers too large to be passed on are dropped", self.inbox.owner
            );
            properties.headers = HeaderTable::new();
        }
        let mut copy = Publication {
            properties,
            mandatory: true,
            ..Publication::new(exchange, key, message.body.clone())
        };
        copy.drop_unsendable();
        copy
    }

    /// Publishes the copy. Once the broker has it, another thread replies and
    /// acknowledges the original.
    fn move_to(&self, delivery: Delivery, mut copy: Publication, reply: Option<Publication>) {
        let to = copy.routing_key.clone();
        let deadline = deadline::after(MOVE_TIMEOUT);
        copy.ticket = Some(Ticket::until(deadline).into());
        let confirmation = self.broker.publish_confirmed(copy, deadline);
        // Fails when the server has given up waiting for its workers; then the
        // delivery goes back as it is dropped.
        let _ = self.moves.send(Move {
            delivery,
            to,
            reply,
            confirmation,
            deadline,
        });
    }
}

/// As much of an error as a header holds.
fn clip(error: &str) -> &str {
    &error[..error.floor_char_boundary(LONGEST_ERROR)]
}

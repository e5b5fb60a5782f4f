//! A dead letter.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::message::ServiceMessage;
use crate::topology;
use crate::transport::x_death::{
    ATTEMPTS, COPIES, Death, FIRST_ERROR, LAST_ERROR, LEFT_OUT, REDELIVERIES, REPLAYED,
};
use crate::transport::{Message, Oversized, Properties};

/// A message that failed for good, with the history of its failure: see
/// [`DeadLetters`](crate::DeadLetters).
pub struct DeadLetter {
    message: Arc<Message>,
    death: Death,
    envelope: Envelope,
}

/// Fields of the body, if it is an envelope.
#[derive(Default)]
struct Envelope {
    message_id: Option<String>,
    source_service: Option<String>,
    action: Option<String>,
}

impl DeadLetter {
    pub(super) fn new(message: Arc<Message>) -> Self {
        let deaths = Death::read(&message.properties.headers);
        let envelope = match ServiceMessage::decode(&message.body) {
            Ok(envelope) => Envelope {
                message_id: Some(envelope.message_id.into_owned()),
                source_service: Some(envelope.source_service.into_owned()),
                action: Some(envelope.action.into_owned()),
            },
            Err(_) => Envelope::default(),
        };
        let death = deaths.into_iter().next().unwrap_or_else(|| Death {
            queue: message.routing_key.clone(),
            count: 1,
            ..Death::default()
        });
        Self {
            death: match topology::is_delay(&death.queue) {
                true => returned_to_nothing(&message, death.time),
                false => death,
            },
            message,
            envelope,
        }
    }

    /// Returns the message's id: the property, or else the envelope's.
    pub fn message_id(&self) -> Option<&str> {
        let property = self.message.properties.message_id.as_deref();
        property.or(self.envelope.message_id.as_deref())
    }

    /// Returns the queue in which it died, to which a replay sends it.
    pub fn queue(&self) -> &str {
        &self.death.queue
    }

    /// Returns the reason for which it was dead-lettered: `rejected` (its handler ruled out another
    /// attempt), `retries_exhausted`, `undecodable`, `no_handler`, `delivery_limit` (workers died
    /// while they handled it), `no_queue` (its queue was gone when it came back from a delay), or a reason of RabbitMQ's such as `expired`. Empty if the headers
    /// give no reason.
    pub fn reason(&self) -> &str {
        &self.death.reason
    }

    /// Returns the number of attempts; 0 if it has only waited for its first one.
    pub fn attempts(&self) -> u64 {
        u64::try_from(self.death.count).unwrap_or(0)
    }

    /// Returns the time at which it was dead-lettered, in Unix seconds; 0 if unknown.
    pub fn died_at(&self) -> u64 {
        self.death.time
    }

    /// Returns the error of the first attempt.
    pub fn first_error(&self) -> Option<&str> {
        self.message.properties.headers.text(FIRST_ERROR)
    }

    /// Returns the error of the last attempt.
    pub fn last_error(&self) -> Option<&str> {
        self.message.properties.headers.text(LAST_ERROR)
    }

    /// Returns the service that sent it, if it is an envelope.
    pub fn source_service(&self) -> Option<&str> {
        self.envelope.source_service.as_deref()
    }

    /// Returns the requested action or the event's name, if it is an envelope.
    pub fn action(&self) -> Option<&str> {
        self.envelope.action.as_deref()
    }

    /// Decodes the payload into `T`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Decode`](crate::ErrorKind::Decode) if the body is not an envelope,
    /// or its payload does not have the shape of `T`.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T> {
        let envelope = ServiceMessage::decode(&self.message.body)?;
        envelope.payload.decode().map_err(|fault| {
            Error::new(
                ErrorKind::Decode,
                format!("the payload of a dead letter cannot be read: {fault}"),
            )
        })
    }

    /// Returns the body, unchanged: as a rule an envelope, see
    /// [`ServiceMessage`](crate::message::ServiceMessage).
    pub fn body(&self) -> &[u8] {
        &self.message.body
    }

    /// Returns the message's properties, with the headers that record its failure.
    pub fn properties(&self) -> &Properties {
        &self.message.properties
    }

    /// Returns the properties for a replay: without the headers that record its failure, and with
    /// one that marks the replay.
    pub(super) fn properties_as_new(&self) -> Properties {
        let mut properties = self.message.properties.clone();
        properties.remove_delay();
        let headers = &mut properties.headers;
        Death::forget(headers);
        for name in [ATTEMPTS, REDELIVERIES, FIRST_ERROR, LAST_ERROR] {
            headers.remove(name);
        }
        headers.remove(COPIES);
        let now = deadline::unix_millis_after(Duration::ZERO);
        headers.insert(REPLAYED, i64::try_from(now).unwrap_or(i64::MAX));
        properties
    }
}

impl DeadLetter {
    /// Returns true if it was taken from a queue of this service: a command or call to it, or an
    /// event that it subscribed to.
    pub fn is_of(&self, service: &str) -> bool {
        topology::is_queue_of(self.queue(), service)
    }

    /// Returns a description of the content that the dead letter lacks of the original message, if
    /// any: a body over [`max_dead_letter`](crate::BrokerBuilder::max_dead_letter), or headers that
    /// did not fit the broker's frames.
    pub fn left_out(&self) -> Option<&str> {
        self.message.properties.headers.text(LEFT_OUT)
    }

    /// Returns true if the body is in the queue, but larger than this connection accepts.
    pub(super) fn body_is_missing(&self) -> bool {
        self.message.oversized().is_some()
    }

    /// Drops a large body that was kept: only one is kept at a time.
    pub(super) fn without_large_body(mut self) -> Self {
        if let Some(oversized) = self.message.oversized() {
            let oversized = Oversized::new(oversized.bytes(), None);
            Arc::make_mut(&mut self.message).oversized = Some(oversized);
        }
        self
    }
}

/// Returns the death of a message that came back from a delay when its queue, the routing key, was
/// gone: the broker's own record names the queue of the delay.
fn returned_to_nothing(message: &Message, time: u64) -> Death {
    Death {
        queue: message.routing_key.clone(),
        reason: "no_queue".to_owned(),
        routing_key: message.routing_key.clone(),
        count: message.properties.headers.int(ATTEMPTS).unwrap_or(0),
        time,
        ..Death::default()
    }
}

impl fmt::Debug for DeadLetter {
    /// Shows no body: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("message_id", &self.message_id())
            .field("queue", &self.queue())
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

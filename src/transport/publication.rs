use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{HeaderTable, Limits, Room, SendState};
use crate::base::name::check_short_string;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Body, CorrelationId, batch};
use crate::topology::SERVICE_EXCHANGE;

/// The properties that travel beside a body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// What the body is: `application/json` in everything coney sends.
    pub content_type: Option<Cow<'static, str>>,
    /// True for delivery mode 2: a durable queue keeps the message on disk.
    pub persistent: bool,
    /// The message's id.
    pub message_id: Option<String>,
    /// What ties a reply to its request.
    pub correlation_id: Option<String>,
    /// The queue a reply should go to.
    pub reply_to: Option<String>,
    /// How long the message may wait in a queue before it is dropped; at most
    /// 49 days.
    pub expiration: Option<Duration>,
    /// Headers, most often none.
    pub headers: HeaderTable,
    /// What hardly any message has.
    pub rare: Option<Box<RareProperties>>,
}

/// The properties that coney has no use for, but passes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RareProperties {
    /// How the body is encoded, such as `gzip`.
    pub content_encoding: Option<String>,
    /// From 0 to 9.
    pub priority: Option<u8>,
    /// When it was made, in Unix seconds.
    pub timestamp: Option<u64>,
    /// The property AMQP calls `type`.
    pub kind: Option<String>,
    /// Which program sent it.
    pub app_id: Option<String>,
}

impl Properties {
    /// The properties every JSON message has.
    pub fn json() -> Self {
        Self {
            content_type: Some(Cow::Borrowed("application/json")),
            ..Self::default()
        }
    }

    /// Drops what a peer has put beside the body and we could not send on.
    pub(crate) fn drop_unsendable(&mut self) {
        let unfit = |text: &mut Option<String>| {
            if check_short_string("property", text.as_deref().unwrap_or_default()).is_err() {
                *text = None;
            }
        };
        unfit(&mut self.message_id);
        unfit(&mut self.correlation_id);
        unfit(&mut self.reply_to);
        if let Some(rare) = &mut self.rare {
            unfit(&mut rare.content_encoding);
            unfit(&mut rare.kind);
            unfit(&mut rare.app_id);
        }
        let content_type = self.content_type.as_deref().unwrap_or_default();
        if check_short_string("property", content_type).is_err() {
            self.content_type = None;
        }
        if !self.has_sendable_headers() {
            self.headers = HeaderTable::new();
        }
        // These name further queues to go to.
        self.headers.remove("CC");
        self.headers.remove("BCC");
    }

    pub(crate) fn has_sendable_headers(&self) -> bool {
        self.headers.check().is_ok() && self.headers.values() <= MOST_VALUES
    }
}

/// RabbitMQ takes 2³² − 1 milliseconds.
pub(crate) const LONGEST_EXPIRATION: Duration = Duration::from_millis(u32::MAX as u64);

/// amiquip takes a time for them that grows with their square.
const MOST_VALUES: usize = 200;

/// A message on its way to the broker.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The exchange; empty for the default one, whose routing keys are queue
    /// names.
    pub exchange: Cow<'static, str>,
    /// The routing key.
    pub routing_key: String,
    /// The properties.
    pub properties: Properties,
    /// The body.
    pub body: Body,
    /// If it fits no queue, have it returned rather than dropped.
    pub mandatory: bool,
    /// Lets whoever waits for the outcome know whether it was sent.
    pub(crate) send_state: Option<Arc<SendState>>,
    /// May be sent again when the connection was lost before it was confirmed.
    pub(crate) idempotent: bool,
    /// May be sent in one message with its like, where several wait to be sent.
    pub(crate) coalesce: Option<CoalesceLimits>,
    /// Sent in its place if the broker finds it too large.
    pub(crate) if_too_large: Option<Box<Publication>>,
    /// Its share of the memory for what is to be sent, given back when the last copy goes.
    pub(crate) room: Option<Arc<Room>>,
}

/// Bodies from this size on leave over a channel of their own: see
/// [`LinkHandle::publish`](super::LinkHandle::publish).
pub(crate) const LARGE: usize = 1 << 20;

/// Whether a body of so many bytes is a large one.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes > LARGE
}

/// How much may share one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CoalesceLimits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl CoalesceLimits {
    pub(crate) const MESSAGES: usize = 500;
    pub(crate) const BYTES: usize = 512 << 10;
}

impl Publication {
    /// A JSON message, transient and not mandatory.
    pub fn new(
        exchange: impl Into<Cow<'static, str>>,
        routing_key: impl Into<String>,
        body: impl Into<Body>,
    ) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            properties: Properties::json(),
            body: body.into(),
            mandatory: false,
            send_state: None,
            idempotent: false,
            coalesce: None,
            if_too_large: None,
            room: None,
        }
    }

    /// Checks everything that would corrupt a frame or exceed the limits.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        let Properties {
            content_type,
            message_id,
            correlation_id,
            reply_to,
            expiration,
            headers,
            rare,
            persistent: _,
        } = &self.properties;
        let rare = rare.as_deref();
        check_short_string("exchange", &self.exchange)?;
        check_short_string("routing key", &self.routing_key)?;
        for (what, text) in [
            ("content type", content_type.as_deref()),
            ("message id", message_id.as_deref()),
            ("correlation id", correlation_id.as_deref()),
            ("reply queue", reply_to.as_deref()),
            (
                "content encoding",
                rare.and_then(|rare| rare.content_encoding.as_deref()),
            ),
            ("type", rare.and_then(|rare| rare.kind.as_deref())),
            ("app id", rare.and_then(|rare| rare.app_id.as_deref())),
        ] {
            check_short_string(what, text.unwrap_or_default())?;
        }
        if expiration.is_some_and(|after| after > LONGEST_EXPIRATION) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("an expiration of over {LONGEST_EXPIRATION:?} is not allowed"),
            ));
        }
        headers.check()?;
        let size = if headers.is_empty() {
            0
        } else {
            headers.size()
        };
        if size > limits.max_headers() {
            return Err(Error::new(
                ErrorKind::PayloadTooLarge,
                format!(
                    "the headers of a message for {:?} are {size} bytes long; at most {} fit the \
                     broker's frames (frame_max)",
                    self.routing_key,
                    limits.max_headers()
                ),
            ));
        }
        limits.check_body(&self.routing_key, self.body.len())
    }

    /// One message in place of several requests with the same routing key, from whoever
    /// has this reply queue.
    ///
    /// # Errors
    ///
    /// None that can happen: what goes in is encoded already.
    pub(crate) fn batch(
        key: String,
        requests: &[Box<Publication>],
        id: CorrelationId,
        reply_queue: &str,
    ) -> Result<Self> {
        let bodies = requests.iter().map(|one| &one.body);
        let (message_id, body) = batch::write_coalesced(bodies, id, reply_queue)?;
        let expiration = requests.iter().map(|one| one.properties.expiration);
        Ok(Self {
            properties: Properties {
                persistent: requests.iter().any(|one| one.properties.persistent),
                message_id: Some(message_id),
                correlation_id: Some(id.to_text()),
                reply_to: Some(reply_queue.to_owned()),
                // As long as one of them may wait.
                expiration: expiration.max().flatten(),
                ..Properties::json()
            },
            mandatory: true,
            ..Self::new(SERVICE_EXCHANGE, key, body)
        })
    }

    /// Its owner has given up on it, or will now.
    pub(crate) fn is_expired(&self) -> bool {
        self.send_state
            .as_ref()
            .is_some_and(|send_state| send_state.is_expired())
    }

    /// For the sender: false if its owner has given up on it. A message that
    /// may expire gets what is left of its owner's time.
    pub(crate) fn start_sending(&mut self) -> bool {
        let Some(send_state) = &self.send_state else {
            return true;
        };
        if let Some(expiration) = &mut self.properties.expiration {
            *expiration = send_state.left().min(LONGEST_EXPIRATION);
        }
        send_state.start_sending()
    }
}

/// A message as a queue holds it.
#[derive(Clone, Default)]
pub struct Message {
    /// The exchange it was published to.
    pub exchange: Cow<'static, str>,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Its properties.
    pub properties: Properties,
    /// Its body.
    pub body: Vec<u8>,
    /// The body was larger than the limit, and is not in `body`.
    pub(crate) oversized: Option<Oversized>,
}

impl Message {
    /// Its body, if that is larger than `max_body`.
    pub(crate) fn oversized(&self) -> Option<&Oversized> {
        self.oversized.as_ref()
    }
}

/// A body that is larger than `max_body`.
#[derive(Clone)]
pub(crate) struct Oversized {
    bytes: u64,
    body: Option<LargeBody>,
}

/// A large body that was kept, and the one place that there is for such a body.
#[derive(Clone)]
pub(crate) struct LargeBody {
    pub(crate) bytes: Arc<Vec<u8>>,
    _place: Arc<()>,
}

impl LargeBody {
    pub(crate) fn new(bytes: Vec<u8>, place: Arc<()>) -> Self {
        Self {
            bytes: Arc::new(bytes),
            _place: place,
        }
    }
}

impl Oversized {
    pub(crate) fn new(bytes: u64, body: Option<LargeBody>) -> Self {
        Self { bytes, body }
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The body, if it was kept: it is not over the second limit, and no other was kept at
    /// the time.
    pub(crate) fn body(&self) -> Option<&LargeBody> {
        self.body.as_ref()
    }
}

impl fmt::Debug for Oversized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oversized({} bytes)", self.bytes)
    }
}

impl fmt::Debug for Message {
    /// Shows the size of the body only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("properties", &self.properties)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A mandatory message that fitted no queue.
#[derive(Clone, Debug)]
pub struct Returned {
    /// The exchange it was published to.
    pub exchange: Cow<'static, str>,
    /// The routing key no queue was bound with.
    pub routing_key: String,
    /// Its id, if it had one.
    pub message_id: Option<String>,
    /// Its correlation id, if it had one.
    pub correlation_id: Option<String>,
    /// The broker's reason, such as `NO_ROUTE`.
    pub reason: String,
}

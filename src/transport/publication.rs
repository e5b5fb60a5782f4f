//! Messages: outgoing, queued and returned ones.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{HeaderTable, Limits, Room, SendState};
use crate::base::name::check_short_string;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Body, CorrelationId, batch};
use crate::topology::{SERVICE_EXCHANGE, is_delay_header};

/// The properties of a message, beside its body.
///
/// ```
/// use coney::transport::Properties;
///
/// let mut properties = Properties::json();
/// properties.persistent = true;
/// properties.headers.insert("x-attempts", 2);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// The media type of the body: `application/json` in everything coney sends.
    pub content_type: Option<Cow<'static, str>>,
    /// True for delivery mode 2: a durable queue keeps the message on disk.
    pub persistent: bool,
    /// The message id.
    pub message_id: Option<String>,
    /// The correlation id, which a reply repeats from its request.
    pub correlation_id: Option<String>,
    /// The queue for the reply.
    pub reply_to: Option<String>,
    /// The time for which the message may stay in a queue before it expires; at most 49 days.
    pub expiration: Option<Duration>,
    /// The headers; most messages have none.
    pub headers: HeaderTable,
    /// The properties that few messages have.
    pub rare: Option<Box<RareProperties>>,
}

/// The properties that coney does not use but passes on.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RareProperties {
    /// The encoding of the body, such as `gzip`.
    pub content_encoding: Option<String>,
    /// The priority, from 0 to 9.
    pub priority: Option<u8>,
    /// The time at which the message was made, in Unix seconds.
    pub timestamp: Option<u64>,
    /// The property AMQP calls `type`.
    pub kind: Option<String>,
    /// The program that sent the message.
    pub app_id: Option<String>,
}

impl Properties {
    /// Creates the properties of a JSON message.
    pub fn json() -> Self {
        Self {
            content_type: Some(Cow::Borrowed("application/json")),
            ..Self::default()
        }
    }

    /// Removes properties of a received message that cannot be sent on.
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
        // These headers name further routing keys.
        self.headers.remove("CC");
        self.headers.remove("BCC");
    }

    /// Removes the headers that name levels of a delay, which is over or another one now.
    pub(crate) fn remove_delay(&mut self) {
        let names = self.headers.iter().map(|(name, _)| name);
        let levels: Vec<String> = names
            .filter(|name| is_delay_header(name))
            .map(str::to_owned)
            .collect();
        for name in levels {
            self.headers.remove(&name);
        }
    }

    pub(crate) fn has_sendable_headers(&self) -> bool {
        self.headers.check().is_ok()
    }
}

/// The longest expiration: RabbitMQ accepts 2³² − 1 milliseconds.
pub(crate) const LONGEST_EXPIRATION: Duration = Duration::from_millis(u32::MAX as u64);

/// An outgoing message.
#[must_use = "a publication is sent by `Link::publish`"]
#[derive(Clone, Debug)]
pub struct Publication {
    /// The exchange; empty for the default exchange, whose routing keys are queue names.
    pub exchange: Cow<'static, str>,
    /// The routing key.
    pub routing_key: String,
    /// The properties.
    pub properties: Properties,
    /// The body.
    pub body: Body,
    /// True if the broker returns the message when no queue is bound for it; otherwise it drops the
    /// message.
    pub mandatory: bool,
    /// The state that records whether the message was sent, read by the thread that waits for the
    /// outcome.
    pub(crate) send_state: Option<Arc<SendState>>,
    /// True if the message may be sent again when the connection was lost before it was confirmed.
    pub(crate) idempotent: bool,
    /// The limits for coalescing it with similar queued requests; `None` to send it alone.
    pub(crate) coalesce: Option<CoalesceLimits>,
    /// The message to send in its place if the broker refuses it as too large.
    pub(crate) if_too_large: Option<Box<Publication>>,
    /// The room in the send queue that it takes, released when its last copy is dropped.
    pub(crate) room: Option<Arc<Room>>,
}

/// The size in bytes above which a body is large and sent over a channel of its own: see
/// [`LinkHandle::publish`](super::LinkHandle::publish).
pub(crate) const LARGE: usize = 1 << 20;

/// Returns true if a body of `bytes` is large.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes > LARGE
}

/// The limits on the requests coalesced into one message.
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
    /// Creates a JSON message, transient and not mandatory.
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
                format!(
                    "the expiration of a message is over {LONGEST_EXPIRATION:?}, the longest allowed"
                ),
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

    /// Creates one batch from several requests with the same routing key, sent by the owner of this
    /// reply queue.
    ///
    /// # Errors
    ///
    /// Fails in no case that can occur: the requests are encoded already.
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
                // The batch expires with the last of its requests.
                expiration: expiration.max().flatten(),
                ..Properties::json()
            },
            mandatory: true,
            ..Self::new(SERVICE_EXCHANGE, key, body)
        })
    }

    /// Returns true if its owner has abandoned the message, or its deadline has passed.
    pub(crate) fn is_expired(&self) -> bool {
        self.send_state
            .as_ref()
            .is_some_and(|send_state| send_state.is_expired())
    }

    /// Marks the message as sent; returns false if its owner has abandoned it or its deadline has
    /// passed. Sets the expiration of a message that expires with its owner to the time left.
    pub(crate) fn start_sending(&mut self) -> bool {
        let Some(send_state) = &self.send_state else {
            return true;
        };
        if let Some(expiration) = &mut self.properties.expiration
            && send_state.expires_with_owner()
        {
            *expiration = send_state.time_left().min(LONGEST_EXPIRATION);
        }
        send_state.start_sending()
    }
}

/// A message in a queue.
#[non_exhaustive]
#[derive(Clone, Default)]
pub struct Message {
    /// The exchange it was published to.
    pub exchange: Cow<'static, str>,
    /// The routing key it was published with.
    pub routing_key: String,
    /// The properties.
    pub properties: Properties,
    /// The body.
    pub body: Vec<u8>,
    /// The size of a body over the limit, which is not in `body`.
    pub(crate) oversized: Option<Oversized>,
}

impl Message {
    /// Returns the body that is larger than `max_body`, if this message has one.
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

/// A large body that was kept, in the only slot for such a body.
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

    /// Returns its length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the body if it was kept: it is not over the second limit, and the slot was free when
    /// it arrived.
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

/// A mandatory message that the broker returned, because no queue was bound for it.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Returned {
    /// The exchange it was published to.
    pub exchange: Cow<'static, str>,
    /// The routing key that no queue was bound with.
    pub routing_key: String,
    /// The message id, if it had one.
    pub message_id: Option<String>,
    /// The correlation id, if it had one.
    pub correlation_id: Option<String>,
    /// The broker's reason, such as `NO_ROUTE`.
    pub reason: String,
}

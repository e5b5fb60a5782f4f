//! The envelope of requests and events.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::body::FieldEnds;
use super::{Body, CorrelationId, Headers, Json, MessageId, not_json};
use crate::base::moment::Moment;
use crate::error::{Error, ErrorKind, Result};

/// A request or an event as it stands on the wire: nine fields, the payload last.
///
/// Decoding borrows from the body and leaves the payload as [`Json`], which is decoded once, into
/// the handler's type; encoding writes a typed payload once, in place.
///
/// ```
/// use coney::message::ServiceMessage;
///
/// let request = ServiceMessage::new("order-service", "user-service", "get_user", 7);
/// let body = request.encode()?;
/// let read = ServiceMessage::decode(&body)?;
/// assert_eq!(read.action, "get_user");
/// assert_eq!(read.payload.decode::<u32>(), Ok(7));
/// # Ok::<(), coney::Error>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
pub struct ServiceMessage<'a, P = Json<'a>> {
    /// The message id: `msg_20261123083012_862ad1d69070c888`.
    #[serde(borrow)]
    pub message_id: Cow<'a, str>,
    /// The service that sent it.
    #[serde(borrow)]
    pub source_service: Cow<'a, str>,
    /// The service that handles it; empty in an event.
    #[serde(borrow)]
    pub target_service: Cow<'a, str>,
    /// The requested action, or the event's name.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// The time at which it was made, in whole Unix seconds.
    pub timestamp: i64,
    /// The correlation id, which the reply repeats: 32 hex digits.
    #[serde(borrow)]
    pub correlation_id: Cow<'a, str>,
    /// The reply queue, if the sender wants a reply.
    #[serde(default)]
    pub reply_to: Option<Cow<'a, str>>,
    /// Metadata beside the payload.
    #[serde(borrow, default)]
    pub headers: Headers<'a>,
    /// The action's argument, or the event's data.
    pub payload: P,
}

impl<'a, P> ServiceMessage<'a, P> {
    /// Creates a message with the current time, new ids, no headers and no reply queue.
    pub fn new(
        source: impl Into<Cow<'a, str>>,
        target: impl Into<Cow<'a, str>>,
        action: impl Into<Cow<'a, str>>,
        payload: P,
    ) -> Self {
        let now = Moment::now();
        let message_id = MessageId::random_at(now).to_text();
        let correlation_id = CorrelationId::random_at(now).to_text();
        Self::with_ids(
            now,
            message_id,
            correlation_id,
            source,
            target,
            action,
            payload,
        )
    }

    /// Creates a message with these ids, which is made now.
    pub(crate) fn with_ids(
        now: Moment,
        message_id: impl Into<Cow<'a, str>>,
        correlation_id: impl Into<Cow<'a, str>>,
        source: impl Into<Cow<'a, str>>,
        target: impl Into<Cow<'a, str>>,
        action: impl Into<Cow<'a, str>>,
        payload: P,
    ) -> Self {
        Self {
            message_id: message_id.into(),
            source_service: source.into(),
            target_service: target.into(),
            action: action.into(),
            timestamp: now.unix_seconds(),
            correlation_id: correlation_id.into(),
            reply_to: None,
            headers: Headers::new(),
            payload,
        }
    }
}

impl<'a> ServiceMessage<'a> {
    /// Decodes an envelope, borrowing from `body`.
    ///
    /// Ignores unknown fields; `headers` and `reply_to` may be missing.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Decode`] if a field is missing or has the wrong type; the error
    /// names the field.
    pub fn decode(body: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(body).map_err(|error| {
            Error::new(
                ErrorKind::Decode,
                format!("not a service envelope: {}", diagnose(body, &error)),
            )
        })
    }
}

impl<P: Serialize> ServiceMessage<'_, P> {
    /// Encodes the message as JSON, all nine fields in the contract's order.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Encode`] if serde_json cannot encode the payload.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(TYPICAL_SIZE);
        self.write_head(&mut out)?;
        write_json(&self.reply_to, &mut out)?;
        self.write_headers(&mut out);
        write_json(&self.payload, &mut out)?;
        out.push(b'}');
        Ok(out)
    }

    /// Encodes the message with a placeholder for the name of the reply queue, which only the
    /// transport knows, and only at the moment of sending.
    pub(crate) fn encode_awaiting_reply_queue(&self) -> Result<Body> {
        let mut out = Vec::with_capacity(TYPICAL_SIZE);
        let ends = self.write_head(&mut out)?;
        let placeholder = out.len();
        self.write_headers(&mut out);
        write_json(&self.payload, &mut out)?;
        out.push(b'}');
        Ok(Body::with_reply_queue_at(out, placeholder, ends))
    }
}

impl ServiceMessage<'_, ()> {
    /// Encodes the message with a placeholder for the reply queue's name and a payload of about
    /// `size` bytes, which `write` writes as JSON.
    pub(super) fn encode_awaiting_reply_queue_with(
        &self,
        size: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Body> {
        let mut out = Vec::with_capacity(TYPICAL_SIZE + size);
        let ends = self.write_head(&mut out)?;
        let placeholder = out.len();
        self.write_headers(&mut out);
        write(&mut out);
        out.push(b'}');
        Ok(Body::with_reply_queue_at(out, placeholder, ends))
    }

    /// Encodes the message with its own `reply_to` and a payload of about `size` bytes, which
    /// `write` writes as JSON.
    pub(super) fn encode_with(
        &self,
        size: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(TYPICAL_SIZE + size);
        self.write_head(&mut out)?;
        write_json(&self.reply_to, &mut out)?;
        self.write_headers(&mut out);
        write(&mut out);
        out.push(b'}');
        Ok(out)
    }
}

impl<P> ServiceMessage<'_, P> {
    fn write_head(&self, out: &mut Vec<u8>) -> Result<FieldEnds> {
        out.extend_from_slice(b"{\"message_id\":");
        write_json(&self.message_id, out)?;
        let message_id = out.len();
        out.extend_from_slice(b",\"source_service\":");
        write_json(&self.source_service, out)?;
        out.extend_from_slice(b",\"target_service\":");
        write_json(&self.target_service, out)?;
        let services = out.len();
        out.extend_from_slice(b",\"action\":");
        write_json(&self.action, out)?;
        let action = out.len();
        out.extend_from_slice(b",\"timestamp\":");
        write_json(&self.timestamp, out)?;
        let timestamp = out.len();
        out.extend_from_slice(b",\"correlation_id\":");
        write_json(&self.correlation_id, out)?;
        let correlation_id = out.len();
        out.extend_from_slice(b",\"reply_to\":");
        Ok(FieldEnds {
            message_id,
            services,
            action,
            timestamp,
            correlation_id,
        })
    }

    /// Writes everything between the reply queue's name and the payload.
    fn write_headers(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"headers\":");
        out.extend_from_slice(self.headers.as_str().as_bytes());
        out.extend_from_slice(b",\"payload\":");
    }
}

/// The room for the envelope's own fields, a small payload and the name of a reply queue, in bytes,
/// so that most messages are written without reallocation.
const TYPICAL_SIZE: usize = 768;

pub(super) fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, value).map_err(|error| {
        Error::new(
            ErrorKind::Encode,
            format!("the payload cannot be encoded as JSON: {error}"),
        )
    })
}

/// The largest body that is diagnosed, in bytes; the error of a larger one has serde's own text.
const MAX_DIAGNOSED: usize = 64 << 10;

/// Returns the cause of a decoding error. serde names the fault of a value but not its field, so on
/// this cold path the body is read once more, field by field.
fn diagnose(body: &[u8], error: &serde_json::Error) -> String {
    use serde_json::Value;
    type Fits = fn(&Value) -> bool;
    const STRING: (&str, Fits) = ("a string", Value::is_string);
    const FIELDS: [(&str, (&str, Fits)); 9] = [
        ("message_id", STRING),
        ("source_service", STRING),
        ("target_service", STRING),
        ("action", STRING),
        ("timestamp", ("a whole number", Value::is_i64)),
        ("correlation_id", STRING),
        (
            "reply_to",
            ("a string or null", |v| v.is_string() || v.is_null()),
        ),
        (
            "headers",
            ("an object", |v| {
                v.is_object() || v.is_null() || v.as_array().is_some_and(Vec::is_empty)
            }),
        ),
        ("payload", ("a JSON value", |_| true)),
    ];
    // A parsed value takes many times the memory of its text.
    if body.len() > MAX_DIAGNOSED {
        return error.to_string();
    }
    let value = match serde_json::from_slice::<Value>(body) {
        Ok(value) => value,
        Err(error) => return not_json::explain(body, &error).to_string(),
    };
    let Some(object) = value.as_object() else {
        return "the body is not a JSON object".to_owned();
    };
    for (field, (wanted, fits)) in FIELDS {
        match object.get(field) {
            Some(value) if !fits(value) => return format!("field `{field}` is not {wanted}"),
            None if !matches!(field, "reply_to" | "headers") => {
                return format!("field `{field}` is missing");
            }
            _ => {}
        }
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request as a PHP peer sends it, byte for byte.
    const PHP: &str = r#"{"message_id":"msg_20261123083012_862ad1d69070c888","source_service":"order-service","target_service":"user-service","action":"get_user","timestamp":1795422612,"correlation_id":"0123456789abcdef0123456789abcdef","reply_to":"amq.gen-x\/y","headers":[],"payload":{"name":"\u5f20\u4e09","path":"a\/b"}}"#;

    #[test]
    fn decodes_a_request_of_a_php_peer() {
        let message = ServiceMessage::decode(PHP.as_bytes()).unwrap();
        assert_eq!(message.message_id, "msg_20261123083012_862ad1d69070c888");
        assert_eq!(message.timestamp, 1_795_422_612);
        assert_eq!(message.reply_to.as_deref(), Some("amq.gen-x/y"));
        assert_eq!(message.headers.as_str(), "{}");
        let payload: std::collections::HashMap<String, String> = message.payload.decode().unwrap();
        assert_eq!(payload["name"], "张三");
        assert_eq!(payload["path"], "a/b");
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let body = PHP.replace("\"timestamp\"", "\"x\":[{\"y\":1}],\"timestamp\"");
        assert!(ServiceMessage::decode(body.as_bytes()).is_ok());
    }

    #[test]
    fn the_error_names_the_field() {
        let cases = [
            (
                PHP.replace("\"action\"", "\"act\""),
                "field `action` is missing",
            ),
            (
                PHP.replace("\"get_user\"", "5"),
                "field `action` is not a string",
            ),
            (
                PHP.replace("1795422612", "\"now\""),
                "field `timestamp` is not a whole number",
            ),
            (PHP.replace("[]", "[1]"), "field `headers` is not an object"),
            ("[1]".to_owned(), "not a JSON object"),
            ("{".to_owned(), "EOF"),
            ("\u{1}".to_owned(), "expected value"),
        ];
        for (body, wanted) in cases {
            let error = ServiceMessage::decode(body.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode);
            assert!(error.to_string().contains(wanted), "{error} / {wanted}");
        }
    }

    #[test]
    fn encodes_all_nine_fields_in_order() {
        let mut message = ServiceMessage::new("a", "b", "c", ());
        message.message_id = "m".into();
        message.correlation_id = "x".into();
        message.timestamp = 5;
        let text = String::from_utf8(message.encode().unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"message_id":"m","source_service":"a","target_service":"b","action":"c","timestamp":5,"correlation_id":"x","reply_to":null,"headers":{},"payload":null}"#
        );
        let body = message.encode_awaiting_reply_queue().unwrap();
        message.reply_to = Some("q\"1".into());
        let wanted = message.encode().unwrap();
        assert_eq!(*body.clone().fill("q\"1"), wanted, "shared");
        assert_eq!(*body.fill("q\"1"), wanted);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            source in ".*", target in ".*", action in ".*", payload in ".*",
            reply_to in proptest::option::of(".*"),
        ) {
            let mut message = ServiceMessage::new(source, target, action, payload);
            message.reply_to = reply_to.map(Cow::Owned);
            let body = message.encode().unwrap();
            let read = ServiceMessage::decode(&body).unwrap();
            prop_assert_eq!(&read.source_service, &message.source_service);
            prop_assert_eq!(&read.target_service, &message.target_service);
            prop_assert_eq!(&read.action, &message.action);
            prop_assert_eq!(&read.reply_to, &message.reply_to);
            prop_assert_eq!(read.payload.decode::<String>(), Ok(message.payload));
        }

        #[test]
        fn arbitrary_and_mutated_bytes_never_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0..PHP.len(), byte: u8,
        ) {
            let _ = ServiceMessage::decode(&noise);
            let mut body = PHP.as_bytes().to_vec();
            body[at] = byte;
            let _ = ServiceMessage::decode(&body);
            let _ = ServiceMessage::decode(&body[..at]);
        }
    }
}

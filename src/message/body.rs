//! The body of an outgoing message.

use std::fmt;
use std::sync::Arc;

use super::Json;

/// The bytes of a message, possibly with a placeholder for the name of a reply queue.
///
/// A reply queue is named by the broker and gets a new name at every reconnect, while a request may
/// be encoded long before it can be sent. So the client leaves a placeholder, which the transport
/// fills when it sends.
///
/// Clones share the bytes.
#[derive(Clone, Default)]
pub struct Body {
    bytes: Arc<Vec<u8>>,
    placeholder: Option<Placeholder>,
}

/// The place for the name of the reply queue, and the ends of the fields before it.
#[derive(Clone, Copy)]
struct Placeholder {
    at: usize,
    ends: FieldEnds,
}

/// The offsets at which fields of an encoded request end, in bytes, by which they can be cut out.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldEnds {
    pub(super) message_id: usize,
    /// The end of both service fields.
    pub(super) services: usize,
    pub(super) action: usize,
    pub(super) timestamp: usize,
    pub(super) correlation_id: usize,
}

/// The usual size of a reply queue's name, in bytes: RabbitMQ's generated names, `amq.gen-…`, have
/// 30, and quotes around them.
const USUAL_NAME: usize = 32;

/// The largest size of a reply queue's name, in bytes: 255 and quotes around them.
const LONGEST_NAME: usize = 257;

impl Body {
    pub(super) fn with_reply_queue_at(bytes: Vec<u8>, at: usize, ends: FieldEnds) -> Self {
        let mut bytes = bytes;
        // The body may be queued for long, along with many others.
        if bytes.capacity() > 2 * (bytes.len() + USUAL_NAME) {
            bytes.shrink_to(bytes.len() + USUAL_NAME);
        }
        Self {
            bytes: Arc::new(bytes),
            placeholder: Some(Placeholder { at, ends }),
        }
    }

    /// Creates a body whose bytes are shared.
    pub(crate) fn from_shared(bytes: Arc<Vec<u8>>) -> Self {
        Self {
            bytes,
            placeholder: None,
        }
    }

    /// Returns the size in bytes, with the longest name a reply queue can have if the placeholder
    /// is not filled yet.
    pub fn len(&self) -> usize {
        let name = self.placeholder.map_or(0, |_| LONGEST_NAME);
        self.bytes.len() + name
    }

    /// Returns true if the body is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the bytes as they are: without the name of a reply queue.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the finished bytes in the pieces they are made of, for a sender that copies them
    /// anyway: those before the placeholder, `quoted_name` in its place, and those after it.
    /// Without a placeholder, the first piece is everything.
    pub(crate) fn pieces<'a>(&'a self, quoted_name: &'a str) -> [&'a [u8]; 3] {
        let Some(Placeholder { at, .. }) = self.placeholder else {
            return [&self.bytes, &[], &[]];
        };
        let (before, after) = self.bytes.split_at(at);
        [before, quoted_name.as_bytes(), after]
    }

    /// Returns true if the sender waits for a reply on its link's reply queue.
    pub(crate) fn wants_reply_queue(&self) -> bool {
        self.placeholder.is_some()
    }

    /// Returns the fields that a batch needs of a request that waits for its reply.
    pub(super) fn request_fields(&self) -> Option<RequestFields<'_>> {
        let Placeholder { at, ends } = self.placeholder?;
        let bytes = &self.bytes;
        Some(RequestFields {
            message_id: &bytes[..ends.message_id],
            services: &bytes[ends.message_id..ends.services],
            action: &bytes[ends.services..ends.action],
            correlation_id: &bytes[ends.timestamp..ends.correlation_id],
            headers_and_payload: &bytes[at..],
        })
    }

    /// Returns the finished bytes, with `name` as a JSON string in the place of the placeholder.
    /// Copies them only if they are shared and have a placeholder.
    pub(crate) fn fill(self, name: &str) -> Arc<Vec<u8>> {
        let Some(Placeholder { at, .. }) = self.placeholder else {
            return self.bytes;
        };
        let text = Json::quote(name);
        match Arc::try_unwrap(self.bytes) {
            Ok(mut bytes) => {
                bytes.splice(at..at, text.into_bytes());
                Arc::new(bytes)
            }
            Err(shared) => {
                let mut bytes = Vec::with_capacity(shared.len() + text.len());
                bytes.extend_from_slice(&shared[..at]);
                bytes.extend_from_slice(text.as_bytes());
                bytes.extend_from_slice(&shared[at..]);
                Arc::new(bytes)
            }
        }
    }
}

/// The fields of an encoded request. Concatenated in this order, all but the services make an item
/// of a batch.
pub(super) struct RequestFields<'a> {
    /// Includes the brace before it.
    pub(super) message_id: &'a [u8],
    /// Includes the comma before it, as do the fields that follow.
    pub(super) services: &'a [u8],
    pub(super) action: &'a [u8],
    pub(super) correlation_id: &'a [u8],
    /// Includes the brace after it.
    pub(super) headers_and_payload: &'a [u8],
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Arc::new(bytes),
            placeholder: None,
        }
    }
}

impl fmt::Debug for Body {
    /// Shows the size only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.bytes.len())
    }
}

use std::fmt;
use std::sync::Arc;

use super::Json;

/// The bytes of a message, possibly with a hole for the name of a reply queue.
///
/// A reply queue is named by the broker and gets a new name at every
/// reconnect, while a request may be encoded long before it can be sent. So
/// the client leaves a hole and the transport fills it when it sends.
///
/// Clones share the bytes.
#[derive(Clone, Default)]
pub struct Body {
    bytes: Arc<Vec<u8>>,
    placeholder: Option<Placeholder>,
}

/// Where the name of the reply queue goes, and what stands before it.
#[derive(Clone, Copy)]
struct Placeholder {
    at: usize,
    fields: Fields,
}

/// Where fields of an encoded message end, so that they can be taken out of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) message_id: usize,
    /// The two services.
    pub(super) services: usize,
    pub(super) action: usize,
    pub(super) timestamp: usize,
    pub(super) correlation_id: usize,
}

/// What RabbitMQ makes up, `amq.gen-…`, has 30 bytes, and quotes round it.
const USUAL_NAME: usize = 32;

/// A name of 255 bytes, in quotes.
const LONGEST_NAME: usize = 257;

impl Body {
    pub(super) fn with_reply_queue_at(bytes: Vec<u8>, at: usize, fields: Fields) -> Self {
        let mut bytes = bytes;
        // It may wait for long, and with many others.
        if bytes.capacity() > 2 * (bytes.len() + USUAL_NAME) {
            bytes.shrink_to(bytes.len() + USUAL_NAME);
        }
        Self {
            bytes: Arc::new(bytes),
            placeholder: Some(Placeholder { at, fields }),
        }
    }

    /// Bytes that are shared with others.
    pub(crate) fn from_shared(bytes: Arc<Vec<u8>>) -> Self {
        Self {
            bytes,
            placeholder: None,
        }
    }

    /// Size in bytes; with the longest name a reply queue can have, if one is
    /// still to be filled in.
    pub fn len(&self) -> usize {
        let name = self.placeholder.map_or(0, |_| LONGEST_NAME);
        self.bytes.len() + name
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True if the sender waits for a reply on its link's reply queue.
    pub(crate) fn wants_reply_queue(&self) -> bool {
        self.placeholder.is_some()
    }

    /// The fields of a request that waits for its reply: what a batch needs of them.
    pub(super) fn parts(&self) -> Option<Parts<'_>> {
        let Placeholder { at, fields } = self.placeholder?;
        let bytes = &self.bytes;
        Some(Parts {
            message_id: &bytes[..fields.message_id],
            services: &bytes[fields.message_id..fields.services],
            action: &bytes[fields.services..fields.action],
            correlation_id: &bytes[fields.timestamp..fields.correlation_id],
            headers_and_payload: &bytes[at..],
        })
    }

    /// The finished bytes, the hole filled with `name` as a JSON string. Copies them only if
    /// they are shared and there is a hole.
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

/// Parts of an encoded request. Put together in this order, all but the services are an
/// item of a batch.
pub(super) struct Parts<'a> {
    /// With the brace before it.
    pub(super) message_id: &'a [u8],
    /// From here on, with the comma before it.
    pub(super) services: &'a [u8],
    pub(super) action: &'a [u8],
    pub(super) correlation_id: &'a [u8],
    /// With the brace after it.
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

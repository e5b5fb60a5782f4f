use std::fmt;

use super::Json;

/// The bytes of a message, possibly with a hole for the name of a reply queue.
///
/// A reply queue is named by the broker and gets a new name at every
/// reconnect, while a request may be encoded long before it can be sent. So
/// the client leaves a hole and the transport fills it when it sends.
#[derive(Clone, Default)]
pub struct Body {
    bytes: Vec<u8>,
    reply_queue_at: Option<usize>,
}

/// What RabbitMQ makes up, `amq.gen-…`, has 30 bytes, and quotes round it.
const USUAL_NAME: usize = 32;

/// A name of 255 bytes, in quotes.
const LONGEST_NAME: usize = 257;

impl Body {
    pub(crate) fn with_reply_queue_at(bytes: Vec<u8>, at: usize) -> Self {
        let mut bytes = bytes;
        // It may wait for long, and with many others.
        bytes.shrink_to(bytes.len() + USUAL_NAME);
        Self {
            bytes,
            reply_queue_at: Some(at),
        }
    }

    /// Size in bytes; with the longest name a reply queue can have, if one is
    /// still to be filled in.
    pub fn len(&self) -> usize {
        let name = self.reply_queue_at.map_or(0, |_| LONGEST_NAME);
        self.bytes.len() + name
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True if the sender waits for a reply on its link's reply queue.
    pub(crate) fn wants_reply_queue(&self) -> bool {
        self.reply_queue_at.is_some()
    }

    /// The finished bytes, the hole filled with `name` as a JSON string.
    pub(crate) fn fill(self, name: &str) -> Vec<u8> {
        let mut bytes = self.bytes;
        if let Some(at) = self.reply_queue_at {
            let text = Json::quote(name);
            bytes.splice(at..at, text.into_bytes());
        }
        bytes
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            reply_queue_at: None,
        }
    }
}

impl fmt::Debug for Body {
    /// Shows the size only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.bytes.len())
    }
}

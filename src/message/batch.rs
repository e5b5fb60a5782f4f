//! Batches: many requests in one message. They extend the contract: a peer without support for them
//! replies `Unknown action: $batch`, and gets its requests one at a time.
//!
//! An item without a `correlation_id` is answered in the batch's reply, whose `data` is the array
//! of the items' replies in the order of the requests. An item with a `correlation_id` gets a reply
//! of its own, possibly in a [reply batch](super::reply_batch), and leaves a `null` in that array.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::request::write_json;
use super::{Body, BoundedSeq, CorrelationId, Headers, Json, MessageId, ServiceMessage};
use crate::base::catch::catch;
use crate::base::moment::Moment;
use crate::error::{Error, ErrorKind, Result};

/// The action of a batch.
pub(crate) const BATCH_ACTION: &str = "$batch";

/// The most requests in one batch: the shortest takes 26 bytes on the wire, and hundreds in the
/// memory of the server that handles it.
pub(crate) const MOST_ITEMS: usize = 10_000;

/// A request in a batch, as decoded.
#[derive(Deserialize)]
pub(crate) struct Item<'a> {
    #[serde(borrow)]
    pub(crate) action: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) payload: Json<'a>,
    #[serde(borrow, default)]
    pub(crate) message_id: Cow<'a, str>,
    /// The item's headers; without any, the batch's headers apply.
    #[serde(borrow)]
    pub(crate) headers: Option<Headers<'a>>,
    #[serde(borrow)]
    pub(crate) correlation_id: Option<Text<'a>>,
}

/// A text, borrowed unless it has escapes; a `Cow` alone within an `Option` is never borrowed.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Decodes the payload of a batch.
///
/// # Errors
///
/// Fails with serde_json's error if the payload is not an array of items, or has more than
/// [`MOST_ITEMS`].
pub(crate) fn read(payload: &str) -> std::result::Result<Vec<Item<'_>>, serde_json::Error> {
    let items: BoundedSeq<Item<'_>, MOST_ITEMS> = serde_json::from_str(payload)?;
    Ok(items.0)
}

/// Requests that are answered in one reply, encoded one by one.
#[derive(Debug, Default)]
pub(crate) struct BatchItems {
    /// The encoded items, each with a bracket or a comma before it.
    json: Vec<u8>,
}

impl BatchItems {
    /// Adds an item; returns the offset at which it begins and the range of its payload. Adds
    /// nothing if the payload cannot be encoded.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Encode`](crate::ErrorKind::Encode) if the payload's `Serialize`
    /// fails or panics.
    pub(crate) fn push<P: Serialize + ?Sized>(
        &mut self,
        action: &str,
        message_id: &str,
        payload: &P,
    ) -> Result<(usize, Range<usize>)> {
        let start = self.json.len();
        // The payload's `Serialize` may panic as well as fail.
        match catch(|| self.write(action, message_id, payload)) {
            Ok(Ok(payload)) => Ok((start, payload)),
            Ok(Err(error)) => {
                self.json.truncate(start);
                Err(error)
            }
            Err(panic) => {
                self.json.truncate(start);
                let fault =
                    format!("a payload for {action:?} panicked while it was encoded: {panic}");
                Err(Error::new(ErrorKind::Encode, fault))
            }
        }
    }

    /// Splits off the items from the offset `start` on; their offsets then count from `start`.
    pub(crate) fn split_off(&mut self, start: usize) -> Self {
        let mut json = self.json.split_off(start);
        if let Some(before) = json.first_mut() {
            *before = b'[';
        }
        Self { json }
    }

    fn write<P: Serialize + ?Sized>(
        &mut self,
        action: &str,
        message_id: &str,
        payload: &P,
    ) -> Result<Range<usize>> {
        let out = &mut self.json;
        out.extend_from_slice(if out.is_empty() { b"[" } else { b"," });
        out.extend_from_slice(b"{\"action\":");
        write_json(action, out)?;
        out.extend_from_slice(b",\"payload\":");
        let start = out.len();
        write_json(payload, out)?;
        let end = out.len();
        out.extend_from_slice(b",\"message_id\":");
        write_json(message_id, out)?;
        out.push(b'}');
        Ok(start..end)
    }

    /// Returns the size of the encoded items in bytes.
    pub(crate) fn len(&self) -> usize {
        self.json.len()
    }

    /// Returns the payload of an added item.
    pub(crate) fn payload(&self, at: Range<usize>) -> Json<'_> {
        serde_json::from_slice(&self.json[at]).unwrap_or(Json::NULL)
    }

    /// Encodes the request that carries the items as its payload.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Encode`](crate::ErrorKind::Encode) if the envelope cannot be
    /// encoded.
    pub(crate) fn encode(&self, envelope: &ServiceMessage<'_, ()>) -> Result<Body> {
        envelope.encode_awaiting_reply_queue_with(self.json.len(), |out| {
            out.extend_from_slice(&self.json);
            out.push(b']');
        })
    }
}

/// Encodes one batch from requests that would otherwise be sent one by one, and whose replies all
/// go to `reply_queue`: each gets a reply of its own. Returns the batch's message id and body.
///
/// # Errors
///
/// Fails in no case that can occur: the requests are encoded already.
pub(crate) fn write_coalesced<'a>(
    bodies: impl Iterator<Item = &'a Body> + Clone,
    id: CorrelationId,
    reply_queue: &str,
) -> Result<(String, Vec<u8>)> {
    let services = bodies.clone().find_map(Body::request_fields);
    let services = Services::read(services.map_or(&[], |fields| fields.services));
    let now = Moment::now();
    let envelope = ServiceMessage {
        reply_to: Some(reply_queue.into()),
        ..ServiceMessage::with_ids(
            now,
            MessageId::random_at(now).to_text(),
            id.to_text(),
            services.source_service,
            services.target_service,
            BATCH_ACTION,
            (),
        )
    };
    let size = bodies.clone().map(Body::len).sum();
    let body = envelope.encode_with(size, |out| {
        let mut before = b'[';
        for fields in bodies.filter_map(Body::request_fields) {
            out.push(before);
            before = b',';
            out.extend_from_slice(fields.message_id);
            out.extend_from_slice(fields.action);
            out.extend_from_slice(fields.correlation_id);
            out.extend_from_slice(fields.headers_and_payload);
        }
        out.push(b']');
    })?;
    Ok((envelope.message_id.into_owned(), body))
}

#[derive(Default, Deserialize)]
struct Services {
    source_service: String,
    target_service: String,
}

impl Services {
    /// Decodes the two service fields, cut out of an encoded request.
    fn read(fields: &[u8]) -> Self {
        let fields = fields.strip_prefix(b",").unwrap_or(fields);
        let object = [b"{", fields, b"}"].concat();
        serde_json::from_slice(&object).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::new_message_id;

    fn read(body: Vec<u8>) -> (String, Vec<(String, String, Option<String>)>) {
        let message = ServiceMessage::decode(&body).unwrap();
        let items = super::read(message.payload.as_str()).unwrap();
        let items = items.into_iter().map(|item| {
            let payload = item.payload.as_str().to_owned();
            let id = item.correlation_id.map(|id| id.0.into_owned());
            (item.action.into_owned(), payload, id)
        });
        let from_to = format!("{}>{}", message.source_service, message.target_service);
        (from_to, items.collect())
    }

    #[test]
    fn items_are_decoded_as_they_were_encoded() {
        let mut items = BatchItems::default();
        let (_, payload) = items.push("a\"b", "m1", &"张").unwrap();
        let bad = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(items.push("c", "m2", &bad).is_err(), "and leaves no trace");
        items.push("c", "m3", &()).unwrap();
        let before = items.len();
        let (start, _) = items.push("d", "m4", &()).unwrap();
        assert_eq!(start, before);
        assert!(items.split_off(start).len() > 0);
        assert_eq!(items.len(), before);
        assert_eq!(items.payload(payload).as_str(), "\"张\"");
        let envelope = ServiceMessage::new("from", "to", BATCH_ACTION, ());
        let (services, read) = read(items.encode(&envelope).unwrap().fill("q").to_vec());
        assert_eq!(services, "from>to");
        let wanted = [("a\"b", "\"张\""), ("c", "null")];
        let wanted = wanted.map(|(action, payload)| (action.to_owned(), payload.to_owned(), None));
        assert_eq!(read, wanted);
    }

    #[test]
    fn coalesced_requests_keep_their_ids_and_headers() {
        let ids = [CorrelationId::random(), CorrelationId::random()];
        let bodies = ids.map(|id| {
            let mut message = ServiceMessage::with_ids(
                Moment::now(),
                "msg_1",
                id.to_text(),
                "fr\"om",
                "to",
                "act",
                [1, 2],
            );
            message.headers.insert("n", &id.to_text());
            message.message_id = new_message_id().into();
            message.encode_awaiting_reply_queue().unwrap()
        });
        let (_, batch) = write_coalesced(bodies.iter(), CorrelationId::random(), "q").unwrap();
        let (services, read) = read(batch);
        assert_eq!(services, "fr\"om>to");
        let wanted = ids.map(|id| ("act".to_owned(), "[1,2]".to_owned(), Some(id.to_text())));
        assert_eq!(read, wanted);
    }
}

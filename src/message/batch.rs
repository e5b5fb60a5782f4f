//! Many requests in one message. An extension of the contract: a peer that does not
//! know it answers `Unknown action: $batch`, and is sent one at a time.
//!
//! An item without a `correlation_id` is answered in the batch's reply, whose `data` is
//! the array of the items' replies in the order asked. One with its own is answered on
//! its own, possibly in a [bundle](super::reply_batch), and leaves a `null` in that array.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::request::write_json;
use super::{Body, BoundedSeq, CorrelationId, Headers, Json, ServiceMessage};
use crate::base::catch::catch;
use crate::error::{Error, ErrorKind, Result};

/// The action of a batch.
pub(crate) const BATCH_ACTION: &str = "$batch";

/// How many requests a batch may hold: the least takes 26 bytes on the wire, and hundreds
/// where it is handled.
pub(crate) const MOST_ITEMS: usize = 10_000;

/// A request in a batch, as it is read.
#[derive(Deserialize)]
pub(crate) struct Item<'a> {
    #[serde(borrow)]
    pub(crate) action: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) payload: Json<'a>,
    #[serde(borrow, default)]
    pub(crate) message_id: Cow<'a, str>,
    /// Without any of its own, the batch's count.
    #[serde(borrow)]
    pub(crate) headers: Option<Headers<'a>>,
    #[serde(borrow)]
    pub(crate) correlation_id: Option<Text<'a>>,
}

/// A text, borrowed unless it has escapes; within an `Option` a `Cow` alone never is.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Reads the payload of a batch.
///
/// # Errors
///
/// What is wrong with it, as serde_json puts it.
pub(crate) fn read(payload: &str) -> std::result::Result<Vec<Item<'_>>, serde_json::Error> {
    let items: BoundedSeq<Item<'_>, MOST_ITEMS> = serde_json::from_str(payload)?;
    Ok(items.0)
}

/// Requests to be answered in one reply, encoded one by one.
#[derive(Debug, Default)]
pub(crate) struct Items {
    /// Each with a bracket or a comma before it.
    json: Vec<u8>,
}

impl Items {
    /// Adds one, and says where it begins and where its payload stands. One that cannot
    /// be encoded is left out.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Encode`](crate::ErrorKind::Encode).
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
                let fault = format!("a payload for {action:?} panicked as it was encoded: {panic}");
                Err(Error::new(ErrorKind::Encode, fault))
            }
        }
    }

    /// Takes out those from `start` on; where they stand counts from there then.
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

    /// Their size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.json.len()
    }

    /// A payload that was added.
    pub(crate) fn payload(&self, at: Range<usize>) -> Json<'_> {
        serde_json::from_slice(&self.json[at]).unwrap_or(Json::NULL)
    }

    /// The request that consists of them.
    ///
    /// # Errors
    ///
    /// As [`push`](Items::push).
    pub(crate) fn encode(&self, envelope: &ServiceMessage<'_, ()>) -> Result<Body> {
        envelope.encode_awaiting_round(self.json.len(), |out| {
            out.extend_from_slice(&self.json);
            out.push(b']');
        })
    }
}

/// The request that consists of such as would have been sent one by one, and who wait on
/// this reply queue: each is answered on its own. Returns its message id and its body.
///
/// # Errors
///
/// None that can happen: what goes in is encoded already.
pub(crate) fn write_coalesced<'a>(
    bodies: impl Iterator<Item = &'a Body> + Clone,
    id: CorrelationId,
    reply_queue: &str,
) -> Result<(String, Vec<u8>)> {
    let services = bodies.clone().find_map(Body::parts);
    let services = Services::read(services.map_or(&[], |parts| parts.services));
    let envelope = ServiceMessage {
        reply_to: Some(reply_queue.into()),
        ..ServiceMessage::with_correlation_id(
            id.to_text(),
            services.source_service,
            services.target_service,
            BATCH_ACTION,
            (),
        )
    };
    let size = bodies.clone().map(Body::len).sum();
    let body = envelope.encode_round(size, |out| {
        let mut before = b'[';
        for parts in bodies.filter_map(Body::parts) {
            out.push(before);
            before = b',';
            out.extend_from_slice(parts.message_id);
            out.extend_from_slice(parts.action);
            out.extend_from_slice(parts.correlation_id);
            out.extend_from_slice(parts.headers_and_payload);
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
    /// Reads them as they stand among the fields of a request.
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
    fn items_are_read_as_they_were_written() {
        let mut items = Items::default();
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
    fn requests_are_gathered_with_their_own_ids_and_headers() {
        let ids = [CorrelationId::random(), CorrelationId::random()];
        let bodies = ids.map(|id| {
            let mut message =
                ServiceMessage::with_correlation_id(id.to_text(), "fr\"om", "to", "act", [1, 2]);
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

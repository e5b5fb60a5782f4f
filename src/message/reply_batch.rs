//! Reply batches: many replies in one message. They go only to callers known to support them: those
//! that sent several requests in one message. A reply batch has no correlation id of its own; each
//! of its replies has one.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::batch::MOST_ITEMS;
use super::{BoundedSeq, Json};
use crate::error::{Error, ErrorKind, Result};

/// A reply batch, as decoded.
#[derive(Deserialize)]
pub(crate) struct ReplyBatch<'a> {
    #[serde(borrow)]
    pub(crate) replies: BoundedSeq<BatchedReply<'a>, MOST_ITEMS>,
}

#[derive(Deserialize)]
pub(crate) struct BatchedReply<'a> {
    #[serde(borrow)]
    pub(crate) correlation_id: Cow<'a, str>,
    /// The body of an ordinary reply.
    #[serde(borrow)]
    reply: &'a RawValue,
}

impl<'a> ReplyBatch<'a> {
    /// Decodes a reply batch, borrowing from `body`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Decode`] if the body is not a reply batch.
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(body)
            .map_err(|error| Error::new(ErrorKind::Decode, format!("not a reply batch: {error}")))
    }
}

impl<'a> BatchedReply<'a> {
    /// Returns the body of an ordinary reply.
    pub(crate) fn body(&self) -> &'a str {
        self.reply.get()
    }
}

/// A reply batch under construction.
#[derive(Debug)]
pub(crate) struct ReplyBatchWriter {
    json: Vec<u8>,
    replies: usize,
    /// The range of the latest reply in `json`.
    latest: Range<usize>,
    first_id: String,
}

const END: &[u8] = b"]}";
const START: &[u8] = b"{\"success\":true,\"replies\":[";
const ID_KEY: &[u8] = b"{\"correlation_id\":";
const REPLY_KEY: &[u8] = b",\"reply\":";

/// The bytes around a reply whose id has no escapes.
const REPLY_OVERHEAD: usize = ID_KEY.len() + REPLY_KEY.len() + "\"\",}".len();

impl ReplyBatchWriter {
    /// Creates a reply batch with a first reply.
    pub(crate) fn new(id: &str, reply: &[u8]) -> Self {
        let mut writer = Self {
            json: START.to_vec(),
            replies: 0,
            latest: 0..0,
            first_id: id.to_owned(),
        };
        writer.push(id, reply);
        writer
    }

    /// Adds the body of an ordinary reply.
    pub(crate) fn push(&mut self, id: &str, reply: &[u8]) {
        let out = &mut self.json;
        out.reserve(REPLY_OVERHEAD + id.len() + reply.len());
        if self.replies > 0 {
            out.push(b',');
        }
        self.replies += 1;
        out.extend_from_slice(ID_KEY);
        out.extend_from_slice(Json::quote(id).as_bytes());
        out.extend_from_slice(REPLY_KEY);
        let start = out.len();
        out.extend_from_slice(reply);
        self.latest = start..out.len();
        out.push(b'}');
    }

    /// Returns the size in bytes that the batch would have with another reply.
    pub(crate) fn len_with(&self, id: &str, reply: &[u8]) -> usize {
        self.json.len() + Self::room_for(id, reply) + END.len()
    }

    /// Returns the most bytes that a reply can take in a batch.
    pub(crate) fn room_for(id: &str, reply: &[u8]) -> usize {
        // Escapes take up to six bytes for each byte of the id.
        REPLY_OVERHEAD + 6 * id.len() + reply.len()
    }

    /// Returns the finished body. A batch of one reply becomes an ordinary reply, and its
    /// correlation id is returned too.
    pub(crate) fn finish(mut self) -> (Option<String>, Vec<u8>) {
        if self.replies == 1 {
            let alone = self.json[self.latest].to_vec();
            return (Some(self.first_id), alone);
        }
        self.json.extend_from_slice(END);
        (None, self.json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_decoded_as_they_were_added() {
        let ids = ["a", "b\"b", "c"];
        let bodies = ["{\"success\":true}", "{\"data\":[1]}", "{}"];
        let mut writer = ReplyBatchWriter::new(ids[0], bodies[0].as_bytes());
        writer.push(ids[1], bodies[1].as_bytes());
        writer.push(ids[2], bodies[2].as_bytes());
        let (None, body) = writer.finish() else {
            panic!("three replies are a reply batch");
        };
        let reply_batch = ReplyBatch::decode(&body).unwrap();
        let replies = reply_batch.replies.0.iter();
        let read: Vec<_> = replies
            .map(|one| (&*one.correlation_id, one.body()))
            .collect();
        let wanted: Vec<_> = ids.into_iter().zip(bodies).collect();
        assert_eq!(read, wanted);
        assert!(ReplyBatch::decode(b"{\"success\":true}").is_err());
    }

    #[test]
    fn a_single_reply_is_an_ordinary_one() {
        let (id, body) = ReplyBatchWriter::new("a", b"{\"success\":true}").finish();
        assert_eq!(id.as_deref(), Some("a"));
        assert_eq!(body, b"{\"success\":true}");
    }
}

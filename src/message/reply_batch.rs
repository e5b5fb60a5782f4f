//! Many replies in one message, for callers that are known to understand it: those that
//! sent their requests together. It has no correlation id of its own; each reply has.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::batch::MOST_ITEMS;
use super::{BoundedSeq, Json};
use crate::error::{Error, ErrorKind, Result};

/// What a bundle holds, as it is read.
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
    /// Reads a bundle, borrowing from `body`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`].
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(body)
            .map_err(|error| Error::new(ErrorKind::Decode, format!("not a bundle: {error}")))
    }
}

impl<'a> BatchedReply<'a> {
    /// The body of an ordinary reply.
    pub(crate) fn body(&self) -> &'a str {
        self.reply.get()
    }
}

/// Replies that are being bundled.
#[derive(Debug)]
pub(crate) struct ReplyBatchWriter {
    json: Vec<u8>,
    replies: usize,
    /// Where the latest reply stands.
    latest: Range<usize>,
    first_id: String,
}

const END: &[u8] = b"]}";
const START: &[u8] = b"{\"success\":true,\"replies\":[";
const KEY: &[u8] = b"{\"correlation_id\":";
const THEN: &[u8] = b",\"reply\":";

/// What stands round a reply with a plain id.
const ROUND_ONE: usize = KEY.len() + THEN.len() + "\"\",}".len();

impl ReplyBatchWriter {
    /// Begins with one.
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
        out.reserve(ROUND_ONE + id.len() + reply.len());
        if self.replies > 0 {
            out.push(b',');
        }
        self.replies += 1;
        out.extend_from_slice(KEY);
        out.extend_from_slice(Json::quote(id).as_bytes());
        out.extend_from_slice(THEN);
        let start = out.len();
        out.extend_from_slice(reply);
        self.latest = start..out.len();
        out.push(b'}');
    }

    /// Its size in bytes with another reply.
    pub(crate) fn len_with(&self, id: &str, reply: &[u8]) -> usize {
        self.json.len() + Self::room_for(id, reply) + END.len()
    }

    /// How many bytes a reply takes at most.
    pub(crate) fn room_for(id: &str, reply: &[u8]) -> usize {
        // Of an id with escapes a character takes up to six.
        ROUND_ONE + 6 * id.len() + reply.len()
    }

    /// The body, and the correlation id of a reply that has remained alone and is an
    /// ordinary one.
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
    fn what_is_bundled_comes_apart_again() {
        let ids = ["a", "b\"b", "c"];
        let bodies = ["{\"success\":true}", "{\"data\":[1]}", "{}"];
        let mut writer = ReplyBatchWriter::new(ids[0], bodies[0].as_bytes());
        writer.push(ids[1], bodies[1].as_bytes());
        writer.push(ids[2], bodies[2].as_bytes());
        let (None, body) = writer.finish() else {
            panic!("three are a bundle");
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
    fn one_alone_is_an_ordinary_reply() {
        let (id, body) = ReplyBatchWriter::new("a", b"{\"success\":true}").finish();
        assert_eq!(id.as_deref(), Some("a"));
        assert_eq!(body, b"{\"success\":true}");
    }
}

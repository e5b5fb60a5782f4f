//! Many replies in one message, for callers that are known to understand it: those that
//! sent their requests together. It has no correlation id of its own; each reply has.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, ErrorKind, Result};

/// What a bundle holds, as it is read.
#[derive(Deserialize)]
pub(crate) struct Bundle<'a> {
    #[serde(borrow)]
    pub(crate) replies: Vec<Bundled<'a>>,
}

#[derive(Deserialize)]
pub(crate) struct Bundled<'a> {
    #[serde(borrow)]
    pub(crate) correlation_id: Cow<'a, str>,
    /// The body of an ordinary reply.
    #[serde(borrow)]
    reply: &'a RawValue,
}

impl<'a> Bundle<'a> {
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

impl Bundled<'_> {
    /// The body of an ordinary reply.
    pub(crate) fn body(&self) -> &[u8] {
        self.reply.get().as_bytes()
    }
}

/// Bundles replies, each a correlation id, which is not escaped, and a body.
pub(crate) fn encode<'a>(replies: impl Iterator<Item = (&'a str, &'a [u8])> + Clone) -> Vec<u8> {
    const KEY: &[u8] = b"{\"correlation_id\":\"";
    const THEN: &[u8] = b"\",\"reply\":";
    let size = |(id, body): (&str, &[u8])| KEY.len() + id.len() + THEN.len() + body.len() + 2;
    let mut out = Vec::with_capacity(32 + replies.clone().map(size).sum::<usize>());
    out.extend_from_slice(b"{\"success\":true,\"replies\":");
    let mut before = b'[';
    for (id, body) in replies {
        out.push(before);
        before = b',';
        out.extend_from_slice(KEY);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(THEN);
        out.extend_from_slice(body);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bundled_comes_apart_again() {
        let replies: [(&str, &[u8]); 2] = [("a", b"{\"success\":true}"), ("b", b"{\"data\":[1]}")];
        let body = encode(replies.iter().copied());
        let bundle = Bundle::decode(&body).unwrap();
        let read: Vec<_> = bundle
            .replies
            .iter()
            .map(|r| (&*r.correlation_id, r.body()))
            .collect();
        assert_eq!(read, replies);
        assert!(Bundle::decode(b"{\"success\":true}").is_err());
    }
}

//! The reply of the wire contract.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Json, not_json};
use crate::error::{Error, ErrorKind, Result};

/// The reply to a request, as it stands on the wire.
///
/// ```
/// use coney::message::Reply;
///
/// let body = Reply::success(&"pong", "msg_1")?;
/// assert_eq!(body, br#"{"success":true,"data":"pong","message_id":"msg_1"}"#);
/// let reply = Reply::decode(&body)?;
/// assert!(reply.success);
/// assert_eq!(reply.data.decode::<String>(), Ok("pong".to_owned()));
/// # Ok::<(), coney::Error>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Reply<'a> {
    /// True if the handler succeeded.
    pub success: bool,
    /// The handler's data; `null` in a failure.
    pub data: Json<'a>,
    /// The error text; empty in a success.
    pub error: Cow<'a, str>,
    /// A machine-readable code for the error, if the server sets one. An extension: peers in other
    /// languages leave it out.
    pub error_code: Option<Cow<'a, str>>,
    /// The message id of the request; empty if the peer left it out.
    pub message_id: Cow<'a, str>,
    /// The id of the instance that handled the request, if the server has a registry. An extension
    /// too.
    pub instance_id: Option<Cow<'a, str>>,
    /// The time to wait before another attempt, in a refusal. An extension too.
    pub retry_after: Option<Duration>,
}

/// The fields of a reply as decoded: every one may be missing.
#[derive(Deserialize)]
struct ReplyFields<'a> {
    success: Option<bool>,
    #[serde(borrow)]
    data: Option<Json<'a>>,
    error: Option<Cow<'a, str>>,
    error_code: Option<Cow<'a, str>>,
    message_id: Option<Cow<'a, str>>,
    instance_id: Option<Cow<'a, str>>,
    retry_after_ms: Option<u64>,
}

#[derive(Serialize)]
struct Success<'a, T: ?Sized> {
    success: bool,
    data: &'a T,
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Failure<'a> {
    success: bool,
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl<'a> Reply<'a> {
    /// Decodes a reply, borrowing from `body`.
    ///
    /// One of `success`, `data` and `error` is required; every other field may be missing. If
    /// `success` is missing, a reply without an `error` is a success.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Decode`] if the body is not a JSON object, a field has another type
    /// than in the contract, or all three are missing; the error keeps the body's text.
    pub fn decode(body: &'a [u8]) -> Result<Self> {
        let not_a_reply = |fault: &dyn fmt::Display| {
            Error::new(ErrorKind::Decode, format!("not a reply: {fault}"))
                .with_text(String::from_utf8_lossy(body))
        };
        let fields: ReplyFields<'a> = serde_json::from_slice(body)
            .map_err(|error| not_a_reply(&not_json::explain(body, &error)))?;
        if fields.success.is_none() && fields.data.is_none() && fields.error.is_none() {
            return Err(not_a_reply(&"it has none of success, data and error"));
        }
        Ok(Self {
            success: fields.success.unwrap_or(fields.error.is_none()),
            data: fields.data.unwrap_or(Json::NULL),
            error: fields.error.unwrap_or_default(),
            error_code: fields.error_code,
            message_id: fields.message_id.unwrap_or_default(),
            instance_id: fields.instance_id,
            retry_after: fields.retry_after_ms.map(Duration::from_millis),
        })
    }

    /// Encodes a reply that carries `data`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Encode`] if serde_json cannot encode the data.
    pub fn success<T: Serialize + ?Sized>(data: &T, message_id: &str) -> Result<Vec<u8>> {
        Self::success_by(None, data, message_id)
    }

    /// Encodes a reply that carries `data` and the id of the instance that handled the request.
    pub(crate) fn success_by<T: Serialize + ?Sized>(
        instance_id: Option<&str>,
        data: &T,
        message_id: &str,
    ) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(256);
        let reply = Success {
            success: true,
            data,
            message_id,
            instance_id,
        };
        match serde_json::to_writer(&mut out, &reply) {
            Ok(()) => Ok(out),
            Err(error) => Err(Error::new(
                ErrorKind::Encode,
                format!("the reply cannot be encoded as JSON: {error}"),
            )),
        }
    }

    /// Encodes a success reply around `data` that is JSON already.
    pub(crate) fn success_with_json(
        instance_id: Option<&str>,
        data: &[u8],
        message_id: &str,
    ) -> Result<Vec<u8>> {
        // The fields around the data are encoded around a null.
        let frame = Self::success_by(instance_id, &(), message_id)?;
        let (head, tail) = NULL_REPLY_START.split_at(NULL_REPLY_START.len() - NULL.len());
        let tail = &frame[head.len() + tail.len()..];
        Ok([head, data, tail].concat())
    }

    /// Encodes a reply that carries an error.
    pub fn failure(error: &str, error_code: Option<&str>, message_id: &str) -> Vec<u8> {
        Self::failure_by(None, error, error_code, None, message_id)
    }

    /// Encodes a reply that carries an error, the id of the instance and the time to wait before
    /// another attempt.
    pub(crate) fn failure_by(
        instance_id: Option<&str>,
        error: &str,
        error_code: Option<&str>,
        retry_after: Option<Duration>,
        message_id: &str,
    ) -> Vec<u8> {
        let reply = Failure {
            success: false,
            error,
            error_code,
            message_id,
            instance_id,
            retry_after_ms: retry_after.map(|after| {
                u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
            }),
        };
        // Strings, a number and a bool: serde_json encodes them all.
        serde_json::to_vec(&reply).unwrap_or_default()
    }
}

/// The beginning of a success reply with null data.
const NULL_REPLY_START: &[u8] = b"{\"success\":true,\"data\":null";
const NULL: &[u8] = b"null";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_json_already_is_not_encoded_again() {
        for instance in [None, Some("i\"1")] {
            let usual = Reply::success_by(instance, &[1, 2], "m").unwrap();
            let round = Reply::success_with_json(instance, b"[1,2]", "m").unwrap();
            assert_eq!(usual, round);
        }
    }

    #[test]
    fn other_fields_may_be_missing() {
        let reply = Reply::decode(br#"{"success":true}"#).unwrap();
        assert!(reply.success);
        assert_eq!(reply.data.as_str(), "null");
        assert!(Reply::decode(br#"{"error":"e","message_id":null}"#).is_ok());
        let reply = Reply::decode(br#"{"error":"no \u5f20","message_id":"m\/1"}"#).unwrap();
        assert!(!reply.success);
        assert_eq!(reply.error, "no 张");
        assert_eq!(reply.message_id, "m/1");
        assert!(reply.error_code.is_none());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let reply = Reply::decode(br#"{"success":true,"data":[1],"instance":{"id":1}}"#).unwrap();
        assert_eq!(reply.data.decode::<Vec<u8>>(), Ok(vec![1]));
    }

    #[test]
    fn failures_are_decoded_as_they_were_encoded() {
        let body = Reply::failure("Invalid token", Some("auth"), "m");
        let reply = Reply::decode(&body).unwrap();
        assert_eq!(reply.error, "Invalid token");
        assert_eq!(reply.error_code.as_deref(), Some("auth"));
        let bare = String::from_utf8(Reply::failure("e", None, "m")).unwrap();
        assert_eq!(bare, r#"{"success":false,"error":"e","message_id":"m"}"#);
    }

    #[test]
    fn the_error_for_another_body_keeps_its_text() {
        for body in [
            "",
            "[]]",
            "<html>",
            "7",
            r#"{"success":"yes"}"#,
            "{}",
            r#"{"status":"failed"}"#,
            r#"{"message_id":"m","instance_id":"i"}"#,
        ] {
            let error = Reply::decode(body.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode);
            assert_eq!(error.raw_text(), Some(body));
        }
    }
}

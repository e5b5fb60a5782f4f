//! The reply queue and the ids of one request's reply.

use std::time::{Duration, Instant};

use crate::error_code;
use crate::message::{Reply, ServiceMessage};
use crate::topology;
use crate::transport::x_death::REPLAYED;
use crate::transport::{Message, PartialReply, Properties, Publication, Replier, is_large};
use crate::verdict::{Ran, Verdict};

/// The target of the reply to a request, if one is wanted.
pub(super) struct ReplyTarget<'a> {
    /// The id of the instance that replies.
    pub(super) instance_id: Option<&'a str>,
    /// The reply queue; `None` if no reply is wanted.
    pub(super) reply_to: Option<&'a str>,
    pub(super) correlation_id: Option<&'a str>,
    pub(super) message_id: &'a str,
    /// True if the request was delivered before: a handler whose worker has died may have begun,
    /// whatever becomes of this delivery.
    pub(super) may_have_run: bool,
}

impl<'a> ReplyTarget<'a> {
    /// Creates the target of a decoded request's reply. The body's reply queue takes precedence
    /// over the property's.
    pub(super) fn of_request(
        request: &'a ServiceMessage<'_>,
        message: &'a Message,
        instance_id: Option<&'a str>,
    ) -> Self {
        let properties = &message.properties;
        let reply_to = match properties.headers.get(REPLAYED) {
            Some(_) => None,
            None => Self::queue_of(request, properties),
        };
        let correlation_id = properties.correlation_id.as_deref();
        Self {
            instance_id,
            reply_to: reply_to.filter(|queue| !queue.is_empty()),
            correlation_id: correlation_id.or(Some(&request.correlation_id)),
            message_id: &request.message_id,
            may_have_run: false,
        }
    }

    /// Returns the queue that a request names for its reply. The body takes precedence over the
    /// property, except if it asks for RabbitMQ's direct reply-to: the name to reply to is then
    /// the one that the broker has put into the property. Such a name is taken from the property
    /// only: the broker checks what a client puts there, and a forged name in a body would make
    /// the broker close the connection that replies to it.
    pub(super) fn queue_of<'q>(
        request: &'q ServiceMessage<'_>,
        properties: &'q Properties,
    ) -> Option<&'q str> {
        let property = properties.reply_to.as_deref();
        match request.reply_to.as_deref() {
            None => property,
            Some(queue) if queue.starts_with(topology::DIRECT_REPLY_TO) => property,
            queue => queue,
        }
    }

    /// Creates the target of the reply to a message that was not decoded, from its properties
    /// alone.
    pub(super) fn of_properties(
        properties: &'a Properties,
        instance_id: Option<&'a str>,
        any_queue: bool,
    ) -> Self {
        let reply_to = properties.reply_to.as_deref();
        let reply_to = match properties.headers.get(REPLAYED) {
            Some(_) => None,
            None => reply_to,
        };
        let may_be = |queue: &&str| topology::may_take_replies(queue, any_queue);
        Self {
            instance_id,
            reply_to: reply_to.filter(|queue| !queue.is_empty()).filter(may_be),
            correlation_id: properties.correlation_id.as_deref(),
            message_id: properties.message_id.as_deref().unwrap_or_default(),
            may_have_run: false,
        }
    }

    /// Removes the reply queue: the message gets no reply, even if it names one.
    pub(super) fn without_reply(self) -> Self {
        Self {
            reply_to: None,
            ..self
        }
    }

    pub(super) fn is_reply_wanted(&self) -> bool {
        self.reply_to.is_some()
    }

    /// Returns the body of an error reply. If the request may have run before, it has no code that
    /// claims the opposite.
    pub(super) fn failure(&self, error: &str, code: Option<&str>) -> Vec<u8> {
        if self.may_have_run && Verdict::of_code(code).ran() == Ran::No {
            let error = format!("{error} (redelivered: a worker that has died may have begun it)");
            return Reply::failure_by(self.instance_id, &error, None, None, self.message_id);
        }
        Reply::failure_by(self.instance_id, error, code, None, self.message_id)
    }

    /// Returns the body of a reply with the code `busy` or `rate_limited`: nothing ran, and another
    /// attempt may succeed later.
    pub(super) fn busy(&self, code: &str, error: &str, retry_after: Duration) -> Vec<u8> {
        if self.may_have_run {
            return self.failure(error, Some(code));
        }
        let (code, after) = (Some(code), Some(retry_after));
        Reply::failure_by(self.instance_id, error, code, after, self.message_id)
    }

    /// Returns the reply as a message; `None` if none is wanted.
    pub(super) fn publication(&self, body: Vec<u8>, max_body: usize) -> Option<Publication> {
        let reply_to = self.reply_to?;
        let reply = |body: Vec<u8>| Publication {
            properties: Properties {
                correlation_id: self.correlation_id.map(str::to_owned),
                ..Properties::json()
            },
            ..Publication::new("", reply_to, body)
        };
        let body = self.limit(body, max_body);
        // The broker's limit may be lower than the known one.
        let if_too_large = is_large(body.len()).then(|| {
            let fault = format!(
                "the reply is {} bytes long, more than the broker accepts",
                body.len()
            );
            Box::new(reply(
                self.failure(&fault, Some(error_code::REPLY_TOO_LARGE)),
            ))
        });
        Some(Publication {
            if_too_large,
            ..reply(body)
        })
    }

    /// Sends the reply as one of several to a delivery.
    pub(super) fn send(&self, replier: &Replier, body: Vec<u8>, max_body: usize, until: Instant) {
        /// The room for the envelope of a reply batch, in bytes.
        const ENVELOPE_BYTES: usize = 1_024;
        if let (Some(to), Some(correlation_id)) = (self.reply_to, self.correlation_id) {
            replier.reply(PartialReply {
                to,
                correlation_id,
                body: &self.limit(body, max_body.saturating_sub(ENVELOPE_BYTES)),
                deadline: until,
            });
        }
    }

    /// Returns the body if it is at most `max_body` bytes long, and an error reply's otherwise.
    fn limit(&self, body: Vec<u8>, max_body: usize) -> Vec<u8> {
        if body.len() <= max_body {
            return body;
        }
        let fault = too_large(body.len(), max_body);
        log::warn!(target: "coney::worker", "{fault}");
        self.failure(&fault, Some(error_code::REPLY_TOO_LARGE))
    }
}

pub(super) fn too_large(bytes: usize, max: usize) -> String {
    format!("the reply is {bytes} bytes long; at most {max} are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redelivered_request_gets_no_code_that_claims_that_it_did_not_run() {
        let target = |may_have_run| ReplyTarget {
            instance_id: None,
            reply_to: Some("q"),
            correlation_id: None,
            message_id: "m",
            may_have_run,
        };
        let code = |body: Vec<u8>| {
            let reply = Reply::decode(&body).unwrap();
            (reply.error_code.map(String::from), reply.retry_after)
        };
        let second = Duration::from_secs(1);
        let busy = code(target(false).busy("busy", "x", second));
        assert_eq!(busy, (Some("busy".to_owned()), Some(second)));
        assert_eq!(code(target(true).busy("busy", "x", second)), (None, None));
        for name in ["expired", "unknown_action", "bad_request"] {
            let first = code(target(false).failure("x", Some(name)));
            assert_eq!(first.0.as_deref(), Some(name));
            assert_eq!(code(target(true).failure("x", Some(name))).0, None);
        }
        let own = code(target(true).failure("x", Some("card_declined")));
        assert_eq!(own.0.as_deref(), Some("card_declined"));
    }
}

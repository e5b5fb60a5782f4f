use std::time::{Duration, Instant};

use crate::message::{CODE_BUSY, Reply, ServiceMessage};
use crate::topology;
use crate::transport::x_death::REPLAYED;
use crate::transport::{Message, PartialReply, Properties, Publication, Replier, is_large};

/// Where the answer to a request goes, if one is wanted.
pub(super) struct ReplyTarget<'a> {
    /// Who answers.
    pub(super) instance_id: Option<&'a str>,
    pub(super) reply_to: Option<&'a str>,
    pub(super) correlation_id: Option<&'a str>,
    pub(super) message_id: &'a str,
}

impl<'a> ReplyTarget<'a> {
    /// For a request that could be read, and the message it came in. The body's word
    /// counts before the property's.
    pub(super) fn to(
        request: &'a ServiceMessage<'_>,
        message: &'a Message,
        instance_id: Option<&'a str>,
    ) -> Self {
        let properties = &message.properties;
        let reply_to = match properties.headers.get(REPLAYED) {
            Some(_) => None,
            None => Self::queue(request, properties),
        };
        let correlation_id = properties.correlation_id.as_deref();
        Self {
            instance_id,
            reply_to: reply_to.filter(|queue| !queue.is_empty()),
            correlation_id: correlation_id.or(Some(&request.correlation_id)),
            message_id: &request.message_id,
        }
    }

    /// The queue that a request names for its reply. The body's word counts before the
    /// property's, except where it asks for RabbitMQ's direct reply-to: the name to reply to
    /// is then one that the broker has put into the property. Such a name counts nowhere else:
    /// the broker checks what a client puts there, and a forged one in a body would end the
    /// connection that replies to it.
    pub(super) fn queue<'q>(
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

    /// For one that could not: as far as its properties say.
    pub(super) fn to_properties(
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
        }
    }

    /// The same for a message that is not answered, whatever it says.
    pub(super) fn unwanted(self) -> Self {
        Self {
            reply_to: None,
            ..self
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.reply_to.is_some()
    }

    /// The body of an answer that says what went wrong.
    pub(super) fn failure(&self, error: &str, code: Option<&str>) -> Vec<u8> {
        Reply::failure_by(self.instance_id, error, code, None, self.message_id)
    }

    /// The body of a refusal: nothing ran, and another attempt may succeed later.
    pub(super) fn busy(&self, error: &str, retry_after: Duration) -> Vec<u8> {
        let (code, after) = (Some(CODE_BUSY), Some(retry_after));
        Reply::failure_by(self.instance_id, error, code, after, self.message_id)
    }

    /// The answer as a message; `None` if none is wanted.
    pub(super) fn publication(&self, body: Vec<u8>, max_body: usize) -> Option<Publication> {
        let reply_to = self.reply_to?;
        let reply = |body: Vec<u8>| Publication {
            properties: Properties {
                correlation_id: self.correlation_id.map(str::to_owned),
                ..Properties::json()
            },
            ..Publication::new("", reply_to, body)
        };
        let body = self.fit(body, max_body);
        // The broker may take less than we know.
        let if_too_large = is_large(body.len()).then(|| {
            let fault = format!(
                "the reply is {} bytes long, more than the broker takes",
                body.len()
            );
            Box::new(reply(self.failure(&fault, Some(TOO_LARGE))))
        });
        Some(Publication {
            if_too_large,
            ..reply(body)
        })
    }

    /// Sends the answer as one of several to a delivery.
    pub(super) fn send(&self, replier: &Replier, body: Vec<u8>, max_body: usize, until: Instant) {
        /// For what stands round it in a bundle.
        const FRAME: usize = 1_024;
        if let (Some(to), Some(correlation_id)) = (self.reply_to, self.correlation_id) {
            replier.reply(PartialReply {
                to,
                correlation_id,
                body: &self.fit(body, max_body.saturating_sub(FRAME)),
                deadline: until,
            });
        }
    }

    /// A body that can be sent.
    fn fit(&self, body: Vec<u8>, max_body: usize) -> Vec<u8> {
        if body.len() <= max_body {
            return body;
        }
        let fault = too_large(body.len(), max_body);
        log::warn!(target: "coney::worker", "{fault}");
        self.failure(&fault, Some(TOO_LARGE))
    }
}

pub(super) const TOO_LARGE: &str = "reply_too_large";

pub(super) fn too_large(bytes: usize, max: usize) -> String {
    format!("the reply is {bytes} bytes long; at most {max} are allowed")
}

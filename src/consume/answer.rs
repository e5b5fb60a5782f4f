use crate::message::{Reply, ServiceMessage};
use crate::topology;
use crate::transport::death::REPLAYED;
use crate::transport::{Delivery, Properties, Publication};

/// Where the answer to a request goes, if one is wanted.
pub(super) struct Answer<'s> {
    /// Who answers.
    instance_id: Option<&'s str>,
    reply_to: Option<String>,
    correlation_id: Option<String>,
    message_id: String,
}

impl<'s> Answer<'s> {
    /// For a request that could be read. The body's word counts before the
    /// property's.
    pub(super) fn to(
        message: &ServiceMessage<'_>,
        delivery: &Delivery,
        instance_id: Option<&'s str>,
    ) -> Self {
        let properties = &delivery.message().properties;
        let reply_to = match &message.reply_to {
            _ if properties.headers.get(REPLAYED).is_some() => None,
            Some(queue) => Some(queue.clone().into_owned()),
            None => properties.reply_to.clone(),
        };
        let correlation_id = properties
            .correlation_id
            .clone()
            .unwrap_or_else(|| message.correlation_id.clone().into_owned());
        Self {
            instance_id,
            reply_to: reply_to.filter(|queue| !queue.is_empty()),
            correlation_id: Some(correlation_id),
            message_id: message.message_id.clone().into_owned(),
        }
    }

    /// For one that could not: as far as its properties say.
    pub(super) fn to_properties(delivery: &Delivery, instance_id: Option<&'s str>) -> Self {
        let properties = &delivery.message().properties;
        let reply_to = properties.reply_to.clone();
        Self {
            instance_id,
            reply_to: reply_to
                .filter(|queue| !queue.is_empty() && topology::may_take_replies(queue)),
            correlation_id: properties.correlation_id.clone(),
            message_id: properties.message_id.clone().unwrap_or_default(),
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
        Reply::failure_by(self.instance_id, error, code, &self.message_id)
    }

    /// The answer as a message; `None` if nobody wants one.
    pub(super) fn publication(&self, body: Vec<u8>, max_body: usize) -> Option<Publication> {
        let reply_to = self.reply_to.clone()?;
        let body = if body.len() <= max_body {
            body
        } else {
            let fault = format!(
                "the reply is {} bytes long; at most {max_body} are allowed",
                body.len()
            );
            log::warn!(target: "coney::worker", "{fault}");
            self.failure(&fault, Some("reply_too_large"))
        };
        Some(Publication {
            properties: Properties {
                correlation_id: self.correlation_id.clone(),
                ..Properties::json()
            },
            ..Publication::new("", reply_to, body)
        })
    }
}

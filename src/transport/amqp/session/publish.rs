//! The publishing of one message through amiquip, and the reasons of the broker to refuse it.

use amiquip::Channel;

use crate::transport::Publication;
use crate::transport::amqp::convert::{self, ChannelFailure};
use crate::transport::amqp::transit::Transit;

/// Publishes a message. `Ok` means that amiquip has queued it.
pub(super) fn publish(
    channel: &Channel,
    publication: Publication,
    reply_queue: Option<String>,
    transit: &Transit,
) -> Result<(), ChannelFailure> {
    let mut properties = publication.properties;
    let body = if publication.body.wants_reply_queue() {
        let body = publication
            .body
            .fill(reply_queue.as_deref().unwrap_or_default());
        properties.reply_to = reply_queue;
        body
    } else {
        publication.body.fill("")
    };
    transit.add(channel.channel_id(), body.len());
    Ok(channel.basic_publish(
        publication.exchange,
        amiquip::Publish {
            body: &body,
            routing_key: publication.routing_key,
            mandatory: publication.mandatory,
            immediate: false,
            properties: convert::to_amqp(properties),
        },
    )?)
}

/// The reason why the broker refused a message.
pub(super) enum PublishRefusal {
    /// The message is over the broker's size limit; holds the limit in bytes, if the broker
    /// named it.
    TooLarge(Option<usize>),
    Other(String),
}

impl PublishRefusal {
    /// Parses RabbitMQ's reason for closing the channel.
    pub(super) fn parse(reason: &str) -> Self {
        match reason.split_once("is larger than configured max size ") {
            Some((_, limit)) => {
                let digits = limit.split(|c: char| !c.is_ascii_digit()).next();
                Self::TooLarge(digits.and_then(|digits| digits.parse().ok()))
            }
            None => Self::Other(reason.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_parsed_from_the_brokers_reason() {
        let reason = "PRECONDITION_FAILED - message size 2097152 is larger than configured \
                      max size 1048576 (406)";
        assert!(matches!(
            PublishRefusal::parse(reason),
            PublishRefusal::TooLarge(Some(1_048_576))
        ));
        let reason = "NOT_FOUND - no exchange 'x' in vhost '/' (404)";
        assert!(matches!(
            PublishRefusal::parse(reason),
            PublishRefusal::Other(_)
        ));
    }
}

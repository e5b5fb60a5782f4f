//! Between coney's messages and amiquip's.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use amiquip::AmqpProperties;

use crate::error::{Error, ErrorKind};
use crate::topology::ExchangeKind;
use crate::transport::{Message, Properties, Returned};

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

pub(super) fn to_amqp(properties: Properties) -> AmqpProperties {
    let mut out = AmqpProperties::default();
    if let Some(content_type) = properties.content_type {
        out = out.with_content_type(content_type.into_owned());
    }
    if properties.persistent {
        out = out.with_delivery_mode(PERSISTENT);
    }
    if let Some(id) = properties.message_id {
        out = out.with_message_id(id);
    }
    if let Some(id) = properties.correlation_id {
        out = out.with_correlation_id(id);
    }
    if let Some(queue) = properties.reply_to {
        out = out.with_reply_to(queue);
    }
    if let Some(after) = properties.expiration {
        out = out.with_expiration(after.as_millis().to_string());
    }
    out
}

fn from_amqp(properties: &AmqpProperties) -> Properties {
    Properties {
        content_type: properties.content_type().clone().map(Cow::Owned),
        persistent: properties.delivery_mode().unwrap_or(TRANSIENT) == PERSISTENT,
        message_id: properties.message_id().clone(),
        correlation_id: properties.correlation_id().clone(),
        reply_to: properties.reply_to().clone(),
        expiration: properties
            .expiration()
            .as_ref()
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis),
    }
}

/// Takes the message out of a delivery; what is left is the right to settle.
pub(super) fn take_message(delivery: &mut amiquip::Delivery) -> Arc<Message> {
    Arc::new(Message {
        exchange: Cow::Owned(std::mem::take(&mut delivery.exchange)),
        routing_key: std::mem::take(&mut delivery.routing_key),
        properties: from_amqp(&std::mem::take(&mut delivery.properties)),
        body: std::mem::take(&mut delivery.body),
    })
}

pub(super) fn returned(from: amiquip::Return) -> Returned {
    Returned {
        exchange: Cow::Owned(from.exchange),
        routing_key: from.routing_key,
        correlation_id: from.properties.correlation_id().clone(),
        reason: from.reply_text,
    }
}

pub(super) fn exchange_type(kind: ExchangeKind) -> amiquip::ExchangeType {
    match kind {
        ExchangeKind::Direct => amiquip::ExchangeType::Direct,
        ExchangeKind::Topic => amiquip::ExchangeType::Topic,
        ExchangeKind::Fanout => amiquip::ExchangeType::Fanout,
    }
}

/// What an operation on a channel failed of.
pub(super) enum Failure {
    /// The broker refused it and closed the channel; the connection lives.
    Refused(Error),
    /// The connection is gone.
    Lost(String),
}

impl From<amiquip::Error> for Failure {
    fn from(error: amiquip::Error) -> Self {
        match error {
            amiquip::Error::ServerClosedChannel { code, message, .. } => Self::Refused(Error::new(
                ErrorKind::Broker,
                format!("the broker refused the operation: {message} ({code})"),
            )),
            amiquip::Error::ExhaustedChannelIds => Self::Refused(Error::new(
                ErrorKind::Broker,
                "the connection has as many links as it can have channels",
            )),
            other => Self::Lost(other.to_string()),
        }
    }
}

//! Conversions between coney's messages and amiquip's.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, ConsumerMessage, FieldTable};

use crate::error::{Error, ErrorKind};
use crate::topology::{ExchangeKind, QueueOptions};
use crate::transport::{
    HeaderTable, HeaderValue, Message, Oversized, Properties, RareProperties, Returned,
};

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

const PRECONDITION_FAILED: u16 = 406;

fn rare(properties: &AmqpProperties) -> Option<Box<RareProperties>> {
    let rare = RareProperties {
        content_encoding: properties.content_encoding().clone(),
        priority: *properties.priority(),
        timestamp: *properties.timestamp(),
        kind: properties.type_().clone(),
        app_id: properties.app_id().clone(),
    };
    (rare != RareProperties::default()).then(|| Box::new(rare))
}

pub(super) fn from_amqp(properties: &AmqpProperties) -> Properties {
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
        headers: match properties.headers() {
            Some(table) => table_from_amqp(table),
            None => HeaderTable::new(),
        },
        rare: rare(properties),
    }
}

/// Converts a message that was got from a queue.
pub(super) fn message(delivery: amiquip::Delivery, oversized: Option<Oversized>) -> Arc<Message> {
    Arc::new(Message {
        exchange: Cow::Owned(delivery.exchange),
        routing_key: delivery.routing_key,
        properties: from_amqp(&delivery.properties),
        body: delivery.body,
        oversized,
    })
}

pub(super) fn returned(from: amiquip::Return) -> Returned {
    Returned {
        exchange: Cow::Owned(from.exchange),
        routing_key: from.routing_key,
        message_id: from.properties.message_id().clone(),
        correlation_id: from.properties.correlation_id().clone(),
        reason: from.reply_text,
    }
}

pub(super) fn exchange_type(kind: ExchangeKind) -> amiquip::ExchangeType {
    match kind {
        ExchangeKind::Direct => amiquip::ExchangeType::Direct,
        ExchangeKind::Topic => amiquip::ExchangeType::Topic,
        ExchangeKind::Fanout => amiquip::ExchangeType::Fanout,
        ExchangeKind::Headers => amiquip::ExchangeType::Headers,
    }
}

pub(super) fn exchange_arguments(alternate: Option<&str>) -> FieldTable {
    let alternate = alternate.map(|name| ("alternate-exchange".to_owned(), text(name)));
    alternate.into_iter().collect()
}

/// Returns the arguments of a binding by these headers, none of them for other bindings.
pub(super) fn binding_arguments(headers: &[(String, String)]) -> FieldTable {
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| (name.clone(), text(value)));
    headers.collect() // by default a message must have all of them
}

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

pub(super) fn queue_arguments(options: &QueueOptions) -> FieldTable {
    let mut arguments = FieldTable::new();
    let mut add = |name: &str, value| arguments.insert(name.to_owned(), value);
    if let Some(ttl) = options.message_ttl {
        let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        add("x-message-ttl", AmqpValue::LongLongInt(millis));
    }
    if let Some((exchange, key)) = &options.dead_letter_to {
        add("x-dead-letter-exchange", text(exchange));
        if let Some(key) = key {
            add("x-dead-letter-routing-key", text(key));
        }
    }
    if options.single_active {
        add("x-single-active-consumer", AmqpValue::Boolean(true));
    }
    if let Some(limit) = options.quorum {
        add("x-queue-type", text("quorum"));
        add("x-delivery-limit", AmqpValue::LongLongInt(limit.into()));
        if options.dead_letter_to.is_some() {
            // RabbitMQ requires reject-publish for at-least-once dead-lettering.
            add("x-dead-letter-strategy", text("at-least-once"));
            add("x-overflow", text("reject-publish"));
        }
    }
    arguments
}

/// The cause of a loss where only amiquip's thread knows the real one.
pub(super) const CONNECTION_ENDED: &str = "the connection has ended";

/// The reason why an operation on a channel failed.
pub(super) enum ChannelFailure {
    /// The broker refused the operation and closed the channel; the connection is up.
    Refused(Error),
    /// The connection was lost, or the channel was closed before the operation; holds the cause.
    /// `Observed::channel_close` has the reason of the latter.
    Lost(String),
}

impl From<amiquip::Error> for ChannelFailure {
    fn from(error: amiquip::Error) -> Self {
        match error {
            amiquip::Error::ServerClosedChannel { code, message, .. } => {
                let advice = match code {
                    PRECONDITION_FAILED if message.contains("inequivalent arg") => {
                        "; it exists with other properties: delete it first"
                    }
                    _ => "",
                };
                Self::Refused(Error::new(
                    ErrorKind::Broker,
                    format!("the broker refused the operation: {message} ({code}){advice}"),
                ))
            }
            amiquip::Error::ExhaustedChannelIds => Self::Refused(Error::new(
                ErrorKind::Broker,
                "the connection has no free channel for another link: close one or connect again",
            )),
            other => Self::Lost(other.to_string()),
        }
    }
}

/// Returns the reason for which a consumer has ended, from its last message.
pub(super) fn end_of_consumer(message: ConsumerMessage) -> ChannelFailure {
    let lost = match message {
        ConsumerMessage::Delivery(_) => "a delivery has missed its route".to_owned(),
        ConsumerMessage::ServerClosedChannel(error) => return error.into(),
        ConsumerMessage::ServerClosedConnection(error) => error.to_string(),
        ConsumerMessage::ServerCancelled => {
            "the broker cancelled a consumer; was its queue deleted?".to_owned()
        }
        _ => "a consumer has ended".to_owned(),
    };
    ChannelFailure::Lost(lost)
}

fn table_from_amqp(table: &FieldTable) -> HeaderTable {
    let fields = table.iter();
    fields
        .map(|(name, value)| (name.clone(), value_from_amqp(value)))
        .collect()
}

/// Converts a header value. The recursion is bounded, as the stream limits the nesting.
fn value_from_amqp(value: &AmqpValue) -> HeaderValue {
    match value {
        AmqpValue::Void => HeaderValue::Void,
        AmqpValue::Boolean(value) => HeaderValue::Bool(*value),
        &AmqpValue::ShortShortInt(value) => HeaderValue::Int(value.into()),
        &AmqpValue::ShortShortUInt(value) => HeaderValue::Int(value.into()),
        &AmqpValue::ShortInt(value) => HeaderValue::Int(value.into()),
        &AmqpValue::ShortUInt(value) => HeaderValue::Int(value.into()),
        &AmqpValue::LongInt(value) => HeaderValue::Int(value.into()),
        &AmqpValue::LongUInt(value) => HeaderValue::Int(value.into()),
        AmqpValue::LongLongInt(value) => HeaderValue::Int(*value),
        &AmqpValue::Float(value) => HeaderValue::Float(value.into()),
        AmqpValue::Double(value) => HeaderValue::Float(*value),
        // amiquip can read decimals, but not create them.
        AmqpValue::DecimalValue(decimal) => {
            HeaderValue::Float(f64::from(decimal.value) / 10f64.powi(decimal.scale.into()))
        }
        AmqpValue::LongString(text) => HeaderValue::Text(text.clone()),
        AmqpValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.clone()),
        AmqpValue::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
        AmqpValue::FieldArray(values) => {
            HeaderValue::List(values.iter().map(value_from_amqp).collect())
        }
        AmqpValue::FieldTable(table) => HeaderValue::Table(table_from_amqp(table)),
    }
}

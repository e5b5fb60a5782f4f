//! Between coney's header tables and amiquip's.

use amiquip::{AmqpValue, FieldTable};

use crate::transport::{HeaderTable, HeaderValue};

pub(super) fn to_amqp(headers: &HeaderTable) -> FieldTable {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.to_owned(), value_to_amqp(value)))
        .collect()
}

pub(super) fn from_amqp(table: &FieldTable) -> HeaderTable {
    let fields = table.iter();
    fields
        .map(|(name, value)| (name.clone(), value_from_amqp(value)))
        .collect()
}

fn value_to_amqp(value: &HeaderValue) -> AmqpValue {
    match value {
        HeaderValue::Void => AmqpValue::Void,
        HeaderValue::Bool(value) => AmqpValue::Boolean(*value),
        HeaderValue::Int(value) => AmqpValue::LongLongInt(*value),
        HeaderValue::Float(value) => AmqpValue::Double(*value),
        HeaderValue::Text(text) => AmqpValue::LongString(text.clone()),
        HeaderValue::Bytes(bytes) => AmqpValue::ByteArray(bytes.clone()),
        HeaderValue::Timestamp(seconds) => AmqpValue::Timestamp(*seconds),
        HeaderValue::List(values) => {
            AmqpValue::FieldArray(values.iter().map(value_to_amqp).collect())
        }
        HeaderValue::Table(table) => AmqpValue::FieldTable(to_amqp(table)),
    }
}

/// The stream has seen to it that nothing is nested too deeply for this.
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
        // amiquip can read decimals and not make them.
        AmqpValue::DecimalValue(decimal) => {
            HeaderValue::Float(f64::from(decimal.value) / 10f64.powi(decimal.scale.into()))
        }
        AmqpValue::LongString(text) => HeaderValue::Text(text.clone()),
        AmqpValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.clone()),
        AmqpValue::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
        AmqpValue::FieldArray(values) => {
            HeaderValue::List(values.iter().map(value_from_amqp).collect())
        }
        AmqpValue::FieldTable(table) => HeaderValue::Table(from_amqp(table)),
    }
}

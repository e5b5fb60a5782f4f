//! Declaring what a link needs, and starting its consumer.

use amiquip::{
    Channel, Consumer, ConsumerOptions, ExchangeDeclareOptions, FieldTable, QueueDeclareOptions,
};

use super::convert::{self, Failure};
use crate::topology::Topology;
use crate::transport::{LinkSpec, Source};

pub(super) fn declare(channel: &Channel, topology: &Topology) -> Result<(), Failure> {
    for (name, kind) in topology.exchanges() {
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        channel.exchange_declare(convert::exchange_type(*kind), name, durable)?;
    }
    for (name, options) in topology.queues_with_options() {
        let durable = QueueDeclareOptions {
            durable: true,
            arguments: convert::queue_arguments(options),
            ..QueueDeclareOptions::default()
        };
        channel.queue_declare(name, durable)?;
    }
    for binding in topology.bindings() {
        let no_arguments = FieldTable::default();
        channel.queue_bind(
            &binding.queue,
            &binding.exchange,
            &binding.routing_key,
            no_arguments,
        )?;
    }
    Ok(())
}

/// The consumer, and the name of its queue if it is a reply queue.
pub(super) fn consume<'c>(
    channel: &'c Channel,
    spec: &LinkSpec,
) -> Result<(Option<Consumer<'c>>, Option<String>), Failure> {
    match &spec.source {
        Source::Nothing => Ok((None, None)),
        Source::ReplyQueue => {
            let of_our_own = QueueDeclareOptions {
                exclusive: true,
                auto_delete: true,
                ..QueueDeclareOptions::default()
            };
            let queue = channel.queue_declare("", of_our_own)?;
            let name = queue.name().to_owned();
            let no_ack = ConsumerOptions {
                no_ack: true,
                ..ConsumerOptions::default()
            };
            Ok((Some(channel.basic_consume(&name, no_ack)?), Some(name)))
        }
        Source::OwnQueue {
            name,
            bind,
            prefetch,
        } => {
            let of_our_own = QueueDeclareOptions {
                exclusive: true,
                ..QueueDeclareOptions::default()
            };
            channel.queue_declare(name, of_our_own)?;
            let (exchange, key) = bind;
            channel.queue_bind(name, exchange, key, FieldTable::default())?;
            consume_from(channel, name, *prefetch)
        }
        Source::Queue { name, prefetch } => consume_from(channel, name, *prefetch),
    }
}

fn consume_from<'c>(
    channel: &'c Channel,
    name: &str,
    prefetch: u16,
) -> Result<(Option<Consumer<'c>>, Option<String>), Failure> {
    // For each consumer started after it on this channel, and before: deliveries
    // are never unbounded.
    channel.qos(0, prefetch, false)?;
    let consumer = channel.basic_consume(name, ConsumerOptions::default())?;
    Ok((Some(consumer), None))
}

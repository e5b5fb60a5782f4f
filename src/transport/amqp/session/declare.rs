//! The declarations of a link, and the start of its consumer.

use amiquip::{
    Channel, Consumer, ConsumerOptions, ExchangeDeclareOptions, FieldTable, QueueDeclareOptions,
};

use crate::topology::Topology;
use crate::transport::amqp::convert::{self, ChannelFailure};
use crate::transport::{LinkSource, LinkSpec};

/// The longest name in bytes: AMQP's short strings hold no more.
const LONGEST_NAME: usize = 255;

pub(super) fn declare(channel: &Channel, topology: &Topology) -> Result<(), ChannelFailure> {
    for (name, kind) in topology.exchanges() {
        let durable = ExchangeDeclareOptions {
            durable: true,
            arguments: convert::exchange_arguments(topology.alternate(name)),
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
        channel.queue_bind(
            &binding.queue,
            &binding.exchange,
            &binding.routing_key,
            convert::binding_arguments(&binding.headers),
        )?;
    }
    for binding in topology.exchange_bindings() {
        channel.exchange_bind(
            &binding.destination,
            &binding.source,
            "",
            convert::binding_arguments(&binding.headers),
        )?;
    }
    Ok(())
}

/// Declares a queue that no other connection can use while this one is open.
pub(super) fn declare_exclusive(channel: &Channel, queue: &str) -> Result<(), ChannelFailure> {
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(queue, exclusive)?;
    Ok(())
}

/// A started consumer, and the names of the queues that belong to the link alone.
#[derive(Default)]
pub(super) struct Consumed<'c> {
    pub(super) consumer: Option<Consumer<'c>>,
    pub(super) reply_queue: Option<String>,
    pub(super) own_queue: Option<String>,
}

pub(super) fn consume<'c>(
    channel: &'c Channel,
    spec: &LinkSpec,
) -> Result<Consumed<'c>, ChannelFailure> {
    match &spec.source {
        LinkSource::Nothing => Ok(Consumed::default()),
        LinkSource::ReplyQueue => {
            let exclusive = QueueDeclareOptions {
                exclusive: true,
                auto_delete: true,
                ..QueueDeclareOptions::default()
            };
            let queue = channel.queue_declare("", exclusive)?;
            let name = queue.name().to_owned();
            let no_ack = ConsumerOptions {
                no_ack: true,
                ..ConsumerOptions::default()
            };
            Ok(Consumed {
                consumer: Some(channel.basic_consume(&name, no_ack)?),
                reply_queue: Some(name),
                own_queue: None,
            })
        }
        LinkSource::OwnQueue {
            name,
            bind,
            prefetch,
        } => {
            let exclusive = QueueDeclareOptions {
                exclusive: true,
                ..QueueDeclareOptions::default()
            };
            // A new name for each session: after a half-open loss the broker keeps the last
            // queue locked for a while.
            let unique = format!("{:08x}", fastrand::u32(..));
            let start = crate::base::text::prefix(name, LONGEST_NAME - unique.len() - 1);
            let name = format!("{start}.{unique}");
            channel.queue_declare(&*name, exclusive)?;
            let (exchange, key) = bind;
            channel.queue_bind(&*name, exchange, key, FieldTable::default())?;
            let consumed = consume_from(channel, &name, *prefetch)?;
            Ok(Consumed {
                own_queue: Some(name),
                ..consumed
            })
        }
        LinkSource::Queue { name, prefetch } => consume_from(channel, name, *prefetch),
    }
}

/// Starts a consumer of a queue.
pub(super) fn consume_from<'c>(
    channel: &'c Channel,
    name: &str,
    prefetch: u16,
) -> Result<Consumed<'c>, ChannelFailure> {
    // Set before the consumer is started, to which it applies: deliveries are never
    // unbounded.
    channel.qos(0, prefetch, false)?;
    let consumer = channel.basic_consume(name, ConsumerOptions::default())?;
    Ok(Consumed {
        consumer: Some(consumer),
        ..Consumed::default()
    })
}

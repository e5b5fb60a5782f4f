//! Hand-written programs whose callers use one channel and one reply queue, as callers of one coney
//! client do: a thread finds the caller of each reply in a map.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use amiquip::{
    AmqpProperties, Channel, Connection, ConsumerMessage, ConsumerOptions, Publish,
    QueueDeclareOptions,
};
use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use crate::bare::{Echo, routing_key};
use crate::bare_connection::connect;
use crate::measure::{Call, Setup};

/// RabbitMQ's pseudo-queue for direct reply-to: replies go straight to the channel.
const DIRECT: &str = "amq.rabbitmq.reply-to";

/// The waiting callers, by correlation id.
type Waiting = Arc<Mutex<HashMap<String, Sender<Vec<u8>>>>>;

pub struct SharedAmqp {
    client: Option<Connection>,
    channel: Arc<Mutex<Channel>>,
    reply_to: String,
    waiting: Waiting,
    sequence: Arc<AtomicU64>,
    router: Option<JoinHandle<()>>,
    _echo: Echo,
}

impl SharedAmqp {
    /// Starts callers with a reply queue, or with direct reply-to.
    pub fn start(url: &str, is_direct: bool) -> Self {
        let _echo = Echo::start(url);
        let mut client = connect(url);
        let channel = client.open_channel(None).expect("a channel");
        let reply_to = match is_direct {
            true => DIRECT.to_owned(),
            false => reply_queue(&channel),
        };
        let options = ConsumerOptions {
            no_ack: true,
            ..ConsumerOptions::default()
        };
        let consumer = channel.basic_consume(&reply_to, options);
        let consumer = consumer.expect("a consumer");
        let replies = consumer.receiver().clone();
        std::mem::forget(consumer); // its drop would cancel it
        let waiting = Waiting::default();
        let callers = Arc::clone(&waiting);
        let router = thread::spawn(move || {
            for message in replies {
                let ConsumerMessage::Delivery(reply) = message else {
                    return;
                };
                let id = reply.properties.correlation_id().as_deref();
                let caller = callers.lock().remove(id.unwrap_or_default());
                let _ = caller.map(|caller| caller.send(reply.body));
            }
        });
        Self {
            client: Some(client),
            channel: Arc::new(Mutex::new(channel)),
            reply_to,
            waiting,
            sequence: Arc::default(),
            router: Some(router),
            _echo,
        }
    }
}

fn reply_queue(channel: &Channel) -> String {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel.queue_declare("", options).expect("a reply queue");
    queue.name().to_owned()
}

impl Setup for SharedAmqp {
    fn caller(&self, _number: usize, payload: &str) -> Call {
        let (channel, waiting) = (Arc::clone(&self.channel), Arc::clone(&self.waiting));
        let (sequence, reply_to) = (Arc::clone(&self.sequence), self.reply_to.clone());
        let payload = payload.as_bytes().to_vec();
        let (caller, inbox) = bounded(1);
        Box::new(move || {
            let id = format!("{:032x}", sequence.fetch_add(1, Ordering::Relaxed));
            waiting.lock().insert(id.clone(), caller.clone());
            let properties = AmqpProperties::default()
                .with_content_type("application/json".to_owned())
                .with_delivery_mode(2)
                .with_correlation_id(id)
                .with_reply_to(reply_to.clone());
            let request = Publish::with_properties(&payload, routing_key(), properties);
            let published = channel.lock().basic_publish("service.exchange", request);
            published.expect("the connection lives");
            inbox.recv().is_ok_and(|echoed| echoed == payload)
        })
    }
}

impl Drop for SharedAmqp {
    fn drop(&mut self) {
        let _ = self.client.take().map(Connection::close);
        let _ = self.router.take().map(JoinHandle::join);
    }
}

//! Hand-written programs whose callers use one channel and one reply queue, as callers of one coney
//! client do: a thread finds the caller of each reply by its correlation id, which begins with the
//! number of the caller. That thread is a hop more than in `bare`, where callers receive their replies
//! themselves; but a channel and a queue for each caller cost the broker more.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use amiquip::{
    AmqpProperties, Channel, Connection, ConsumerMessage, ConsumerOptions, Publish,
    QueueDeclareOptions,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use crate::bare::{Echo, ROUTING_KEY};
use crate::bare_connection::connect;
use crate::measure::{Call, Setup};

/// RabbitMQ's pseudo-queue for direct reply-to: replies go straight to the channel.
const DIRECT: &str = "amq.rabbitmq.reply-to";

/// The digits of the caller's number at the beginning of a correlation id.
const NUMBER_DIGITS: usize = 16;

/// A reply: its correlation id, and its body.
type Reply = (String, Vec<u8>);

/// The channels of the callers, by number.
type Callers = Arc<RwLock<Vec<Sender<Reply>>>>;

pub struct SharedAmqp {
    client: Option<Connection>,
    channel: Arc<Mutex<Channel>>,
    reply_to: String,
    callers: Callers,
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
        let callers = Callers::default();
        let router = thread::spawn({
            let callers = Arc::clone(&callers);
            move || route(&replies, &callers)
        });
        Self {
            client: Some(client),
            channel: Arc::new(Mutex::new(channel)),
            reply_to,
            callers,
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
        let (channel, reply_to) = (Arc::clone(&self.channel), self.reply_to.clone());
        let payload = payload.as_bytes().to_vec();
        let (caller, inbox) = bounded(1);
        let mut callers = self.callers.write();
        let number = callers.len();
        callers.push(caller);
        let mut sequence = 0_u64;
        Box::new(move || {
            sequence += 1;
            let id = format!("{number:0width$x}{sequence:016x}", width = NUMBER_DIGITS);
            let properties = AmqpProperties::default()
                .with_content_type("application/json".to_owned())
                .with_delivery_mode(2)
                .with_correlation_id(id.clone())
                .with_reply_to(reply_to.clone());
            let request = Publish::with_properties(&payload, ROUTING_KEY, properties);
            let published = channel.lock().basic_publish("service.exchange", request);
            published.expect("the connection lives");
            let reply = inbox.recv();
            reply.is_ok_and(|(answered, echoed)| answered == id && echoed == payload)
        })
    }
}

fn route(replies: &Receiver<ConsumerMessage>, callers: &RwLock<Vec<Sender<Reply>>>) {
    for message in replies {
        let ConsumerMessage::Delivery(reply) = message else {
            return;
        };
        let id = reply.properties.correlation_id().clone();
        let id = id.unwrap_or_default();
        let number = id.get(..NUMBER_DIGITS).unwrap_or_default();
        if let Ok(number) = usize::from_str_radix(number, 16)
            && let Some(caller) = callers.read().get(number)
        {
            let _ = caller.send((id, reply.body));
        }
    }
}

impl Drop for SharedAmqp {
    fn drop(&mut self) {
        let _ = self.client.take().map(Connection::close);
        let _ = self.router.take().map(JoinHandle::join);
    }
}

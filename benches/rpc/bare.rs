//! The shortest hand-written programs that do the same job, without envelope, error handling or
//! other features of coney; more are in `shared.rs`.

use std::thread::{self, JoinHandle};

use amiquip::{
    AmqpProperties, Channel, Connection, ConsumerMessage, ConsumerOptions, ExchangeDeclareOptions,
    ExchangeType, FieldTable, Publish, QueueDeclareOptions,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::bare_connection::connect;
use crate::measure::{Call, Setup};

pub const ROUTING_KEY: &str = "request.bench-bare";
const QUEUE: &str = "service.bench-bare.request";

/// A payload, and the channel for its echo.
type Ping = (Vec<u8>, Sender<Vec<u8>>);

/// Two threads that pass a payload back and forth.
pub struct BareMemory {
    requests: Option<Sender<Ping>>,
    echo: Option<JoinHandle<()>>,
}

impl BareMemory {
    pub fn start() -> Self {
        let (requests, inbox): (_, Receiver<Ping>) = bounded(1_024);
        let echo = thread::spawn(move || {
            for (payload, reply) in inbox {
                let _ = reply.send(payload.clone());
            }
        });
        Self {
            requests: Some(requests),
            echo: Some(echo),
        }
    }
}

impl Setup for BareMemory {
    fn caller(&self, _number: usize, payload: &str) -> Call {
        let requests = self.requests.clone().expect("it runs");
        let payload = payload.as_bytes().to_vec();
        let (reply, inbox) = bounded(1);
        Box::new(move || {
            let _ = requests.send((payload.clone(), reply.clone()));
            inbox.recv().is_ok_and(|echoed| echoed == payload)
        })
    }
}

impl Drop for BareMemory {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.echo.take().map(JoinHandle::join);
    }
}

/// A thread that echoes, on a connection of its own.
pub struct Echo {
    stop: Mutex<Channel>,
    server: Option<Connection>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(url: &str) -> Self {
        let mut server = connect(url);
        let channel = server.open_channel(None).expect("a channel");
        let stop = server.open_channel(None).expect("a channel");
        declare(&channel);
        let thread = thread::spawn(move || serve(&channel));
        Self {
            stop: Mutex::new(stop),
            server: Some(server),
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // A message without reply_to ends the echo thread.
        let stop = Publish::new(b"stop", ROUTING_KEY);
        let _ = self.stop.lock().basic_publish("service.exchange", stop);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.server.take().map(Connection::close);
    }
}

/// Callers on plain amiquip: each has a channel and a reply queue of its own on one connection, so
/// that no reply has to be routed.
pub struct BareAmqp {
    client: Mutex<Option<Connection>>,
    _echo: Echo,
}

impl BareAmqp {
    pub fn start(url: &str) -> Self {
        let _echo = Echo::start(url);
        Self {
            client: Mutex::new(Some(connect(url))),
            _echo,
        }
    }
}

impl Setup for BareAmqp {
    fn caller(&self, _number: usize, payload: &str) -> Call {
        let mut client = self.client.lock();
        let client = client.as_mut().expect("it runs");
        let channel = client.open_channel(None).expect("a channel");
        let queue = channel
            .queue_declare(
                "",
                QueueDeclareOptions {
                    exclusive: true,
                    auto_delete: true,
                    ..QueueDeclareOptions::default()
                },
            )
            .expect("a reply queue");
        let reply_to = queue.name().to_owned();
        let consumer = channel
            .basic_consume(
                &reply_to,
                ConsumerOptions {
                    no_ack: true,
                    ..ConsumerOptions::default()
                },
            )
            .expect("a consumer");
        let replies = consumer.receiver().clone();
        std::mem::forget(consumer); // its drop would cancel it
        let payload = payload.as_bytes().to_vec();
        let mut sequence = 0u64;
        Box::new(move || {
            sequence += 1;
            let id = format!("{sequence:032x}");
            channel
                .basic_publish(
                    "service.exchange",
                    Publish::with_properties(
                        &payload,
                        ROUTING_KEY,
                        AmqpProperties::default()
                            .with_content_type("application/json".to_owned())
                            .with_delivery_mode(2)
                            .with_correlation_id(id.clone())
                            .with_reply_to(reply_to.clone()),
                    ),
                )
                .expect("the connection lives");
            match replies.recv() {
                Ok(ConsumerMessage::Delivery(reply)) => {
                    reply.properties.correlation_id().as_ref() == Some(&id) && reply.body == payload
                }
                _ => false,
            }
        })
    }
}

impl Drop for BareAmqp {
    fn drop(&mut self) {
        let _ = self.client.lock().take().map(Connection::close);
    }
}

fn serve(channel: &Channel) {
    channel.qos(0, 10, false).expect("a prefetch of 10");
    let consumer = channel
        .basic_consume(QUEUE, ConsumerOptions::default())
        .expect("a consumer");
    for message in consumer.receiver() {
        let ConsumerMessage::Delivery(delivery) = message else {
            return;
        };
        let Some(reply_to) = delivery.properties.reply_to().clone() else {
            let _ = delivery.ack(channel);
            return;
        };
        let mut properties =
            AmqpProperties::default().with_content_type("application/json".to_owned());
        if let Some(id) = delivery.properties.correlation_id() {
            properties = properties.with_correlation_id(id.clone());
        }
        channel
            .basic_publish(
                "",
                Publish::with_properties(&delivery.body, reply_to, properties),
            )
            .expect("the connection lives");
        delivery.ack(channel).expect("the connection lives");
    }
}

fn declare(channel: &Channel) {
    channel
        .exchange_declare(
            ExchangeType::Direct,
            "service.exchange",
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
        )
        .expect("the exchange");
    channel
        .queue_declare(
            QUEUE,
            QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            },
        )
        .expect("the queue");
    channel
        .queue_bind(
            QUEUE,
            "service.exchange",
            ROUTING_KEY,
            FieldTable::default(),
        )
        .expect("the binding");
}

//! Publishing with confirms for a while: by hand, and with coney.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Channel, Confirm, Connection, Publish};
use coney::PendingConfirm;

/// The largest number of unconfirmed messages.
pub const WINDOW: usize = 4_000;

/// A hand-written publisher: one channel, and a count of the confirmed messages.
pub struct Bare {
    _connection: Connection,
    channel: Channel,
    confirms: crossbeam_channel::Receiver<Confirm>,
    exchange: &'static str,
    routing_key: &'static str,
    mandatory: bool,
    published: u64,
}

impl Bare {
    pub fn new(
        mut connection: Connection,
        exchange: &'static str,
        routing_key: &'static str,
        mandatory: bool,
    ) -> Self {
        let channel = connection.open_channel(None).expect("a channel");
        let confirms = channel.listen_for_publisher_confirms().expect("confirms");
        channel.enable_publisher_confirms().expect("confirms");
        Self {
            _connection: connection,
            channel,
            confirms,
            exchange,
            routing_key,
            mandatory,
            published: 0,
        }
    }

    /// Publishes until `end`, and waits for the confirms. Returns the number of messages.
    pub fn publish(&mut self, body: &[u8], end: Instant) -> u64 {
        let before = self.published;
        let mut confirmed = before;
        loop {
            let over = Instant::now() >= end;
            if over && confirmed == self.published {
                return self.published - before;
            }
            if !over && self.published - confirmed < WINDOW as u64 {
                let properties = AmqpProperties::default()
                    .with_content_type("application/json".to_owned())
                    .with_delivery_mode(2)
                    .with_message_id(format!("msg_20261123083012_{:016x}", self.published))
                    .with_correlation_id(format!("{:032x}", self.published));
                let mut publish = Publish::with_properties(body, self.routing_key, properties);
                publish.mandatory = self.mandatory;
                self.channel
                    .basic_publish(self.exchange, publish)
                    .expect("the connection lives");
                self.published += 1;
                continue;
            }
            match self.confirms.recv().expect("the connection lives") {
                // A confirm covers one message or several; a late one is counted with the next.
                Confirm::Ack(ack) if ack.multiple => confirmed = confirmed.max(ack.delivery_tag),
                Confirm::Ack(_) => confirmed += 1,
                Confirm::Nack(nack) => panic!("{nack:?}"),
            }
        }
    }

    pub fn purge(&self, queue: &str) {
        self.channel.queue_purge(queue).expect("the queue is there");
    }
}

/// Publishes with coney until `end`, one message for each call of `publish`. Returns the number of
/// confirmed messages.
pub fn flood(mut publish: impl FnMut() -> coney::Result<PendingConfirm>, end: Instant) -> u64 {
    let mut pending: VecDeque<PendingConfirm> = VecDeque::with_capacity(WINDOW);
    let mut confirmed = 0;
    while Instant::now() < end {
        pending.push_back(publish().expect("the broker is there"));
        if pending.len() == WINDOW
            && let Some(oldest) = pending.pop_front()
        {
            oldest.wait().expect("it is confirmed");
            confirmed += 1;
        }
    }
    for send in pending {
        send.wait().expect("it is confirmed");
        confirmed += 1;
    }
    confirmed
}

/// Prints the counts and rates of two sides, and returns their ratio.
pub fn report(names: [&str; 2], counts: [u64; 2], time: Duration) -> f64 {
    for (scenario, messages) in names.iter().zip(counts) {
        let rate = (messages as f64 / time.as_secs_f64()).round();
        println!(
            "{}",
            serde_json::json!({"scenario": scenario, "messages": messages, "per_s": rate})
        );
    }
    let [bare, coney] = counts;
    coney as f64 / bare as f64
}

//! What happens to messages whose time is over or that are rejected: they are
//! dropped, or move on to where their queue's dead letters go.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::queue::{Entry, QueueId};
use super::state::State;
use crate::base::deadline;
use crate::transport::x_death::Death;
use crate::transport::{Message, Properties};

const EXPIRED: &str = "expired";

impl State {
    /// Takes what has expired off the head of a queue.
    pub(super) fn expire(&mut self, id: QueueId, now: Instant) {
        while let Some(entry) = self
            .queues
            .get_mut(&id)
            .and_then(|queue| queue.pop_expired(now))
        {
            self.bury(id, entry, EXPIRED, now);
        }
    }

    /// For the timer: moves on what has expired in the queues that move messages
    /// on, and says when the next will. Elsewhere an expired message is in
    /// nobody's way until somebody looks.
    pub(super) fn expire_due(&mut self, now: Instant) -> Option<Instant> {
        let moving: Vec<QueueId> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.options.dead_letter_to.is_some())
            .map(|(&id, _)| id)
            .collect();
        for &id in &moving {
            self.expire(id, now);
        }
        self.timer_due = false;
        let heads = moving.iter().filter_map(|id| self.queues.get(id));
        heads.filter_map(|queue| queue.next_expiry()).min()
    }

    /// Moves a message to where the queue's dead letters go, if anywhere. One
    /// that has come round without ever being rejected is dropped, as RabbitMQ
    /// does it, or it would go round for ever.
    pub(super) fn bury(&mut self, from: QueueId, entry: Entry, reason: &str, now: Instant) {
        let Some(queue) = self.queues.get(&from) else {
            return;
        };
        let Some((exchange, key)) = queue.options.dead_letter_to.clone() else {
            return;
        };
        let dead = &entry.message;
        let mut properties = Properties {
            expiration: None, // or it would die again at once
            ..dead.properties.clone()
        };
        let death = Death {
            queue: queue.name.clone(),
            reason: reason.to_owned(),
            exchange: dead.exchange.clone().into_owned(),
            routing_key: dead.routing_key.clone(),
            count: 1,
            time: deadline::unix_millis_after(Duration::ZERO) / 1_000,
        };
        death.add(&mut properties.headers);
        let deaths = Death::read(&properties.headers);
        let mut queues = self.route(&exchange, &key).unwrap_or_default();
        queues.retain(|id| {
            let name = self.queues.get(id).map(|queue| queue.name.as_str());
            let round = deaths
                .iter()
                .position(|death| Some(death.queue.as_str()) == name);
            round.is_none_or(|last| {
                deaths[..=last]
                    .iter()
                    .any(|death| death.reason == "rejected")
            })
        });
        let message = Message {
            exchange: Cow::Owned(exchange),
            routing_key: key,
            properties,
            body: dead.body.clone(),
            oversized: None,
        };
        self.push(message, &queues, now);
    }
}

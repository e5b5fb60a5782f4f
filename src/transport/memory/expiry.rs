//! Expired and rejected messages: they are dropped, or dead-lettered to the target of their queue.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::queue::{Entry, QueueId};
use super::state::State;
use crate::base::deadline;
use crate::transport::x_death::Death;
use crate::transport::{Message, Properties};

const EXPIRED: &str = "expired";

impl State {
    /// Takes the expired messages off the head of a queue.
    pub(super) fn expire(&mut self, id: QueueId, now: Instant) {
        while let Some(entry) = self
            .queues
            .get_mut(&id)
            .and_then(|queue| queue.pop_expired(now))
        {
            self.dead_letter(id, entry, EXPIRED, now);
        }
    }

    /// Republishes the expired messages of all queues with a dead-letter target, for the timer;
    /// returns the time at which the next one expires. In other queues an expired message has no
    /// effect until the queue is next used.
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

    /// Republishes a message to the dead-letter target of its queue, if there is one. A message that
    /// has gone through a cycle of queues without being rejected is dropped, as in RabbitMQ, or it
    /// would circulate forever.
    pub(super) fn dead_letter(&mut self, from: QueueId, entry: Entry, reason: &str, now: Instant) {
        let Some(queue) = self.queues.get(&from) else {
            return;
        };
        let Some((exchange, key)) = queue.options.dead_letter_to.clone() else {
            return;
        };
        let dead = &entry.message;
        let key = key.unwrap_or_else(|| dead.routing_key.clone());
        let mut properties = Properties {
            expiration: None, // or it would expire again at once
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
        let routed = self.route(&exchange, &key, &properties.headers);
        let mut queues = routed.unwrap_or_default();
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

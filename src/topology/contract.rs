//! The exchanges, queues and bindings of the wire contract.
//!
//! Peers in other languages declare the same ones. A declaration must match
//! what exists to the letter, or the broker refuses it (406), so this is the
//! only place that knows these names and kinds.

use std::time::Duration;

use super::direct::{self, DIRECT_REPLY_TO};
use super::{ExchangeKind, QueueOptions, Topology};

/// The exchange that every request goes through.
pub(crate) const SERVICE_EXCHANGE: &str = "service.exchange";

/// The routing key of requests to a service.
pub(crate) fn request_key(service: &str) -> String {
    let mut key = String::with_capacity("request.".len() + service.len());
    key.push_str("request.");
    key.push_str(service);
    key
}

/// The queue a service takes its requests from.
pub(crate) fn request_queue(service: &str) -> String {
    format!("service.{service}.request")
}

/// The queue of one instance of a service, for the calls addressed to it; and their
/// routing key. Not through the default exchange: a queue cannot be unbound from that,
/// and what came in between a last look and its deletion would be lost.
pub(crate) fn instance_queue(service: &str, id: &str) -> String {
    format!("service.{service}.instance.{id}")
}

/// What the names of a service's queues begin with.
pub(crate) fn service_stem(service: &str) -> String {
    format!("service.{service}")
}

/// The place where messages are handled one at a time that a worker may have died of.
pub(crate) fn suspect_queue(stem: &str) -> String {
    format!("{stem}.suspect")
}

/// A queue of suspects counts redeliveries, which a classic queue only marks.
pub(crate) fn for_suspects(stem: &str, single_active: bool) -> Topology {
    let mut counting = QueueOptions::new().quorum(NO_DELIVERY_LIMIT);
    counting.single_active = single_active;
    Topology::default().queue_with(suspect_queue(stem), counting)
}

/// Where messages wait for their next attempt, for `delay`. The delay is in the name
/// because a queue's arguments cannot be changed.
pub(crate) fn retry_queue(stem: &str, delay: Duration) -> String {
    format!("{stem}.retry.{}", delay.as_millis())
}

/// The exchange that every event goes through, keyed by its name.
pub(crate) const EVENT_EXCHANGE: &str = "event.exchange";

/// The queue in which the instances of a service share the events of a subscription.
/// Each has one of its own instead if `instance` says which.
pub(crate) fn group_queue(service: &str, subscription: &str, instance: Option<&str>) -> String {
    let instance = instance.map(|id| format!(".{id}")).unwrap_or_default();
    format!("event.{service}.{subscription}{instance}")
}

/// The queue of a subscription that there is once in the whole system.
pub(crate) fn singleton_queue(subscription: &str) -> String {
    format!("singleton.{subscription}")
}

/// The exchange that every dead letter goes through, keyed by the queue it was
/// taken from.
pub(crate) const DEAD_EXCHANGE: &str = "dead.exchange";

/// Whether a queue is one of a service's: its requests, or a subscription of its.
pub(crate) fn is_queue_of(queue: &str, service: &str) -> bool {
    let after = |stem: &str| queue.strip_prefix(stem)?.strip_prefix(service);
    after("service.") == Some(".request")
        || after("service.").is_some_and(|rest| rest.starts_with(".instance."))
        || after("event.").is_some_and(|rest| rest.starts_with('.'))
}

/// The queue that keeps all dead letters.
pub(crate) const DEAD_QUEUE: &str = "dead.letter";

/// Whether a reply may go to a queue: one that the broker has named, or stands for a client
/// itself. Replies to other queues would be written with the server's rights, wherever a
/// sender points, so they go there only where the server allows `any`, and never where they
/// would be taken for a request or a dead letter.
pub(crate) fn may_take_replies(queue: &str, any: bool) -> bool {
    if queue.starts_with(DIRECT_REPLY_TO) {
        return direct::is_direct(queue);
    }
    if queue.starts_with("amq.gen-") {
        return true;
    }
    let ours = queue.starts_with("service.")
        && (queue.ends_with(".request")
            || queue.ends_with(".suspect")
            || queue.contains(".retry.")
            || queue.contains(".instance."))
        || queue.starts_with("event.")
        || queue.starts_with("singleton.");
    any && !ours && queue != DEAD_QUEUE
}

/// Is this the routing key of requests to one instance?
pub(crate) fn is_for_instance(routing_key: &str) -> bool {
    routing_key.starts_with("service.")
}

/// What whoever sends requests needs.
pub(crate) fn for_requests() -> Topology {
    Topology::default().exchange(SERVICE_EXCHANGE, ExchangeKind::Direct)
}

/// What whoever publishes events needs.
pub(crate) fn for_events() -> Topology {
    Topology::default().exchange(EVENT_EXCHANGE, ExchangeKind::Topic)
}

/// What a subscription needs that has no queue of its own: a queue with what its pattern
/// fits, one for each delay between attempts, and the dead letters'.
pub(crate) fn for_subscription(
    queue: &str,
    options: QueueOptions,
    pattern: &str,
    retry_delays: &[Duration],
) -> Topology {
    for_events()
        .and(for_dead_letters())
        .queue_with(queue, options)
        .bind(queue, EVENT_EXCHANGE, pattern)
        .and(for_retries(queue, queue, retry_delays))
}

/// A queue whose messages have a place that they keep, whatever fails: one consumer at a
/// time, and no redelivery is put to its end to be counted, as it counts by itself.
pub(crate) fn in_order() -> QueueOptions {
    QueueOptions::new()
        .quorum(NO_DELIVERY_LIMIT)
        .single_active_consumer()
}

/// What whoever sends, keeps or looks through dead letters needs.
pub(crate) fn for_dead_letters() -> Topology {
    Topology::default()
        .exchange(DEAD_EXCHANGE, ExchangeKind::Topic)
        .queue(DEAD_QUEUE)
        .bind(DEAD_QUEUE, DEAD_EXCHANGE, "#")
}

/// coney counts redeliveries itself, and dead-letters with a reason. The broker,
/// which would drop the message, must not be first.
pub(crate) const NO_DELIVERY_LIMIT: u32 = 2_000_000_000;

/// What a service needs before it can take requests: its queue, one queue for
/// each delay between attempts, and the dead letters'.
///
/// The queues between attempts are quorum queues whatever the other is, because
/// only these move a message on with a confirmation; a classic queue that is
/// killed at the wrong moment loses what it was moving.
pub(crate) fn for_service(service: &str, retry_delays: &[Duration], quorum: bool) -> Topology {
    let queue = request_queue(service);
    let requests = match quorum {
        true => QueueOptions::new().quorum(NO_DELIVERY_LIMIT),
        false => QueueOptions::new(),
    };
    for_requests()
        .and(for_dead_letters())
        .queue_with(&queue, requests)
        .bind(&queue, SERVICE_EXCHANGE, request_key(service))
        .and(for_suspects(&service_stem(service), false))
        .and(for_retries(&service_stem(service), &queue, retry_delays))
}

/// The queues between attempts at what is in `queue`.
fn for_retries(stem: &str, queue: &str, retry_delays: &[Duration]) -> Topology {
    let mut seen = Vec::new();
    let mut topology = Topology::default();
    for &delay in retry_delays {
        if !seen.contains(&delay) {
            seen.push(delay);
            let wait = QueueOptions::new()
                .quorum(NO_DELIVERY_LIMIT)
                .message_ttl(delay)
                .dead_letter_to("", queue);
            topology = topology.queue_with(retry_queue(stem, delay), wait);
        }
    }
    topology
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_where_a_client_listens_and_nowhere_else() {
        let second = Duration::from_secs(1);
        let stem = service_stem("user-service");
        for ours in [
            request_queue("user-service"),
            retry_queue(&stem, second),
            suspect_queue(&stem),
            DEAD_QUEUE.to_owned(),
            instance_queue("user-service", "i1"),
            group_queue("user-service", "order.*", None),
            singleton_queue("report"),
            DIRECT_REPLY_TO.to_owned(),
            format!("{DIRECT_REPLY_TO}."),
            format!("{DIRECT_REPLY_TO}.a b"),
        ] {
            assert!(!may_take_replies(&ours, true), "{ours}");
        }
        assert!(may_take_replies("amq.gen-J7nq", false));
        assert!(!may_take_replies("replies.of.the.order-service", false));
        assert!(may_take_replies("replies.of.the.order-service", true));
    }

    #[test]
    fn a_request_queue_has_no_arguments_unless_asked_for() {
        let second = Duration::from_secs(1);
        let options = |topology: &Topology, name: &str| {
            let queues = topology.queues_with_options();
            let found = queues.iter().find(|(queue, _)| queue == name);
            found.map(|(_, options)| options.clone())
        };
        let plain = for_service("s", &[second, second], false);
        assert_eq!(
            options(&plain, "service.s.request"),
            Some(QueueOptions::new())
        );
        assert_eq!(options(&plain, DEAD_QUEUE), Some(QueueOptions::new()));
        assert_eq!(plain.queues().count(), 4);
        assert!(
            options(&plain, "service.s.retry.1000")
                .unwrap()
                .quorum
                .is_some()
        );
        let quorum = for_service("s", &[second], true);
        assert!(
            options(&quorum, "service.s.request")
                .unwrap()
                .quorum
                .is_some()
        );
        assert_eq!(options(&quorum, DEAD_QUEUE), Some(QueueOptions::new()));
    }
}

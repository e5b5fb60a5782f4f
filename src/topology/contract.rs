//! The exchanges, queues and bindings of the wire contract.
//!
//! Peers in other languages declare them too. A declaration must match the existing one exactly, or
//! the broker refuses it (406), so these names and kinds are defined only here.

use std::time::Duration;

use super::dead::{DEAD_QUEUE, NO_DELIVERY_LIMIT, for_dead_letters};
use super::delays;
use super::direct::{self, DIRECT_REPLY_TO};
use super::{ExchangeKind, QueueOptions, Topology};

/// The exchange for all requests.
pub(crate) const SERVICE_EXCHANGE: &str = "service.exchange";

/// Returns the routing key of requests to a service.
pub(crate) fn request_key(service: &str) -> String {
    let mut key = String::with_capacity("request.".len() + service.len());
    key.push_str("request.");
    key.push_str(service);
    key
}

/// Returns the name of the queue of requests to a service.
pub(crate) fn request_queue(service: &str) -> String {
    format!("service.{service}.request")
}

/// Returns the name of the queue of one instance of a service, for the calls addressed to it; it is
/// their routing key too. They do not go through the default exchange: a queue cannot be unbound
/// from that one, and a message that arrives between the last check of the queue and its deletion
/// would be lost.
pub(crate) fn instance_queue(service: &str, id: &str) -> String {
    format!("service.{service}.instance.{id}")
}

/// Returns the beginning of the names of a service's queues.
pub(crate) fn service_stem(service: &str) -> String {
    format!("service.{service}")
}

/// Returns the name of the queue for suspects: messages whose workers may have died because of
/// them, and which are handled one at a time.
pub(crate) fn suspect_queue(stem: &str) -> String {
    format!("{stem}.suspect")
}

/// Returns the name of the queue of the commands of an action that has a bound, and has as many
/// requests as may run and wait.
pub(crate) fn class_queue(service: &str, action: &str) -> String {
    format!("service.{service}.class.{action}")
}

/// The time after which a command goes back from the queue of its action to that of its service:
/// it must not stay there for ever if no server has a bound for the action any more.
const CLASS_TTL: Duration = Duration::from_secs(300);

/// Returns the topology of the queue of an action that has a bound.
pub(crate) fn for_class(service: &str, action: &str) -> Topology {
    let options = QueueOptions::new()
        .quorum(NO_DELIVERY_LIMIT)
        .message_ttl(CLASS_TTL)
        .dead_letter_to("", request_queue(service));
    Topology::new().queue_with(class_queue(service, action), options)
}

/// Returns the topology of a suspect queue, which counts redeliveries; a classic queue only marks
/// them.
pub(crate) fn for_suspects(stem: &str, single_active: bool) -> Topology {
    let mut counting = QueueOptions::new().quorum(NO_DELIVERY_LIMIT);
    counting.single_active = single_active;
    Topology::new().queue_with(suspect_queue(stem), counting)
}

/// The exchange for all events; the routing key is the event's name.
pub(crate) const EVENT_EXCHANGE: &str = "event.exchange";

/// Returns the name of a subscription's queue, from which all instances of the service consume, or
/// only `instance` if given.
pub(crate) fn group_queue(service: &str, subscription: &str, instance: Option<&str>) -> String {
    let instance = instance.map(|id| format!(".{id}")).unwrap_or_default();
    format!("event.{service}.{subscription}{instance}")
}

/// Returns the name of the queue of a subscription that exists once in the whole system.
pub(crate) fn singleton_queue(subscription: &str) -> String {
    format!("singleton.{subscription}")
}

/// Returns true if a queue belongs to a service: one for its requests, or for a subscription.
pub(crate) fn is_queue_of(queue: &str, service: &str) -> bool {
    let after = |stem: &str| queue.strip_prefix(stem)?.strip_prefix(service);
    after("service.") == Some(".request")
        || after("service.").is_some_and(|rest| rest.starts_with(".instance."))
        || after("event.").is_some_and(|rest| rest.starts_with('.'))
}

/// Returns true if a reply may be sent to a queue: one named by the broker, or one that stands for
/// a client's channel. A reply to any other queue is written with the server's permissions to
/// wherever the request says, so it is sent only if the server allows `any`, and never to a queue
/// where it would count as a request or a dead letter.
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
            || queue.contains(".class.")
            || queue.contains(".retry.") // of an earlier version, until they are empty
            || queue.contains(".instance."))
        || queue.starts_with("event.")
        || queue.starts_with("singleton.")
        || delays::is_delay(queue);
    any && !ours && queue != DEAD_QUEUE
}

/// Returns true if this is the routing key of requests to one instance.
pub(crate) fn is_for_instance(routing_key: &str) -> bool {
    routing_key.starts_with("service.")
}

/// Returns the topology for sending requests.
pub(crate) fn for_requests() -> Topology {
    Topology::new().exchange(SERVICE_EXCHANGE, ExchangeKind::Direct)
}

/// Returns the topology for publishing events.
pub(crate) fn for_events() -> Topology {
    Topology::new().exchange(EVENT_EXCHANGE, ExchangeKind::Topic)
}

/// Returns the topology of a subscription with a durable queue: that queue, bound with its
/// pattern, the queues of the delays between attempts, and the dead-letter queue.
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
        .and(for_retries(queue, retry_delays))
}

/// Returns the options of a queue whose messages keep their order whatever fails: one consumer at a
/// time, and a redelivered message keeps its place, as the quorum queue counts redeliveries itself.
pub(crate) fn in_order() -> QueueOptions {
    QueueOptions::new()
        .quorum(NO_DELIVERY_LIMIT)
        .single_active_consumer()
}

/// Returns the topology that a service needs before it can take requests: its queue, the queues of
/// the delays between attempts, which all services share, and the dead-letter queue.
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
        .and(for_retries(&queue, retry_delays))
}

/// Returns the topology for the retries of the messages of `queue`.
fn for_retries(queue: &str, retry_delays: &[Duration]) -> Topology {
    match retry_delays {
        [] => Topology::new(),
        delays => delays::returns_to(queue).and(delays::for_delays(delays)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_sent_to_reply_queues_only() {
        let stem = service_stem("user-service");
        for ours in [
            request_queue("user-service"),
            "service.user-service.retry.1000".to_owned(),
            delays::delay_exchange(Duration::from_secs(1)),
            suspect_queue(&stem),
            class_queue("user-service", "report"),
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
        let queues: Vec<&str> = plain.queues().collect();
        assert_eq!(
            queues,
            [
                DEAD_QUEUE,
                "service.s.request",
                "service.s.suspect",
                "coney.delay.missing",
                "coney.delay.1000",
            ]
        );
        let wait = options(&plain, "coney.delay.1000").unwrap();
        assert!(wait.quorum.is_some());
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

//! Exchanges, queues and bindings: declarations of links, and the wire contract.

mod contract;
mod declarations;
mod direct;

pub(crate) use self::contract::{
    DEAD_EXCHANGE, DEAD_QUEUE, EVENT_EXCHANGE, NO_DELIVERY_LIMIT, SERVICE_EXCHANGE,
    for_dead_letters, for_events, for_requests, for_service, for_subscription, for_suspects,
    group_queue, in_order, instance_queue, is_for_instance, is_queue_of, may_take_replies,
    request_key, request_queue, retry_queue, service_stem, singleton_queue, suspect_queue,
};
pub use self::declarations::{ExchangeKind, QueueOptions, Topology};
pub(crate) use self::direct::DIRECT_REPLY_TO;

//! Exchanges, queues and bindings: declarations of links, and the wire contract.

mod contract;
mod dead;
mod declarations;
mod delays;
mod direct;

pub(crate) use self::contract::{
    EVENT_EXCHANGE, SERVICE_EXCHANGE, class_queue, for_class, for_events, for_requests,
    for_service, for_subscription, for_suspects, group_queue, in_order, instance_queue,
    is_for_instance, is_queue_of, may_take_replies, request_key, request_queue, service_stem,
    singleton_queue, suspect_queue,
};
pub(crate) use self::dead::{DEAD_EXCHANGE, DEAD_QUEUE, NO_DELIVERY_LIMIT, for_dead_letters};
pub use self::declarations::{ExchangeKind, QueueOptions, Topology};
pub(crate) use self::delays::{
    DelayPath, LONGEST_DELAY, RETURN_EXCHANGE, delay_exchange, for_delay_levels, for_returns,
    is_delay, is_delay_header, is_delay_level,
};
pub(crate) use self::direct::DIRECT_REPLY_TO;

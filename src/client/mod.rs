//! The calling side: the options of clients, proxies, and waiting for several results.
//!
//! [`ServiceClient`] itself is at the crate's root.

mod action_cache;
mod answer;
mod async_call;
mod attempts;
mod backlog;
mod backlog_builder;
mod backlog_gate;
pub(crate) mod batch;
mod batch_support;
mod batch_table;
mod bound_services;
mod builder;
mod call;
mod call_errors;
mod call_outcome;
mod call_pipeline;
mod call_sender;
mod call_tables;
mod coalesced;
mod core;
mod decode;
mod delayed;
mod discovery;
mod extended_builder;
mod extensions;
mod fallback;
mod layer;
mod lone_spin;
pub(crate) mod options;
mod own_service;
mod passed_on;
mod pending;
pub(crate) mod pending_confirm;
pub(crate) mod pending_reply;
pub(crate) mod pending_table;
pub(crate) mod proxy;
mod reply_slot;
mod router;
mod send;
mod sent_attempt;
mod sent_call;
pub(crate) mod service_client;
mod started_call;

pub(crate) use self::action_cache::{
    ActionCache, BackgroundCall, CacheRead, CachedAnswer, CachedRequest, Fill, PendingFill,
};
pub use self::answer::{Answer, CallReply, Origin};
pub use self::builder::ServiceClientBuilder;
pub use self::layer::{CallLayer, LayeredCall, NextCall, OutgoingCall};
pub(crate) use self::options::{CallOptions, RequestOptions, SendOptions};
pub(crate) use self::own_service::OwnServiceCalls;
pub(crate) use self::passed_on::PassedOn;
pub use self::pending::{Pending, wait_any};
pub(crate) use self::pending_confirm::{PendingConfirm, SendTarget};
pub(crate) use self::pending_reply::PendingReply;
pub use self::proxy::{ServiceProxyFactory, action_name};
pub(crate) use self::service_client::ServiceClient;

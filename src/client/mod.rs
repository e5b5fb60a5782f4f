//! The calling side: the options of clients, proxies, and waiting for several results.
//!
//! [`ServiceClient`] itself is at the crate's root.

pub(crate) mod action_cache;
pub(crate) mod batch;
mod batch_support;
mod batch_table;
mod builder;
mod call;
mod call_outcome;
mod call_tables;
mod coalesced;
mod core;
mod decode;
mod discovery;
pub(crate) mod options;
mod pending;
pub(crate) mod pending_confirm;
pub(crate) mod pending_reply;
pub(crate) mod pending_table;
pub(crate) mod proxy;
mod reply_slot;
mod router;
mod send;
mod sent_call;
pub(crate) mod service_client;

pub(crate) use self::action_cache::{
    ActionCache, BackgroundCall, CacheRead, CachedAnswer, CachedRequest, Fill, PendingFill,
};
pub use self::builder::ServiceClientBuilder;
pub(crate) use self::options::{CallOptions, RequestOptions, SendOptions};
pub use self::pending::{Pending, wait_any};
pub(crate) use self::pending_confirm::{PendingConfirm, SendTarget};
pub(crate) use self::pending_reply::PendingReply;
pub use self::proxy::{ServiceProxyFactory, action_name};
pub(crate) use self::service_client::ServiceClient;

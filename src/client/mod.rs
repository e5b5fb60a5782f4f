//! The calling side: requests out, replies back to the waiting calls.

pub(crate) mod batch;
mod batch_support;
mod batch_table;
mod builder;
mod call;
mod call_outcome;
mod call_tables;
mod callback;
mod coalesced;
mod core;
mod decode;
mod discovery;
mod options;
mod pending_confirm;
mod pending_reply;
pub(crate) mod pending_table;
pub(crate) mod proxy;
mod reply_slot;
mod router;
mod send;
mod sent_call;
mod service_client;

pub use self::builder::ServiceClientBuilder;
pub use self::options::CallOptions;
pub use self::pending_confirm::PendingConfirm;
pub(crate) use self::pending_confirm::SendTarget;
pub use self::pending_reply::PendingReply;
pub use self::service_client::ServiceClient;

//! What all who consume have in common: deliveries in, handlers on a pool of workers,
//! and out again as acknowledged, tried later, or kept among the dead letters. Servers
//! and subscribers are written over it.

mod answer;
mod batch;
mod context;
mod deduplication;
mod dispatch;
mod handler;
mod inbox;
mod mover;
mod moves;
mod options;
mod pool;
mod request;
mod run;
mod workers;

pub(crate) use self::batch::Batch;
pub use self::context::Context;
pub(crate) use self::context::Nested;
pub(crate) use self::deduplication::Deduplication;
pub use self::deduplication::{Claim, MemoryReplyStore, ReplyStore, StoreError};
pub(crate) use self::dispatch::{Again, Attempt, Dispatch, Processed};
pub use self::handler::HandlerError;
pub(crate) use self::handler::{Handler, of_event, of_raw_event, raw, typed};
pub(crate) use self::inbox::Inbox;
pub(crate) use self::mover::{Mover, POSTPONE_FOR, Retries};
pub(crate) use self::moves::Move;
pub(crate) use self::options::Options;
pub(crate) use self::pool::Job;
pub(crate) use self::run::{Handlers, Runner};
pub(crate) use self::workers::Workers;

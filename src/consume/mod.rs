//! What all who consume have in common: deliveries in, handlers on a pool of workers,
//! and out again as acknowledged, tried later, or kept among the dead letters. Servers
//! and subscribers are written over it.

mod answer;
mod batch;
mod clocks;
mod context;
mod copy;
mod deduplication;
mod dispatch;
mod drain;
mod failure;
mod handler;
mod inbox;
mod leases;
mod memory_reply_store;
mod mover;
mod moves;
mod options;
mod pool;
mod reply_store;
mod request;
mod run;
mod settled;
mod tracked;
mod workers;

pub(crate) use self::batch::Batch;
pub(crate) use self::clocks::Clocks;
pub use self::context::Context;
pub(crate) use self::context::Nested;
pub(crate) use self::deduplication::Deduplication;
use self::dispatch::Again;
pub(crate) use self::dispatch::{Attempt, Dispatch, Processed};
pub(crate) use self::drain::{Left, drain};
pub use self::handler::HandlerError;
pub(crate) use self::handler::{Handler, of_event, of_raw_event, raw, typed};
pub(crate) use self::inbox::Inbox;
pub use self::memory_reply_store::MemoryReplyStore;
use self::mover::POSTPONE_FOR;
pub(crate) use self::mover::{Mover, Retries};
pub(crate) use self::moves::Move;
pub(crate) use self::options::Options;
pub(crate) use self::pool::Job;
pub use self::reply_store::{Claim, ReplyStore, StoreError};
pub(crate) use self::run::{Handlers, Runner};
pub(crate) use self::settled::Settled;
pub(crate) use self::tracked::Tracked;
pub(crate) use self::workers::{Crew, Workers};

//! Many calls to one service in few messages.

pub(crate) mod builder;
mod callback;
mod limits;
mod message;
mod pending;
mod replies;

pub(crate) use self::builder::Batch;
pub use self::limits::BatchLimits;
pub use self::pending::PendingBatch;
pub use self::replies::{BatchReplies, CallKey};

//! Many calls to one service in few messages.

mod builder;
mod limits;
mod message;
mod pending;
mod replies;

pub use self::builder::Batch;
pub use self::limits::BatchLimits;
pub use self::pending::PendingBatch;
pub use self::replies::{BatchReplies, CallKey};

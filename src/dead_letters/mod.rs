//! The queue of messages that failed for good: listing, replaying and purging them.
//!
//! [`DeadLetters`](crate::DeadLetters) itself is at the crate's root.

mod letter;
pub(crate) mod queue;

pub use self::letter::DeadLetter;
pub use self::queue::ReplayReport;

//! The queue of messages that failed for good: listing, replaying and purging them.

mod letter;
mod queue;

pub use self::letter::DeadLetter;
pub use self::queue::{DeadLetters, ReplayReport};

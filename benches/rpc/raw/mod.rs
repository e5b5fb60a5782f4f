//! The limit: sockets and hand-made frames, with the sizes and properties of coney's messages.

mod frames;
mod link;
mod program;

pub use program::RawAmqp;

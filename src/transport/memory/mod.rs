//! A broker inside the process: RabbitMQ's semantics, no network.
//!
//! The publishing thread routes the message and passes it to its consumer's sink in the same call.
//! One thread, started when the first queue needs it, dead-letters expired messages. Durability and
//! other processes are left to RabbitMQ.

mod declare;
#[cfg(test)]
mod delays_tests;
mod exchange;
mod expiry;
mod link_handle;
mod link_state;
mod links;
#[cfg(test)]
mod model;
mod queue;
mod shared_state;
mod state;
mod timer;
mod transport;

pub(crate) use self::transport::MemoryTransport;

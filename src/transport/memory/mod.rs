//! A broker inside the process: RabbitMQ's semantics, no network.
//!
//! The publishing thread routes the message and hands it to its consumer's sink
//! in the same call. One thread, started when the first queue needs it, moves on
//! what expires. Durability and other processes are RabbitMQ's job.

mod declare;
mod exchange;
mod expiry;
mod link_handle;
mod link_state;
mod links;
#[cfg(test)]
mod model;
mod queue;
mod shared;
mod state;
mod timer;
mod transport;

pub(crate) use self::transport::MemoryTransport;

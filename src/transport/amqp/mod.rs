//! The RabbitMQ transport, built on amiquip.
//!
//! The layers, from the top: the transport sends commands to the `io_thread`, which
//! connects, runs a `session`, backs off and reconnects; a session owns one
//! `link_channel` (an AMQP channel and its consumer) for each link; amiquip's own
//! socket thread runs below, on the `stream` that checks every byte.

pub(crate) mod builder;
mod coalesce_buffer;
mod command;
mod command_port;
mod config;
mod connect;
mod convert;
mod frames;
mod io_thread;
mod link_handle;
mod link_table;
mod session;
mod state_listener;
mod stream;
mod transit;
mod transport;
mod url;
mod watchdog;

pub(crate) use self::transport::AmqpTransport;

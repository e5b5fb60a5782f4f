//! The RabbitMQ transport, built on amiquip.
//!
//! Message content goes a short way: any thread publishes and settles through the `link_outlet` of a
//! link, which appends `frames` to the connection's `frame_writer`; the thread that reads the socket
//! passes deliveries to their `delivery_route`.
//!
//! All else has layers, from the top: the transport sends commands to the `io_thread`, which
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
mod delivery_route;
mod frame_max;
mod frame_writer;
mod frames;
mod io_thread;
mod link_handle;
mod link_outlet;
mod link_table;
mod observed;
mod routes;
mod session;
mod state_listener;
mod stream;
mod transport;
mod unsettled;
mod url;
mod watchdog;

pub(crate) use self::transport::AmqpTransport;

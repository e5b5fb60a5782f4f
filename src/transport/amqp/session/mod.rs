//! One connection from login to loss: the event loop that owns its channels.

mod coalesce;
mod declare;
mod event_loop;
mod idle_channel;
mod large;
mod large_sending;
mod link_channel;
mod link_consumer;
mod link_ops;
mod loop_event;
mod loss;
mod prefetch;
mod publish_refusal;
mod queries;
mod sending;
mod state;
mod unconfirmed;

pub(super) use self::state::{SWEEP_INTERVAL, Session, SessionContext, SessionEnd};

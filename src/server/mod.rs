//! The serving side: deliveries in, handlers on a pool of workers, replies out.
//!
//! [`ServiceServer`] itself is at the crate's root.

mod builder;
mod consume;
mod handlers;
mod health;
mod health_rounds;
mod health_settings;
mod job;
mod limits;
mod load;
mod load_settings;
mod retry_settings;
pub(crate) mod service_server;
mod sources;
mod start;

pub use self::builder::ServiceServerBuilder;
pub use self::load::ServerLoad;
pub use self::service_server::ServerState;
pub(crate) use self::service_server::ServiceServer;
pub use crate::consumer::{
    HandlerLayer, HandlerReply, NextHandler, PauseOnFailures, Scaling, Shed, WorkerCount,
};

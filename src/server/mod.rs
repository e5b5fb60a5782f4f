//! The serving side: deliveries in, handlers on a pool of workers, replies out.

mod builder;
mod health;
mod service_server;
mod sources;
mod start;

pub use self::builder::ServiceServerBuilder;
pub use self::service_server::{ServerState, ServiceServer};

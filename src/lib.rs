//! coney
mod client;
mod deadline;
mod error;
pub mod message;
mod name;
mod proxy;
mod server;
mod topology;
pub mod transport;

pub use client::{CallOptions, PendingReply, ServiceClient, ServiceClientBuilder};
pub use error::{Error, ErrorKind, Phase, Result};
pub use proxy::{ServiceProxy, ServiceProxyFactory, action_name};
pub use server::{Context, HandlerError, ServiceServer, ServiceServerBuilder};
pub use transport::{Broker, BrokerBuilder};

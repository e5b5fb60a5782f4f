//! The instances of services: registration, heartbeats, look-ups, balancing.
//!
//! [`RegistryStore`] is the trait of a store; [`MemoryRegistryStore`] and
//! `coney::redis::RedisRegistryStore` implement it. Programs use [`Registry`]: a store, a cache
//! in front of it for look-ups, and a thread that renews the heartbeats of the instances
//! registered here.

pub(crate) mod balance;
mod builder;
mod cache;
mod cached_service;
pub(crate) mod candidate;
mod caught_store;
pub(crate) mod choice;
mod clock;
mod fields;
pub(crate) mod handle;
mod heartbeat;
pub(crate) mod instance;
mod json;
mod liveness;
mod lookup;
mod memory;
mod refresher;
mod registration;
mod registration_state;
mod snapshot;
mod store;

pub(crate) use self::balance::Balancer;
pub use self::builder::RegistryBuilder;
pub(crate) use self::candidate::Candidate;
pub use self::candidate::PickedInstance;
pub(crate) use self::handle::Registry;
pub(crate) use self::instance::{CAPABILITIES, Instance, OWN_QUEUE};
pub use self::lookup::{Instances, Lookup};
pub use self::memory::MemoryRegistryStore;
pub use self::registration::Registration;
pub use self::registration_state::RegistrationState;
pub use self::store::{HeartbeatResult, RegistryStore, StoredInstances};

//! Events: the options of subscribers.
//!
//! [`EventPublisher`](crate::EventPublisher), [`EventSubscriber`] and
//! [`Subscription`] are at the crate's root, and the types of
//! [layers](EventSubscriberBuilder::layer) in [`server`](crate::server).

mod active_subscription;
mod begin_marks;
mod builder;
pub(crate) mod options;
pub(crate) mod publisher;
mod start;
pub(crate) mod subscriber;
pub(crate) mod subscription;

pub use self::builder::EventSubscriberBuilder;
pub(crate) use self::options::PublishOptions;
pub(crate) use self::subscriber::EventSubscriber;
pub use self::subscriber::SubscriberState;
pub use self::subscription::RawEvent;
pub(crate) use self::subscription::Subscription;

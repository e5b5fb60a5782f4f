//! Events: the options of subscribers.
//!
//! [`EventPublisher`](crate::EventPublisher), [`EventSubscriber`] and
//! [`Subscription`] are at the crate's root, and the types of
//! [layers](EventSubscriberBuilder::layer), [scaling](EventSubscriberBuilder::scaling) and
//! [pauses](EventSubscriberBuilder::pause_on_failures) in [`server`](crate::server).

mod active_subscription;
mod begin_marks;
mod builder;
mod load;
mod load_settings;
pub(crate) mod options;
mod pause_thread;
pub(crate) mod publisher;
mod running;
mod start;
pub(crate) mod subscriber;
pub(crate) mod subscription;

pub use self::builder::EventSubscriberBuilder;
pub(crate) use self::options::PublishOptions;
pub(crate) use self::subscriber::EventSubscriber;
pub use self::subscriber::SubscriberState;
pub use self::subscription::RawEvent;
pub(crate) use self::subscription::Subscription;

//! Events: something has happened, and whoever wants to know is told.

mod builder;
mod delays;
mod feed;
mod lanes;
mod publisher;
mod subscriber;
mod subscription;

pub use self::builder::EventSubscriberBuilder;
pub use self::publisher::EventPublisher;
pub use self::subscriber::EventSubscriber;
pub use self::subscription::Subscription;

//! Events: publishing, and subscriptions in groups, broadcast, or in order.

mod begun;
mod builder;
mod delays;
mod feed;
mod lanes;
mod publisher;
mod start;
mod subscriber;
mod subscription;

pub use self::builder::EventSubscriberBuilder;
pub use self::publisher::EventPublisher;
pub use self::subscriber::EventSubscriber;
pub use self::subscription::{RawEvent, Subscription};

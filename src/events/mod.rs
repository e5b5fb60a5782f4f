//! Events: publishing, and subscriptions in groups, broadcast, or in order.

mod active_subscription;
mod begin_marks;
mod builder;
mod delay_queue;
mod key_queues;
mod publisher;
mod start;
mod subscriber;
mod subscription;

pub use self::builder::EventSubscriberBuilder;
pub use self::publisher::EventPublisher;
pub use self::subscriber::EventSubscriber;
pub use self::subscription::{RawEvent, Subscription};

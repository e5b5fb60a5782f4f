//! What can be done with every handle: it can be sent to, shared with and cloned for other
//! threads, checked by the compiler.

use coney::balance::{Candidate, Choice, ConsistentHash, RoundRobin, Weighted};
use coney::batch::{BatchReplies, PendingBatch};
use coney::client::ServiceClientBuilder;
use coney::deduplication::MemoryReplyStore;
use coney::events::EventSubscriberBuilder;
use coney::registry::{Lookup, MemoryRegistryStore, PickedInstance, Registration, RegistryBuilder};
use coney::server::ServiceServerBuilder;
use coney::transport::{Delivery, Link, Message, Publication, QueueDepth};
use coney::{
    Batch, Broker, BrokerBuilder, CallOptions, Context, DeadLetters, Error, EventPublisher,
    EventSubscriber, HandlerError, Instance, PendingConfirm, PendingReply, PublishOptions,
    Registry, SendOptions, ServiceClient, ServiceProxy, ServiceServer, Subscription,
};

fn is_send<T: Send>() {}

fn is_shared<T: Send + Sync>() {}

fn is_cloned<T: Clone + Send + Sync>() {}

#[test]
fn handles_cross_threads() {
    is_cloned::<Broker>();
    is_cloned::<ServiceClient>();
    is_cloned::<ServiceProxy>();
    is_cloned::<EventPublisher>();
    is_cloned::<Registry>();
    is_cloned::<CallOptions>();
    is_cloned::<SendOptions>();
    is_cloned::<PublishOptions>();
    is_cloned::<Instance>();
    is_cloned::<Lookup>();
    is_cloned::<Publication>();
    is_cloned::<Message>();
    is_cloned::<QueueDepth>();

    is_shared::<ServiceServer>();
    is_shared::<EventSubscriber>();
    is_shared::<DeadLetters>();
    is_shared::<Link>();
    is_shared::<Registration>();
    is_shared::<PickedInstance>();
    is_shared::<Candidate>();
    is_shared::<Choice<'_>>();
    is_shared::<Context<'_>>();
    is_shared::<Error>();
    is_shared::<HandlerError>();
    is_shared::<PendingConfirm>();
    is_shared::<MemoryRegistryStore>();
    is_shared::<MemoryReplyStore>();
    is_shared::<ConsistentHash>();
    is_shared::<RoundRobin>();
    is_shared::<Weighted>();
    #[cfg(feature = "redis")]
    is_cloned::<coney::redis::Redis>();

    is_send::<PendingReply<u64>>();
    is_send::<PendingBatch>();
    is_send::<BatchReplies>();
    is_send::<Batch>();
    is_send::<Delivery>();
    is_send::<BrokerBuilder>();
    is_send::<ServiceClientBuilder>();
    is_send::<ServiceServerBuilder>();
    is_send::<EventSubscriberBuilder>();
    is_send::<RegistryBuilder>();
    is_send::<Subscription>();
}

//! The platform of all services: the broker, the registry, and the builders with common settings.

use std::sync::Arc;
use std::time::Duration;

use coney::deduplication::ReplyStore;
use coney::events::EventSubscriberBuilder;
use coney::redis::Redis;
use coney::resilience::{Resilience, Retry, RetryBudget};
use coney::server::ServiceServerBuilder;
use coney::{
    Broker, EventPublisher, EventSubscriber, Instance, Registry, ServiceClient, ServiceServer,
};

use crate::stats::Stats;

/// The delays before the next attempts at a failed command or event.
const RETRY_DELAYS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1_000),
];

/// The time for which a service remembers handled requests.
const REPLY_TTL: Duration = Duration::from_secs(600);

/// The longest time for which a caller waits while a service or the broker is unavailable.
const PATIENCE: Duration = Duration::from_secs(60);

/// The connections that all services use.
pub struct Platform {
    pub broker: Broker,
    pub registry: Registry,
    replies: Arc<dyn ReplyStore>,
}

impl Platform {
    /// Opens the broker and the registry, in memory where no URL is given.
    pub fn open(amqp_url: Option<&str>, redis_url: Option<&str>) -> coney::Result<Self> {
        let broker = match amqp_url {
            Some(url) => Broker::builder(url)
                .connection_name("ecommerce")
                .connect()?,
            None => Broker::memory(),
        };
        Ok(match redis_url {
            Some(url) => Self {
                broker,
                registry: Redis::new(url)?.registry(),
                replies: Arc::new(Redis::builder(url).connections(10).build()?.reply_store()),
            },
            None => Self {
                broker,
                registry: Registry::memory(),
                replies: Arc::new(coney::deduplication::MemoryReplyStore::new(100_000)),
            },
        })
    }

    /// Creates a client in the name of a service. Its idempotent requests are sent again by themselves
    /// after the connection was lost. The retries are for services that have not been started yet,
    /// and for a reply that does not come.
    pub fn client(&self, name: &str) -> coney::Result<ServiceClient> {
        let retry = Retry::new()
            .attempts(u32::MAX) // until the timeout
            .delays(Duration::from_millis(100), Duration::from_secs(1))
            .per_attempt(Duration::from_secs(10))
            .budget(RetryBudget::new().reserve(20)); // for all customers at once
        ServiceClient::builder(&self.broker, name)
            .timeout(PATIENCE)
            .resilience(Resilience::none().retry(retry))
            .build()
    }

    /// Prepares a server with the common settings and the action `report`, which returns
    /// statistics.
    pub fn server(&self, name: &str, stats: &Arc<Stats>) -> ServiceServerBuilder {
        let stats = Arc::clone(stats);
        ServiceServer::builder(&self.broker, name)
            .registry(&self.registry)
            .instance(Instance::new().with_version(env!("CARGO_PKG_VERSION")))
            .retry_delays(RETRY_DELAYS)
            .deduplicate(Arc::clone(&self.replies), REPLY_TTL)
            .respond("report", move |()| stats.report())
    }

    /// Prepares a subscriber with the common settings.
    pub fn subscriber(&self, name: &str) -> EventSubscriberBuilder {
        EventSubscriber::builder(&self.broker, name)
            .retry_delays(RETRY_DELAYS)
            .deduplicate(Arc::clone(&self.replies), REPLY_TTL)
    }

    /// Creates a publisher in the name of a service.
    pub fn publisher(&self, name: &str) -> coney::Result<EventPublisher> {
        Ok(EventPublisher::new(&self.broker, name)?.with_timeout(Duration::from_secs(30)))
    }
}

/// A running service.
pub struct Service {
    pub server: ServiceServer,
    pub subscriber: Option<EventSubscriber>,
}

impl Service {
    /// Shuts the service down; running handlers finish.
    pub fn stop(self) {
        let timeout = Duration::from_secs(10);
        if let Some(subscriber) = &self.subscriber
            && let Err(error) = subscriber.shutdown(timeout)
        {
            log::warn!("{error}");
        }
        if let Err(error) = self.server.shutdown(timeout) {
            log::warn!("{error}");
        }
    }
}

//! What every service is made with: a broker, a registry, and how it starts and stops.

use std::sync::Arc;
use std::time::Duration;

use coney::redis::Redis;
use coney::{
    Broker, EventPublisher, EventSubscriber, EventSubscriberBuilder, Instance, Registry,
    ReplyStore, ServiceClient, ServiceServer, ServiceServerBuilder,
};

use crate::stats::Stats;

/// How long a failed command or event waits for its next attempt.
const RETRY_DELAYS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1_000),
];

/// How long a service remembers what it has done.
const REMEMBER: Duration = Duration::from_secs(600);

pub struct Platform {
    pub broker: Broker,
    pub registry: Registry,
    replies: Arc<dyn ReplyStore>,
}

impl Platform {
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
                replies: Arc::new(coney::MemoryReplyStore::new(100_000)),
            },
        })
    }

    /// A client in the name of a service.
    pub fn client(&self, name: &str) -> coney::Result<ServiceClient> {
        ServiceClient::builder(&self.broker, name)
            .timeout(Duration::from_secs(10))
            .build()
    }

    /// A server: every service can be asked for its statistics.
    pub fn server(&self, name: &str, stats: &Arc<Stats>) -> ServiceServerBuilder {
        let stats = Arc::clone(stats);
        ServiceServer::builder(&self.broker, name)
            .registry(&self.registry)
            .instance(Instance::new().with_version(env!("CARGO_PKG_VERSION")))
            .retry_delays(RETRY_DELAYS)
            .deduplicate(Arc::clone(&self.replies), REMEMBER)
            .handler("report", move |()| Ok::<_, String>(stats.report()))
    }

    pub fn subscriber(&self, name: &str) -> EventSubscriberBuilder {
        EventSubscriber::builder(&self.broker, name)
            .retry_delays(RETRY_DELAYS)
            .deduplicate(Arc::clone(&self.replies), REMEMBER)
    }

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
    /// Lets what runs finish.
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
